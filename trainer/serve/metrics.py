"""Counts of the requests, in the text format of Prometheus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram of durations, in seconds."""


class RequestMetrics:
    """The requests for answers so far."""

    def __init__(self) -> None:
        self._requests: Counter[int] = Counter()
        self._buckets = [0] * len(BUCKETS)
        self._seconds = 0.0
        self._rows = self._broken_rows = 0

    def count(self, status: int, seconds: float, rows: int = 0, broken: int = 0) -> None:
        """Count a request that was answered with an HTTP status, its duration, its rows and those that were broken."""
        self._requests[status] += 1
        self._seconds += seconds
        self._rows += rows
        self._broken_rows += broken
        for place, bound in enumerate(BUCKETS):
            self._buckets[place] += seconds <= bound

    def render(self, waiting: int, batches: int) -> str:
        """Return all metrics.

        Args:
            waiting: Number of rows that wait or are being answered.
            batches: Number of batches so far.
        """
        return "\n".join(self._lines(waiting, batches)) + "\n"

    def _lines(self, waiting: int, batches: int) -> Iterator[str]:
        yield "# HELP trainer_requests_total Requests for answers by HTTP status."
        yield "# TYPE trainer_requests_total counter"
        yield from (f'trainer_requests_total{{status="{code}"}} {n}' for code, n in sorted(self._requests.items()))
        yield "# HELP trainer_request_seconds Duration of requests for answers."
        yield "# TYPE trainer_request_seconds histogram"
        for bound, number in zip(BUCKETS, self._buckets, strict=True):
            yield f'trainer_request_seconds_bucket{{le="{bound:g}"}} {number}'
        total = self._requests.total()
        yield f'trainer_request_seconds_bucket{{le="+Inf"}} {total}'
        yield f"trainer_request_seconds_sum {self._seconds:.6f}"
        yield f"trainer_request_seconds_count {total}"
        for name, kind, text, value in (
            ("rows_total", "counter", "Rows that were answered.", self._rows),
            ("broken_rows_total", "counter", "Rows whose answer is an error.", self._broken_rows),
            ("batches_total", "counter", "Batches that the model computed.", batches),
            ("waiting_rows", "gauge", "Rows that wait or are being answered.", waiting),
        ):
            yield f"# HELP trainer_{name} {text}"
            yield f"# TYPE trainer_{name} {kind}"
            yield f"trainer_{name} {value}"
