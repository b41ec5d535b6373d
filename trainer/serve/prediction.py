"""Answers `POST /predict`: reads the body, asks the model, writes the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from time import monotonic
from typing import NamedTuple

from starlette.types import Receive, Scope, Send

from trainer.errors import TrainerError
from trainer.export.bundle.predict import Row
from trainer.serve.batcher import Batcher, LoopBatcher, QueueFullError, Rows
from trainer.serve.body import RequestError, cut, decode_strictly, format_answer, parse_body
from trainer.serve.columns import Columns, to_columns
from trainer.serve.metrics import RequestMetrics
from trainer.serve.model import ServedModel

LARGE_BODY = 100_000 if decode_strictly is None else 300_000
"""Bytes of a body that takes long to parse, so another thread does it while the server answers other requests."""

HEADERS = {
    # The page needs nothing from elsewhere, and what a model or a client says cannot become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


@dataclass(frozen=True)
class Limits:
    """Limits of a request.

    Attributes:
        max_rows: Largest number of rows.
        max_bytes: Largest size of the body.
        timeout: Seconds after which a client gets no answer.
        max_characters: Largest number of characters of a row that is divided into tokens.
    """

    max_rows: int
    max_bytes: int
    timeout: float
    max_characters: int = 100_000


class _Question(NamedTuple):
    """The rows of a request.

    Attributes:
        rows: The rows, without the broken ones.
        errors: The reason of each broken row, by its place.
        top: Number of answers to show of a row.
        in_columns: The answers are sent in columns, as the rows were.
    """

    rows: Rows
    errors: dict[int, str]
    top: int
    in_columns: bool


class Prediction:
    """The application that answers rows.

    It is called without a framework: routes, requests and responses of one take as long as the rest of a small request.

    Args:
        model: The model.
        batcher: Answers requests in threads.
        limits: Limits of a request.
        metrics: Counts the requests.
        quick: Answers requests in the event loop, if they ask for one answer of each row (`top`).
        quick_rows: Largest number of rows of such a request.
    """

    def __init__(
        self,
        model: ServedModel,
        batcher: Batcher,
        limits: Limits,
        metrics: RequestMetrics,
        quick: LoopBatcher | None,
        quick_rows: int,
    ) -> None:
        self._model, self._batcher, self._limits, self._metrics = model, batcher, limits, metrics
        self._quick, self._quick_rows = quick, quick_rows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started = monotonic()
        try:
            answers, in_columns = await self._answer(await self._read_body(scope, receive))
            broken = sum("error" in answer for answer in answers)
            status = 422 if broken == len(answers) else 200
            document = {"error": f"rows[0]: {answers[0]['error']}"} if status == 422 else {}
            content = format_answer({**document, "answers": to_columns(answers) if in_columns else answers})
        except RequestError as error:
            self._metrics.count(error.status, monotonic() - started)
            await _send(send, error.status, format_answer({"error": str(error)}), error.headers.items())
            return
        except Exception as error:
            self._metrics.count(500, monotonic() - started)
            await _send(send, 500, format_answer({"error": describe_fault(error)}))
            raise
        self._metrics.count(status, monotonic() - started, len(answers), broken)
        await _send(send, status, content)

    async def _answer(self, body: bytes) -> tuple[list[Row], bool]:
        """Return the answer of each row, and whether they are sent in columns."""
        rows, errors, top, in_columns = (
            self._read_rows(body) if len(body) < LARGE_BODY else await asyncio.to_thread(self._read_rows, body)
        )
        answers = await self._wait_for(rows, top) if len(rows) else []
        if errors:
            usable = iter(answers)
            count = len(rows) + len(errors)
            answers = [{"error": errors[place]} if place in errors else next(usable) for place in range(count)]
        return answers, in_columns

    def _read_rows(self, body: bytes) -> _Question:
        items, top = parse_body(body, self._limits.max_rows)
        in_columns = isinstance(items, Columns)
        if self._model.rows == "tables" and (isinstance(items, Columns) or set(map(type, items)) == {dict}):
            return _Question(items, {}, top, in_columns)
        rows: list[Row] = []
        errors: dict[int, str] = {}
        for place, item in enumerate(items.rows() if isinstance(items, Columns) else items):
            try:
                rows.append(self._parse(item))
            except Exception as error:  # a broken row can raise anything
                errors[place] = cut(self._model.reason_of(error))
        return _Question(rows, errors, top, in_columns)

    def _parse(self, item: object) -> Row:
        row, largest = self._model.parse(item), self._limits.max_characters
        if self._model.length is not None and (characters := self._model.length(row)) > largest:
            raise ValueError(f"has {characters} characters, more than {largest} (max_characters). Send a part of it")
        return row

    async def _wait_for(self, rows: Rows, top: int) -> list[Row]:
        try:
            # More answers of a row take longer: with 1,000 classes, all of them 60 times as long as the first.
            if self._quick is not None and top == 1 and len(rows) <= self._quick_rows:
                return await self._quick.submit(rows, top)
            future = asyncio.wrap_future(self._batcher.submit(rows, top))
            return await asyncio.wait_for(future, self._limits.timeout)
        except QueueFullError:
            problem = "too many rows are waiting (max_waiting). Send the request again in a second."
            raise RequestError(503, problem, **{"Retry-After": "1"}) from None
        except TimeoutError:
            raise RequestError(
                504, f"no answer within {self._limits.timeout:g} seconds (timeout). Send fewer rows at once."
            ) from None
        except TrainerError as error:
            raise RequestError(500, str(error)) from error

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        headers = dict(reversed(scope["headers"]))  # of a repeated header, the first one counts
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a page of another origin cannot send
            problem = "the body must be JSON, declared by the header Content-Type: application/json"
            raise RequestError(415, f"{problem}, got {cut(kind) or 'no such header'}.")
        if (encoding := headers.get(b"content-encoding", b"identity").decode("latin-1").lower()) != "identity":
            raise RequestError(415, f"the body is compressed, got Content-Encoding: {cut(encoding)}. Send it as it is.")
        largest, timeout = self._limits.max_bytes, self._limits.timeout
        too_large = RequestError(413, f"the body is larger than {largest} bytes (max_bytes). Send fewer rows at once.")
        if int(headers.get(b"content-length", b"0")) > largest:
            raise too_large
        body = bytearray()
        more = True
        try:
            async with asyncio.timeout(timeout):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(400, "the body has no end, because the client has gone.")
                    body += message.get("body", b"")
                    if len(body) > largest:
                        raise too_large
                    more = message.get("more_body", False)
        except TimeoutError:
            problem = f"the body did not arrive within {timeout:g} seconds (timeout). Send fewer rows at once."
            raise RequestError(408, problem) from None
        return bytes(body)


def describe_fault(error: Exception) -> str:
    """Return the message to the client about a bug; uvicorn logs its traceback."""
    return f"the server has a fault ({type(error).__name__}), which its log describes."


async def _send(send: Send, status: int, content: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
    """Send JSON."""
    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    raw += [(b"content-length", b"%d" % len(content)), (b"content-type", b"application/json"), *_RAW_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
