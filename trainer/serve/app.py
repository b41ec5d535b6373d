"""The server's HTTP interface, an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.errors import TrainerError
from trainer.export.bundle.predict import Row
from trainer.serve.batcher import Batcher, LoopBatcher, QueueFullError
from trainer.serve.body import RequestError, cut, decode_strictly, format_answer, parse_body
from trainer.serve.columns import Columns, to_columns
from trainer.serve.metrics import RequestMetrics
from trainer.serve.model import ServedModel
from trainer.serve.openapi import openapi
from trainer.serve.reference import render

_LARGE_BODY = 100_000 if decode_strictly is None else 300_000
"""Bytes of a body that takes long to parse, so another thread does it while the server answers other requests."""
_PREDICT = "/predict"
_PAGE = {
    "/": ("form.html", "text/html"),
    "/form.js": ("form.js", "text/javascript"),
    "/form.css": ("form.css", "text/css"),
}
_HEADERS = {
    # The page needs nothing from elsewhere, and what a model or a client says cannot become a script.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


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
        rows: The rows, None for a broken one.
        errors: The reason of each broken row.
        top: Number of answers to show of a row.
        in_columns: The answers are sent in columns, as the rows were.
    """

    rows: list[Row | None] | Columns
    errors: list[str]
    top: int
    in_columns: bool


