"""The HTML report: one page that needs no other file, script or network."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, Template
from markupsafe import Markup

from trainer.display import displayable
from trainer.report.charts import NUM_COLORS, Line
from trainer.report.console import format_number
from trainer.report.template import STYLE, TEMPLATE
from trainer.shapes import LARGEST_DOCUMENT

_MARKER = b'<meta name="generator" content="trainer">'
_SHORT = 24
"""A text with more characters may be broken anywhere, so that it pushes nothing off the page."""

_WHOLE = 12
"""A text with at most as many characters stays on one line."""

_SEAL, _END = b"\n<!-- checksum ", b" -->\n"
"""The last line of a page contains the CRC32 of all before it. Pages of earlier versions have no such line."""


@dataclass(frozen=True)
class Figure:
    """A chart.

    Attributes:
        title: What it shows.
        svg: The chart, from `trainer.report.charts`; "" leaves the figure out.
        lines: The lines that its legend names.
        note: How to read it.
        can_scroll: Scroll it sideways on a narrow screen, instead of making it smaller.
        is_tall: Put two other figures next to it.
    """

    title: str
    svg: str
    lines: Sequence[Line] = ()
    note: str = ""
    can_scroll: bool = False
    is_tall: bool = False


@dataclass(frozen=True)
class Table:
    """A table; without rows it is left out.

    Attributes:
        title: What it contains.
        columns, rows: Numbers are formatted and stand on the right, None is empty.
        is_folded: Show only the title until a reader opens it.
        is_stacked: On a narrow screen, show the cells of a row below each other, each with the name of its column.
    """

    title: str
    columns: Sequence[object]
    rows: Sequence[Sequence[object]]
    is_folded: bool = False
    is_stacked: bool = False

    def without_empty_columns(self) -> Table:
        """Return the table without the columns that have no value in any row."""
        kept = [index for index in range(len(self.columns)) if any(row[index] not in (None, "") for row in self.rows)]
        rows = [[row[index] for index in kept] for row in self.rows]
        return replace(self, columns=[self.columns[index] for index in kept], rows=rows)


@dataclass(frozen=True)
class Section:
    """A section of a page; an empty one is left out.

    Attributes:
        title: Its heading.
        note: What a reader should know first.
        lines: The lines that a legend for all of its figures names.
        warnings: Lines.
        figures, tables: The content.
        sentences: The most important of it in words; they come first.
    """

    title: str
    note: str = ""
    lines: Sequence[Line] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    sentences: Sequence[str] = ()


@dataclass(frozen=True)
class Tile:
    """A number of the verdict, what it is, and what to compare it with."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """The page.

    Attributes:
        title: The heading and the title of the browser's window.
        subtitle: What was trained.
        verdict: The result in a sentence.
        tiles: The result in numbers.
        sections: The rest.
    """

    title: str
    subtitle: str
    verdict: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]


def is_own_page(path: Path) -> bool:
    """Return whether a file is a page of this tool that nobody has changed.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(1024)
        if _MARKER not in start or path.stat().st_size > LARGEST_DOCUMENT:
            return False
        page = start + file.read()
    return _SEAL not in page or is_sealed(page)


def seal(content: str) -> str:
    """Return a text with a comment at its end that has a checksum of the rest."""
    return (content.encode() + _SEAL + _checksum(content.encode()) + _END).decode()


def is_sealed(text: bytes) -> bool:
    """Return whether a text ends with the checksum of the rest, see `seal`."""
    content, mark, rest = text.rpartition(_SEAL)
    return bool(mark) and rest == _checksum(content) + _END


def _checksum(page: bytes) -> bytes:
    return f"{zlib.crc32(page):08x}".encode()


def render_page(page: Page) -> str:
    """Return the HTML of a page, without empty sections, figures and tables."""
    sections = [shown for section in page.sections if (shown := _shown(section))]
    text = _template().render(page=page, sections=sections, style=Markup(STYLE), num_colors=NUM_COLORS)
    return seal(text)


@cache
def _template() -> Template:
    environment = Environment(autoescape=True, trim_blocks=True, finalize=_finalize)
    environment.filters |= {"format_cell": _format_cell, "attributes": _attributes, "plain": _plain}
    return environment.from_string(TEMPLATE)


def _shown(section: Section) -> dict[str, Any] | None:
    figures = [
        {**vars(figure), "svg": Markup(figure.svg), "legend": _legend(figure.lines)}
        for figure in section.figures
        if figure.svg
    ]
    tables = [{**vars(table), "is_number": _number_columns(table)} for table in section.tables if table.rows]
    if not figures and not tables and not section.warnings and not section.sentences:
        return None
    return {**vars(section), "figures": figures, "tables": tables, "legend": _legend(section.lines)}


def _legend(lines: Sequence[Line]) -> list[dict[str, str]]:
    return [{"name": line.name, "css": line.css} for line in lines] if len(lines) > 1 else []


def _number_columns(table: Table) -> list[bool]:
    return [
        all(isinstance(row[index], int | float | None) for row in table.rows)
        and any(row[index] is not None for row in table.rows)
        for index in range(len(table.columns))
    ]


def _finalize(value: object) -> object:
    return displayable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _attributes(value: object) -> Markup:
    """Return the attributes of a cell: a short text is not broken, a long one anywhere; each has its own direction."""
    if isinstance(value, int | float):
        return Markup(' class="number"')
    text = value if isinstance(value, str) and not isinstance(value, Markup) else ""
    css = "long" if len(text) > _SHORT else "whole" if 0 < len(text) <= _WHOLE else ""
    return Markup(f' class="{css}"' * bool(css) + ' dir="auto"' * (not text.isascii()))


def _plain(value: object) -> str:
    """Return a cell without its markup."""
    return value.striptags() if isinstance(value, Markup) else str(value)


def _format_cell(value: object) -> object:
    if isinstance(value, Markup):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return format_number(value)
    return "" if value is None else str(value)
