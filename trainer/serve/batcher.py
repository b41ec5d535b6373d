"""Answers the rows of concurrent requests together: a thread takes what is waiting, up to a batch, and never waits for
more."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from threading import Condition, Thread
from typing import NamedTuple

from trainer.export.bundle.predict import Row

Answer = Callable[[list[Row], int], list[Row]]


class QueueFullError(Exception):
    """More rows are waiting than allowed."""


class _Request(NamedTuple):
    rows: list[Row]
    top: int
    future: Future[list[Row]]


class Batcher:
    """Requests that wait for a model.

    Args:
        answer: Returns an answer for each of at most `batch_size` rows; the second argument is `top` of the request.
        batch_size: Largest number of rows in a batch.
        max_waiting: Largest number of rows that wait.
        threads: Number of batches that are answered at once.

    Attributes:
        num_waiting: Number of rows that wait or are being answered.
        num_batches: Number of batches so far.
    """

    def __init__(self, answer: Answer, batch_size: int, max_waiting: int, threads: int = 1) -> None:
        self._answer, self._batch_size, self._max_waiting = answer, batch_size, max_waiting
        self._requests: deque[_Request] = deque()
        self._changed = Condition()
        self._is_closed = False
        self.num_waiting = 0
        self.num_batches = 0
        self._threads = [Thread(target=self._run, name=f"answers {n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, rows: list[Row], top: int) -> Future[list[Row]]:
        """Return the future answers of a request. It may be cancelled until they are being computed.

        Raises:
            QueueFullError: Too many rows are waiting. A request alone is never refused.
        """
        request = _Request(rows, top, Future())
        with self._changed:
            if self.num_waiting and self.num_waiting + len(rows) > self._max_waiting:
                raise QueueFullError
            self.num_waiting += len(rows)
            self._requests.append(request)
            self._changed.notify()
        return request.future

    def close(self) -> None:
        """Answer what is waiting and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while requests := self._take():
            live = [request for request in requests if request.future.set_running_or_notify_cancel()]
            try:
                rows = [row for request in live for row in request.rows]
                answers = iter(self._answer_all(rows, requests[0].top))
                for request in live:
                    request.future.set_result([next(answers) for _ in request.rows])
            except Exception as error:
                for request in live:
                    if not request.future.done():
                        request.future.set_exception(error)
            with self._changed:
                self.num_waiting -= sum(len(request.rows) for request in requests)

    def _take(self) -> list[_Request]:
        """Wait for a request; return it with those behind it that fit into its batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._is_closed)
            taken: list[_Request] = []
            while self._requests and (not taken or self._fits(taken, self._requests[0])):
                taken.append(self._requests.popleft())
            return taken

    def _fits(self, taken: list[_Request], request: _Request) -> bool:
        count = sum(len(each.rows) for each in taken) + len(request.rows)
        return request.top == taken[0].top and count <= self._batch_size

    def _answer_all(self, rows: list[Row], top: int) -> list[Row]:
        """Answer rows in batches; rows of similar length share one, because the shorter ones are padded."""
        if len(rows) <= self._batch_size:
            order = list(range(len(rows)))
        else:
            order = sorted(range(len(rows)), key=lambda place: _length(rows[place]))
        answers: list[Row] = [{}] * len(rows)
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            for place, answer in zip(places, self._answer([rows[place] for place in places], top), strict=True):
                answers[place] = answer
            with self._changed:
                self.num_batches += 1
        return answers


def _length(row: Row) -> int:
    return sum(len(value) for value in row.values() if isinstance(value, str | list))
