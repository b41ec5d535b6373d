"""A connection of the server, with limits that uvicorn does not have."""

from __future__ import annotations

from asyncio import TimerHandle, Transport
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from trainer.shapes import to_json

MAX_HEAD_BYTES = 32_768
"""Size of the request line and the headers from which a request is refused if they are not complete."""

_Protocol: Any = AutoHTTPProtocol  # the one of httptools if that is installed, else the one of h11


class Connection(_Protocol):  # type: ignore[misc]
    """uvicorn's connection that refuses headers that do not end, and closes if a request does not arrive in time.

    It also answers a client that has closed its own side after its requests.

    Its own refusals are JSON, as those of the application are.

    Args:
        timeout: Seconds within which the headers of a request arrive, and the rest of a body that was refused.
        options: The arguments of uvicorn.
    """

    def __init__(self, timeout: float, **options: Any) -> None:
        super().__init__(**options)
        self._timeout = timeout
        self._head_bytes = 0
        self._has_ended = False
        self._deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, error: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(error)

    def data_received(self, data: bytes) -> None:
        is_rest = self._is_in_refused_body
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
            return
        self._wait()
        if not is_rest:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"the headers are larger than {MAX_HEAD_BYTES} bytes. Send fewer.")

    def eof_received(self) -> bool:
        """Keep the connection for answers if a client that sends nothing more has sent complete requests."""
        self._has_ended = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        return self._has_ended

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._has_ended and self._is_answered:
            self.transport.close()

    def on_message_complete(self) -> None:
        if self._is_answered:
            self.cycle.more_body = False  # which uvicorn leaves out with httptools
        super().on_message_complete()

    def send_400_response(self, problem: str) -> None:
        """Refuse a request that uvicorn cannot parse."""
        self._refuse(400, "the request is not HTTP/1.1. Send it with a program for HTTP, such as curl.")

    @property
    def _is_answered(self) -> bool:
        return self.cycle is not None and bool(self.cycle.response_complete)

    @property
    def _is_in_refused_body(self) -> bool:
        """Return whether the client is still sending a body that was refused before its end."""
        if self._is_answered and hasattr(self, "conn"):  # of h11
            return repr(self.conn.their_state) == "SEND_BODY"
        return self._is_answered and bool(self.cycle.more_body)

    def _wait(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self._timeout, self._expire)

    def _stop_waiting(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        if self._head_bytes:
            self._refuse(
                408, f"the headers did not arrive within {self._timeout:g} seconds (timeout). Send them at once."
            )
        else:
            self.transport.close()

    def _refuse(self, status: int, problem: str) -> None:
        """Answer and close. The application does not see the request."""
        if self.transport.is_closing():
            return
        body = to_json({"error": problem}).encode()
        lines = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        )
        self.transport.write("\r\n".join([*lines, "", ""]).encode() + body)
        self.transport.close()
