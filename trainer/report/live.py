"""Lines at the bottom of a terminal, or in a notebook, that are drawn again in place."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, TextIO, cast

from rich.console import Console, ConsoleRenderable, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType
from rich.text import Text

from trainer import signals

_INTERVAL = 0.5  # seconds between two drawings; each takes about a millisecond
_WIDEST = 76
"""Columns of the live lines at most: a terminal of at least 80 columns can then be resized without breaking them."""


class LiveLines(RenderHook):
    """Lines at the bottom of a terminal that are drawn again in place; everything else is printed above them.

    The cursor stays visible, so a process that is killed leaves the terminal as it should be.

    Args:
        console: The terminal.
        content: Returns the lines, given their greatest width.
    """

    def __init__(self, console: Console, content: Callable[[int], list[Text]]) -> None:
        self._console = console
        self._content = content
        self._drawn: list[int] = []  # the widths of the lines on the screen
        self._is_open = False
        self._last = 0.0
        self._num_direct_writes = 0
        self._streams: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)

    def draw(self, *, now: bool) -> None:
        """Draw the lines; without `now`, only if the last drawing is a moment ago."""
        if not now and time.monotonic() - self._last < _INTERVAL:
            return
        if not self._is_open:
            self._open()
        self._console.print(Control())

    def _print(self, *objects: Any, **options: Any) -> None:
        """Print on the console, and print the message of a signal again that came meanwhile.

        Such a message is written past the console, which may then have removed it together with the lines.
        """
        Console.print(self._console, *objects, **options)
        if len(texts := signals.direct_writes()) > self._num_direct_writes:
            Console.print(self._console, Text(texts[-1]), soft_wrap=True)

    def close(self) -> None:
        """Remove the lines; a second call does nothing."""
        if self._is_open:
            self._is_open = False
            self._console.print(Control())
            self._console.pop_render_hook()
            del self._console.print
            sys.stdout, sys.stderr = self._streams

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """Called by the console for everything that is printed: remove the lines first and draw them again below."""
        removed = self._removed()
        if not self._is_open:
            return [removed, *renderables]
        lines = self._content(min(self._console.width - 1, _WIDEST))[-max(1, self._console.height - 1) :]
        self._drawn = [line.cell_len for line in lines]
        self._last = time.monotonic()
        return [removed, *renderables, Text("\n", end="", no_wrap=True, overflow="ignore").join(lines)]

    def _open(self) -> None:
        self._is_open = True
        self._drawn = []
        self._num_direct_writes = len(signals.direct_writes())
        # Standard output may be redirected later, to hide what a library prints.
        self._console.file = self._console.file
        self._console.push_render_hook(self)
        # Whatever prints: rows, logs, and libraries through the streams below.
        self._console.print = self._print  # type: ignore[method-assign]
        self._streams = sys.stdout, sys.stderr
        # An output that goes elsewhere is not printed on the terminal.
        sys.stdout, sys.stderr = (
            cast(TextIO, FileProxy(self._console, stream)) if self._is_terminal(stream) else stream
            for stream in self._streams
        )

    def _is_terminal(self, stream: TextIO) -> bool:
        return stream is self._console.file or stream.isatty()

    def _removed(self) -> Control:
        """Return the codes that remove the lines from the screen and leave the cursor where the first one began."""
        if len(signals.direct_writes()) > self._num_direct_writes:
            # Something was printed past the console, below the lines: they stay, and are drawn again below it.
            self._num_direct_writes, self._drawn = len(signals.direct_writes()), []
        # A terminal that has become narrower has broken the lines.
        rows = sum(max(1, -(-width // self._console.width)) for width in self._drawn)
        self._drawn = []
        up = [(ControlType.CURSOR_UP, 1), (ControlType.ERASE_IN_LINE, 2)]
        return Control(ControlType.CARRIAGE_RETURN, (ControlType.ERASE_IN_LINE, 2), *up * (rows - 1))


class NotebookLines:
    """Lines in an output of their own that is replaced in place: a notebook has no cursor that moves up.

    Everything that is printed later appears below them.

    Args:
        content: Returns the lines, given their greatest width.
    """

    def __init__(self, content: Callable[[int], list[Text]]) -> None:
        self._content = content
        self._output: Any = None
        self._text = ""
        self._last = 0.0

    def draw(self, *, now: bool) -> None:
        """Draw the lines; without `now`, only if the last drawing is a moment ago."""
        if now or time.monotonic() - self._last >= _INTERVAL:
            self._last = time.monotonic()
            self._show("\n".join(line.plain for line in self._content(_WIDEST)))

    def close(self) -> None:
        """Empty the output; a second call does nothing."""
        self._show("")

    def _show(self, text: str) -> None:
        if text == self._text:
            return
        self._text = text
        if self._output is None:
            display = import_module("IPython.display").display
            self._output = display({"text/plain": text}, raw=True, display_id=True)
        else:
            self._output.update({"text/plain": text}, raw=True)


def is_notebook() -> bool:
    """Return whether this process is the kernel of a notebook, whose output claims to be a terminal."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython.get_ipython(), "kernel", None) is not None
