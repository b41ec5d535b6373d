"""Runs the application: its socket, its signals, its end."""

from __future__ import annotations

import errno
import gc
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from trainer.errors import ConfigError, format_error
from trainer.serve.connection import Connection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.types import ASGIApp

_WAITING_CONNECTIONS = 2048
_SWITCH_SECONDS = 0.0005
"""Time for which a thread waits until another one lets it run. Python's 5 ms are longer than many answers take."""
_GC_OBJECTS = 100_000
"""New objects after which Python looks for cycles. With its own 700, a large request takes three times as long."""
_PORT_ERRORS = (errno.EADDRINUSE, errno.EACCES)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        ConfigError: The address cannot be used, such as a port that another program has.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_WAITING_CONNECTIONS)
    except socket.gaierror as error:
        raise ConfigError(
            format_error("host", f"is no address of this machine ({error.strerror})", value=host)
        ) from error
    except OSError as error:
        key, value = ("port", port) if error.errno in _PORT_ERRORS else ("host", host)
        problem = f"cannot be used ({error.strerror})"
        raise ConfigError(format_error(key, problem, "Set port=0 for a free one", value=value)) from error
    return listening


class Server(uvicorn.Server):
    """A server that SIGINT and SIGTERM end once the requests that it has accepted are answered."""

    def __init__(self, app: ASGIApp, timeout: float, on_stop: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_graceful_shutdown=int(timeout) + 1,
            h11_max_incomplete_event_size=2**20,  # more than a connection lets pass
            http=partial(Connection, timeout),  # type: ignore[arg-type]  # uvicorn only calls it
        )
        super().__init__(config)
        self._on_stop = on_stop

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the block, which is the time that the server runs, and set Python up for requests.

        Threads take turns quickly, and the collector of cycles leaves out what is there before the first request.
        uvicorn's own handling would end the process by the signal afterwards.
        """

        def stop(number: int, frame: FrameType | None) -> None:
            self._on_stop()
            self.handle_exit(number, frame)

        interval, thresholds = sys.getswitchinterval(), gc.get_threshold()
        sys.setswitchinterval(_SWITCH_SECONDS)
        gc.freeze()
        gc.set_threshold(_GC_OBJECTS, *thresholds[1:])
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            sys.setswitchinterval(interval)
            gc.set_threshold(*thresholds)
            gc.unfreeze()
            for number, handler in before.items():
                signal.signal(number, handler)