class Service:
    """The routes of a model.

    Args:
        model: The model.
        batcher: Answers requests in threads.
        limits: Limits of a request.
        version: Version of this package.
        quick: Answers requests in the event loop, if they ask for one answer of each row (`top`).
        quick_rows: Largest number of rows of such a request.

    Attributes:
        is_stopping: The server ends after the requests that it has accepted.
    """

    def __init__(
        self,
        model: ServedModel,
        batcher: Batcher,
        limits: Limits,
        version: str,
        *,
        quick: LoopBatcher | None = None,
        quick_rows: int = 0,
    ) -> None:
        self._quick, self._quick_rows = quick, quick_rows
        self._model, self._batcher, self._limits = model, batcher, limits
        self._description = model.describe() | {"max_rows": limits.max_rows}
        self._openapi = openapi(self._description, version, limits.max_rows)
        self._metrics = RequestMetrics()
        self.is_stopping = False

    def app(self) -> ASGIApp:
        """Return the application."""
        others = self._routes()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            # Routes and the handlers of errors would take as long as the rest of a small request.
            if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", _PREDICT):
                await others(scope, receive, send)
                return
            request = Request(scope, receive)
            try:
                response = await self._predict(request)
            except Exception as error:
                await (await self._report(request, error))(scope, receive, send)
                raise
            await response(scope, receive, send)

        return answer

    def _routes(self) -> Starlette:
        pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
            **dict.fromkeys(_PAGE, self._page),
            "/model": self._describe,
            "/openapi.json": self._describe,
            "/docs": self._show_interface,
            "/health": self._health,
            "/metrics": self._show_metrics,
        }
        routes = [Route(_PREDICT, self._predict, methods=["POST"])]
        routes += [Route(path, function, methods=["GET"]) for path, function in pages.items()]
        known = ", ".join(route.path for route in routes)

        async def refuse(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            headers = error.headers or {}
            if error.status_code == 405:
                problem = f"{request.url.path}: does not answer {request.method}. Use {headers['Allow']}."
            else:
                problem = f"no such path, got {cut(request.scope['path'])}. Known: {known}."
            return _refusal(error.status_code, problem, **headers)

        app = Starlette(routes=routes, exception_handlers={404: refuse, 405: refuse, Exception: self._report})
        app.router.redirect_slashes = False  # a redirect would name the host that the client has named
        return app

    async def _report(self, _: Request, error: Exception) -> Response:
        """Answer a request that has met a bug; uvicorn logs its traceback."""
        return _refusal(500, f"the server has a fault ({type(error).__name__}), which its log describes.")

    async def _page(self, request: Request) -> Response:
        name, kind = _PAGE[request.url.path]
        return Response((Path(__file__).parent / name).read_bytes(), media_type=kind, headers=_HEADERS)

    async def _describe(self, request: Request) -> Response:
        return _json(self._openapi if request.url.path == "/openapi.json" else self._description)

    async def _show_interface(self, request: Request) -> Response:
        page = render(self._openapi, str(request.base_url))
        return Response(page, media_type="text/html", headers=_HEADERS)

    async def _health(self, _: Request) -> Response:
        state = "stopping" if self.is_stopping else "ok"
        return _json({"status": state, "model": self._model.file}, 503 if self.is_stopping else 200)

    async def _show_metrics(self, _: Request) -> Response:
        num_batches = self._batcher.num_batches + (self._quick.num_batches if self._quick else 0)
        text = self._metrics.render(self._batcher.num_waiting, num_batches)
        return Response(text, media_type="text/plain; version=0.0.4", headers=_HEADERS)

    async def _predict(self, request: Request) -> Response:
        started = monotonic()
        try:
            answers, in_columns = await self._answer(request)
        except RequestError as error:
            self._metrics.count(error.status, monotonic() - started)
            return _refusal(error.status, str(error), **error.headers)
        except Exception:
            self._metrics.count(500, monotonic() - started)
            raise
        broken = sum("error" in answer for answer in answers)
        status = 422 if broken == len(answers) else 200
        self._metrics.count(status, monotonic() - started, len(answers), broken)
        shown = to_columns(answers) if in_columns else answers
        if status == 200:
            return _json({"answers": shown})
        return _json({"error": f"rows[0]: {answers[0]['error']}", "answers": shown}, status)

    async def _answer(self, request: Request) -> tuple[list[Row], bool]:
        """Return the answer of each row, and whether they are sent in columns."""
        body = await self._read_body(request)
        rows, errors, top, in_columns = (
            self._read_rows(body) if len(body) < _LARGE_BODY else await asyncio.to_thread(self._read_rows, body)
        )
        if isinstance(rows, Columns):
            return await self._wait_for(rows, top), True
        usable = [row for row in rows if row is not None]
        answers = iter(await self._wait_for(usable, top) if usable else [])
        reasons = iter(errors)
        return [{"error": next(reasons)} if row is None else next(answers) for row in rows], in_columns

    def _read_rows(self, body: bytes) -> _Question:
        items, top = parse_body(body, self._limits.max_rows)
        in_columns = isinstance(items, Columns)
        if isinstance(items, Columns):
            if self._model.rows == "tables":
                return _Question(items, [], top, True)
            items = items.rows()
        rows: list[Row | None] = []
        errors: list[str] = []
        for item in items:
            try:
                rows.append(self._parse(item))
            except Exception as error:  # a broken row can raise anything
                rows.append(None)
                errors.append(cut(self._model.reason_of(error)))
        return _Question(rows, errors, top, in_columns)

    def _parse(self, item: object) -> Row:
        row, largest = self._model.parse(item), self._limits.max_characters
        if self._model.length is not None and (characters := self._model.length(row)) > largest:
            raise ValueError(f"has {characters} characters, more than {largest} (max_characters). Send a part of it")
        return row

    async def _wait_for(self, rows: list[Row] | Columns, top: int) -> list[Row]:
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

    async def _read_body(self, request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # which a page of another origin cannot send
            problem = "the body must be JSON, declared by the header Content-Type: application/json"
            raise RequestError(415, f"{problem}, got {cut(kind) or 'no such header'}.")
        largest = self._limits.max_bytes
        too_large = f"the body is larger than {largest} bytes (max_bytes). Send fewer rows at once."
        if int(request.headers.get("content-length", "0")) > largest:
            raise RequestError(413, too_large)
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.timeout):
                async for piece in request.stream():
                    body += piece
                    if len(body) > largest:
                        raise RequestError(413, too_large)
        except TimeoutError:
            problem = (
                f"the body did not arrive within {self._limits.timeout:g} seconds (timeout). Send fewer rows at once."
            )
            raise RequestError(408, problem) from None
        except ClientDisconnect:
            raise RequestError(400, "the body has no end, because the client has gone.") from None
        return bytes(body)


def _refusal(status: int, problem: str, **headers: str) -> Response:
    return _json({"error": problem}, status, **headers)


def _json(value: dict[str, Any], status: int = 200, **headers: str) -> Response:
    return Response(format_answer(value), status, {**_HEADERS, **headers}, "application/json")
