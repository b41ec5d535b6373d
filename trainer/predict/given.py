"""What is asked and where answers go: files, folders and texts, told apart before anything heavy is loaded."""

from __future__ import annotations

import re
from difflib import get_close_matches
from pathlib import Path
from typing import NamedTuple

from trainer.data.cells import IMAGE_SUFFIXES
from trainer.data.readers import format_suffix
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.predict.writing import check_output

LINES = (".txt", ".txt.gz")
"""Files whose lines are rows."""

_FILE_NAME = re.compile(r"(?![{\[])\S*(/\S*|\.[A-Za-z][A-Za-z0-9]{0,9})")
"""What is taken for a file also where there is none: no JSON, no white space, but a `/` or an ending."""


class Given(NamedTuple):
    """What is read and written.

    Attributes:
        input: A file or a folder, a text, or None for standard input.
        corpus: The file of the texts that neighbours are looked for among.
        output: The file of the answers; None for standard output.
    """

    input: Path | str | None
    corpus: Path | None
    output: Path | None


def read_given(input: str | None, corpus: str | None, output: str | None) -> Given:
    """The files and texts that the keys of a prediction name.

    Raises:
        ConfigError: All that is wrong with them, as far as it can be known before they are read.
    """
    faults: list[str] = []
    found: dict[str, Path | str | None] = {}
    for key, value in (("input", input), ("corpus", corpus)):
        try:
            found[key] = _located(key, value)
        except ConfigError as error:
            faults += error.messages
    given, texts = found.get("input"), found.get("corpus")
    if isinstance(texts, str):
        faults.append(format_error("corpus", "must be a file", value=corpus))
    target = None if output in (None, "-") else Path(str(output)).expanduser()
    if target is not None:
        try:
            check_output(target)
        except ConfigError as error:
            faults += error.messages
        for key, path in found.items():
            if isinstance(path, Path) and target.exists() and target.resolve() == path.resolve():
                faults.append(format_error("output", f"is the {key}", "Name another file", value=output))
    raise_if_any(*faults)
    assert not isinstance(texts, str)
    return Given(given, texts, target)


def is_readable(path: Path) -> bool:
    """Whether the name of a file or folder says how it is read."""
    return path.is_dir() or has_lines(path) or path.suffix.lower() in IMAGE_SUFFIXES or format_suffix(path) is not None


def has_lines(path: Path) -> bool:
    """Whether the lines of a file are its rows."""
    return path.name.lower().endswith(LINES)


def known_kinds() -> str:
    """The files that can be read, for a message."""
    return "Known: .csv, .tsv, .json, .jsonl, .txt (these also as .gz), .parquet, .arrow, .feather, and images"


def _located(key: str, given: str | None) -> Path | str | None:
    """A file or folder that is there, else the text itself; None for standard input."""
    if given in (None, "-"):
        return None
    if not given:  # no path: that would be the working directory
        return given
    path = Path(given).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return given
    if there and not is_readable(path):
        raise ConfigError(format_error(key, "is a file of no known kind", known_kinds(), value=given))
    if there:
        return path
    if not _FILE_NAME.fullmatch(given):
        return given
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = get_close_matches(path.name, beside, n=1, cutoff=0.7)
    remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
    if key == "input":
        remedy += ". A text that looks like a file's name comes by standard input: input=-"
    raise ConfigError(format_error(key, "no such file", remedy, value=given))
