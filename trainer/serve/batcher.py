"""Answers the rows of concurrent requests together, up to a batch, and never waits for more.

Threads do this, or the event loop itself if handing a request to a thread would take longer than its answer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from threading import Condition, Thread
from typing import NamedTuple

from trainer.export.bundle.predict import Row
from trainer.serve.columns import Columns

LARGEST_BATCH = 100_000
"""Characters of the rows of a batch together, unless it is a single row. Other batches wait for the tokenizer while one
is encoded, so this limits how long."""

Rows = list[Row] | Columns
Answer = Callable[[Rows, int], list[Row]]
Length = Callable[[Row], int]


class QueueFullError(Exception):
    """More rows are waiting than allowed."""


class _Answers(Future[list[Row]]):
    """The future answers of a request. Python cannot cancel what a thread already computes, so it looks here."""

    is_abandoned = False

    def cancel(self) -> bool:
        self.is_abandoned = True
        return super().cancel()


class _Request(NamedTuple):
    rows: Rows
    top: int
    future: _Answers | asyncio.Future[list[Row]]

    @property
    def is_abandoned(self) -> bool:
        """Return whether the client no longer waits for the answers."""
        return isinstance(self.future, _Answers) and self.future.is_abandoned

    def fits_behind(self, first: _Request, room: int) -> bool:
        """Return whether a batch may contain another request and, in its last `room` rows, this one."""
        is_listed = isinstance(self.rows, list) and isinstance(first.rows, list)
        return is_listed and self.top == first.top and len(self.rows) <= room

    def set_result(self, answers: Iterator[Row]) -> None:
        """Take the next answers as its own, unless the client no longer waits."""
        own = [next(answers) for _ in range(len(self.rows))]
        if not self.future.done():
            self.future.set_result(own)

    def set_exception(self, error: Exception) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Batches:
    """Divides rows into batches.

    Args:
        answer: Returns an answer for each of at most `batch_size` rows; the second argument is `top` of the request.
        batch_size: Largest number of rows in a batch.
        length: Returns the length of a row, in characters; None if all rows take the same time.

    Attributes:
        count: Number of batches so far.
    """

    def __init__(self, answer: Answer, batch_size: int, length: Length | None = None) -> None:
        self._answer, self._batch_size, self._length = answer, batch_size, length
        self.count = 0

    def take(self, requests: deque[_Request]) -> list[_Request]:
        """Remove a request and those behind it that fit into its batch, if there is one; return them."""
        taken: list[_Request] = []
        count = 0
        while requests and (not taken or requests[0].fits_behind(taken[0], self._batch_size - count)):
            count += len(requests[0].rows)
            taken.append(requests.popleft())
        return taken

    def answer(self, requests: list[_Request]) -> None:
        """Answer requests that share a batch, or a single request of any size."""
        try:
            answers = iter(self._answer_rows(requests))
            for request in requests:
                request.set_result(answers)
        except Exception as error:
            for request in requests:
                request.set_exception(error)

    def _answer_rows(self, requests: list[_Request]) -> list[Row]:
        first, top = requests[0], requests[0].top
        if isinstance(first.rows, Columns):
            return self._answer_columns(first.rows, first)
        if len(requests) == 1 and len(first.rows) <= self._batch_size and self._length is None:
            self.count += 1
            return self._answer(first.rows, top)
        rows = [row for request in requests if isinstance(request.rows, list) for row in request.rows]
        answers: list[Row] = [{}] * len(rows)
        for places in self._divide(rows):
            if all(request.is_abandoned for request in requests):
                break
            for place, answer in zip(places, self._answer([rows[place] for place in places], top), strict=True):
                answers[place] = answer
            self.count += 1
        return answers

    def _answer_columns(self, columns: Columns, request: _Request) -> list[Row]:
        answers: list[Row] = [{}] * len(columns)
        for start in range(0, len(columns), self._batch_size):
            if request.is_abandoned:
                break
            end = min(start + self._batch_size, len(columns))
            answers[start:end] = self._answer(columns.between(start, end), request.top)
            self.count += 1
        return answers

    def _divide(self, rows: list[Row]) -> Iterator[list[int]]:
        """Yield the places of the rows of a batch; rows of similar length share one, so that little is padding."""
        lengths = [self._length(row) for row in rows] if self._length else [0] * len(rows)
        order = list(range(len(rows)))
        if len(rows) > self._batch_size:
            order.sort(key=lengths.__getitem__)
        batch: list[int] = []
        total = 0
        for place in order:
            total += lengths[place]
            if batch and (len(batch) == self._batch_size or total > LARGEST_BATCH):
                yield batch
                batch, total = [], lengths[place]
            batch.append(place)
        yield batch


class Batcher:
    """Requests that wait for a model, which threads run.

    Args:
        answer: See `Batches`.
        batch_size: See `Batches`.
        max_waiting: Largest number of rows that wait.
        threads: Number of batches that are answered at once.
        length: See `Batches`.

    Attributes:
        num_waiting: Number of rows that wait or are being answered.
    """

    def __init__(
        self, answer: Answer, batch_size: int, max_waiting: int, threads: int = 1, length: Length | None = None
    ) -> None:
        self._batches, self._max_waiting = Batches(answer, batch_size, length), max_waiting
        self._requests: deque[_Request] = deque()
        self._changed = Condition()
        self._is_closed = False
        self.num_waiting = 0
        self._threads = [Thread(target=self._run, name=f"answers {n}", daemon=True) for n in range(threads)]
        for thread in self._threads:
            thread.start()

    @property
    def num_batches(self) -> int:
        """The number of batches so far."""
        return self._batches.count

    def submit(self, rows: Rows, top: int) -> Future[list[Row]]:
        """Return the future answers of a request. If it is cancelled, no further batch of them is computed.

        Raises:
            QueueFullError: Too many rows are waiting. A request alone is never refused.
        """
        future = _Answers()
        with self._changed:
            if self.num_waiting and self.num_waiting + len(rows) > self._max_waiting:
                raise QueueFullError
            self.num_waiting += len(rows)
            self._requests.append(_Request(rows, top, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answer what is waiting and end the threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while requests := self._take():
            live = [request for request in requests if _start(request.future)]
            if live:
                self._batches.answer(live)
            with self._changed:
                self.num_waiting -= sum(len(request.rows) for request in requests)

    def _take(self) -> list[_Request]:
        """Wait for a request; return it with those behind it that fit into its batch; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or self._is_closed)
            return self._batches.take(self._requests)


