"""The server's HTTP interface, an ASGI application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from trainer.serve.batcher import Batcher, LoopBatcher
from trainer.serve.body import cut, format_answer
from trainer.serve.metrics import RequestMetrics
from trainer.serve.model import ServedModel
from trainer.serve.openapi import openapi
from trainer.serve.prediction import HEADERS, Limits, Prediction, describe_fault
from trainer.serve.reference import render

_PREDICT = "/predict"
_PAGE = {
    "/": ("form.html", "text/html"),
    "/form.js": ("form.js", "text/javascript"),
    "/form.css": ("form.css", "text/css"),
}


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
        self._model, self._batcher, self._quick = model, batcher, quick
        self._description = model.describe() | {"max_rows": limits.max_rows}
        self._openapi = openapi(self._description, version, limits.max_rows)
        self._metrics = RequestMetrics()
        self._prediction = Prediction(model, batcher, limits, self._metrics, quick, quick_rows)
        self.is_stopping = False

    def app(self) -> ASGIApp:
        """Return the application."""
        others = self._routes()

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            # Routes and the handlers of errors would take as long as the rest of a small request.
            if scope["type"] != "http" or (scope["method"], scope["path"]) != ("POST", _PREDICT):
                await others(scope, receive, send)
                return
            await self._prediction(scope, receive, send)

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
        routes = [Route(_PREDICT, self._prediction, methods=["POST"])]
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
        return _refusal(500, describe_fault(error))

    async def _page(self, request: Request) -> Response:
        name, kind = _PAGE[request.url.path]
        return Response((Path(__file__).parent / name).read_bytes(), media_type=kind, headers=HEADERS)

    async def _describe(self, request: Request) -> Response:
        return _json(self._openapi if request.url.path == "/openapi.json" else self._description)

    async def _show_interface(self, request: Request) -> Response:
        page = render(self._openapi, str(request.base_url))
        return Response(page, media_type="text/html", headers=HEADERS)

    async def _health(self, _: Request) -> Response:
        state = "stopping" if self.is_stopping else "ok"
        return _json({"status": state, "model": self._model.file}, 503 if self.is_stopping else 200)

    async def _show_metrics(self, _: Request) -> Response:
        num_batches = self._batcher.num_batches + (self._quick.num_batches if self._quick else 0)
        text = self._metrics.render(self._batcher.num_waiting, num_batches)
        return Response(text, media_type="text/plain; version=0.0.4", headers=HEADERS)


def _refusal(status: int, problem: str, **headers: str) -> Response:
    return _json({"error": problem}, status, **headers)


def _json(value: dict[str, Any], status: int = 200, **headers: str) -> Response:
    return Response(format_answer(value), status, {**HEADERS, **headers}, "application/json")