class LoopBatcher:
    """Requests that the event loop answers itself, all that have arrived since it last looked for new ones together.

    Between two batches the loop does what else there is to do.

    Args:
        answer: See `Batches`.
        batch_size: See `Batches`.
    """

    def __init__(self, answer: Answer, batch_size: int) -> None:
        self._batches = Batches(answer, batch_size)
        self._requests: deque[_Request] = deque()

    @property
    def num_batches(self) -> int:
        """The number of batches so far."""
        return self._batches.count

    def submit(self, rows: Rows, top: int) -> asyncio.Future[list[Row]]:
        """Return the future answers of a request."""
        loop = asyncio.get_running_loop()
        if not self._requests:
            loop.call_soon(self._answer_batch, loop)
        future: asyncio.Future[list[Row]] = loop.create_future()
        self._requests.append(_Request(rows, top, future))
        return future

    def _answer_batch(self, loop: asyncio.AbstractEventLoop) -> None:
        requests = self._batches.take(self._requests)
        if self._requests:
            loop.call_soon(self._answer_batch, loop)
        self._batches.answer(requests)


def _start(future: _Answers | asyncio.Future[list[Row]]) -> bool:
    """Return whether the client still waits; then the future can no longer be cancelled."""
    return not isinstance(future, _Answers) or future.set_running_or_notify_cancel()
