"""Roles of columns, and the values that cells have in them; None for a cell without a value.

A role is the use that a task makes of a column: `text`, `label`, `features`, ...
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import partial
from hashlib import blake2b, file_digest
from io import BytesIO
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.files.untrusted import JSON_ERRORS, open_input
from trainer.protocols import ImageCell, Row

if TYPE_CHECKING:
    import numpy as np

ROLE_NOUNS = {
    "text": "a text",
    "text_pair": "a second text",
    "positive": "a positive",
    "negative": "a negative",
    "label": "a label",
    "labels": "labels",
    "value": "a value",
    "score": "a score",
    "words": "words",
    "tags": "tags",
    "spans": "spans",
    "features": "features",
    "image": "an image",
}
"""Every role, with the noun for messages about a row without a value in it."""

CLASS_ROLES = ("label", "labels", "tags", "spans")
"""Roles whose values are classes: a model cannot learn a class that has no training row."""

GROUP = "group"
"""The role of the column `data.split.group`: rows with the same value are in one split and in one fold."""

TIME = "time"
"""The role of the column `data.split.time`: the newest rows are held out."""

STRATUM = "stratify"
"""The role of the column `data.split.stratify`: the rows with each value give the shares of every split."""

SPLIT_ROLES = (GROUP, TIME, STRATUM)
"""Roles that only decide the split of a row; every row needs a value, and the column may have another role too."""

_INPUT_ROLES = ("text", "text_pair", "words", "features", "image")
"""Roles that decide the split of a row, as far as they are requested."""

REMEDIES = {
    **dict.fromkeys(
        ("text", "text_pair", "positive", "negative"),
        'Texts are strings, numbers, or chat messages such as [{"role": "user", "content": "Hi"}]',
    ),
    "label": "Labels are strings or numbers",
    **dict.fromkeys(("value", "score"), "Write a number with a decimal point, such as 1234.5"),
    **dict.fromkeys(
        ("labels", "words", "tags"),
        'Write a JSON list, such as ["a", "b"], or one text with its parts separated by data.list_separator',
    ),
    "spans": 'Write a JSON list, such as [{"start": 0, "end": 4, "label": "person"}] or [[0, 4, "person"]]',
    "features": "Features are numbers, texts or empty; list the columns to use in data.columns.features",
    "image": "Write the path of an image file, relative to the folder of the file that contains the path",
    GROUP: "Give every row the name of its group, or set data.split.group=null",
    STRATUM: "Give every row a class, or set data.split.stratify=null",
    TIME: "Give every row a time, all written alike, as 2024-01-31, 2024-01-31T12:00:00, 2024-01-31T12:00:00Z or a "
    "number, or set data.split.time=null",
}
"""The remedy for a cell that cannot be used, by role."""

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the files that count as images."""


_ZEROS_AND_ONES = frozenset(("0", "1", "0.0", "1.0"))

_MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of the speaker and of the text of a chat message, in the layouts of OpenAI and of ShareGPT."""

_SPAN_KEYS = (("start", "start_idx", "start_offset"), ("end", "end_idx", "end_offset"), ("label", "type"))
"""The keys of a span, as annotation tools and published data write them."""

CellParser = Callable[[Any], Any]
"""A function from a cell to its value in a role; None if the cell has no value."""


def classes_in(value: str | Sequence[str] | Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return the classes in a value of `label`, `labels`, `tags` or `spans`."""
    if isinstance(value, str):
        return (value,)
    return [each if isinstance(each, str) else each["label"] for each in value]


def as_text(value: object) -> str | None:
    """Return a text or a label as a string: 3, 3.0 and True become `3`, `3` and `1`; None and NaN become None.

    Raises:
        ValueError: The value is neither a string nor a number, or the string cannot be encoded.
    """
    if isinstance(value, str):
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError("half of a surrogate pair is not a character") from None
        return value
    if value is None:
        return None
    if isinstance(value, float) and not value.is_integer():
        return None if isnan(value) else str(value)
    if isinstance(value, int | float):
        return str(int(value))
    raise ValueError(f"expected a string, got {type(value).__name__}")


def parse_number(value: object) -> float | None:
    """Return a finite number from a number or its text; None for an empty cell (None, NaN, white space).

    Raises:
        ValueError: The value is anything else.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            number = float(value.replace("_", "?"))  # only Python reads 1_000 as a number
        except ValueError:
            raise ValueError(f"expected a number, got {short_repr(value)}") from None
    elif isinstance(value, int | float | Decimal):
        try:
            number = float(value)
        except OverflowError:
            raise ValueError(f"expected a finite number, got {short_repr(value)}") from None
    elif value is None:
        return None
    else:
        raise ValueError(f"expected a number, got {type(value).__name__}")
    if isnan(number):
        return None
    if not isfinite(number):
        raise ValueError(f"expected a finite number, got {short_repr(value)}")
    return number


def is_number(value: object) -> bool:
    """Return whether a cell that is not empty is a number or the text of one, including infinity."""
    if not isinstance(value, str):
        return isinstance(value, int | float | Decimal)
    try:
        float(value.replace("_", "?"))
    except ValueError:
        return False
    return True


def parse_boolean(value: object) -> bool | None:
    """Return the truth value of `true` or `false` as CSV files write it, in any case; None for any other cell."""
    return {"true": True, "false": False}.get(value.strip().casefold()) if isinstance(value, str) else None


def short_repr(value: object) -> str:
    """Return the `repr` of a value for a message, at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def as_messages(cell: object) -> Sequence[Mapping[str, object]] | None:
    """Return a cell that is a list of chat messages; None for any other cell, even for a text that is JSON."""
    if not isinstance(cell, Sequence) or isinstance(cell, str | bytes) or not cell:
        return None
    has_keys = (isinstance(each, Mapping) and any({*keys} <= each.keys() for keys in _MESSAGE_KEYS) for each in cell)
    return cell if all(has_keys) else None


def join_messages(messages: Sequence[Mapping[str, object]]) -> str:
    """Return a conversation as one text, with a line `role: content` for each message.

    Raises:
        ValueError: A message has no speaker, or no text.
    """
    lines = []
    for number, message in enumerate(messages, 1):
        role, content = next(
            (message[role], message[text]) for role, text in _MESSAGE_KEYS if {role, text} <= {*message}
        )
        if not isinstance(role, str) or not isinstance(content, str):
            part = "content" if isinstance(role, str) else "role"
            raise ValueError(f"the {part} of message {number} must be a text")
        lines.append(f"{as_text(role)}: {as_text(content)}")
    return "\n".join(lines)


def join_columns(cells: Sequence[object], names: Sequence[str]) -> str | None:
    """Return several cells as one text, with a line `column: cell` for each cell that has a value.

    Chat messages have their own lines `role: content`, without the name of the column.

    Raises:
        ValueError: A cell is no text.
    """
    texts = [(name, _parse_text(cell), as_messages(cell)) for name, cell in zip(names, cells, strict=True)]
    lines = [text if messages else f"{name}: {text}" for name, text, messages in texts if text is not None]
    return "\n".join(lines) or None


def _parse_text(value: object) -> str | None:
    messages = as_messages(value)
    text = as_text(value) if messages is None else join_messages(messages)
    return None if text is None or not text or text.isspace() else text


def _parse_label(value: object) -> str | None:
    return as_text(value) or None


def unescape_tab(separator: str) -> str:
    """Return a separator; a shell passes a tab as the two characters that stand for it."""
    return "\t" if separator == r"\t" else separator


def _split_list(value: object, separator: str) -> list[object]:
    """Return the parts of a list, of the JSON text of one, or of a text split at the separator.

    A space as the separator splits at any white space.
    """
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    text = as_text(value) or ""
    if (parts := _parse_json_list(text)) is not None:
        return parts
    return [part.strip() for part in text.split(None if separator == " " else separator) if part.strip()]


def _parse_json_list(text: str) -> list[object] | None:
    """Return the list that a cell contains as JSON, if all its parts are strings, or all are numbers."""
    if not (text[:1] == "[" and text[-1:] == "]") or "[" in text[1:].partition('"')[0]:
        return None
    try:
        parts: list[object] = json.loads(text)
    except JSON_ERRORS:
        return None
    if all(isinstance(part, str) for part in parts) or all(isinstance(part, int | float) for part in parts):
        return parts
    return None


def _parse_labels(value: object, separator: str) -> list[str]:
    """Return distinct labels; a row may have none.

    Raises:
        ValueError: The list is a vector of 0 and 1 instead of names.
    """
    parts = _split_list(value, separator)
    has_only_zeros_and_ones = {str(part) for part in parts} <= _ZEROS_AND_ONES
    is_repeated = len(parts) > 1 and (isinstance(parts[0], float) or len(set(parts)) < len(parts))
    if has_only_zeros_and_ones and is_repeated:
        raise ValueError(f"expected the names of the labels, got a vector of 0 and 1: {short_repr(value)}")
    labels = [_parse_label(part) for part in parts]
    return list(dict.fromkeys(label for label in labels if label is not None))


def has_repeated_label(value: object, separator: str) -> bool:
    """Return whether a cell of `labels` contains a label twice; False if it cannot be read."""
    try:
        parts = [_parse_label(part) for part in _split_list(value, separator)]
    except ValueError:
        return False
    return len(set(parts)) < len(parts)


def _parse_words(value: object, separator: str) -> list[str] | None:
    words = [_parse_label(part) for part in _split_list(value, separator)]
    if any(word is None or word.isspace() for word in words):
        raise ValueError("one of the words or tags is empty")
    return [word for word in words if word is not None] or None


def _parse_tags(value: object, separator: str) -> list[str] | None:
    tags = _parse_words(value, separator)
    if isinstance(value, str) and any(len(tag.split()) > 1 for tag in tags or ()):
        raise ValueError(f"a tag contains white space, got {short_repr(value)}; check data.list_separator")
    return tags


def parse_spans(value: object) -> list[dict[str, Any]] | None:
    """Return the `start`, `end` and `label` of each span, given a list, the JSON text of one, or a dict of lists.

    A text may have no spans; None is a text without an annotation.

    Raises:
        ValueError: The value is no list of spans.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            value = json.loads(value)
        except JSON_ERRORS:
            raise ValueError(f"expected a JSON list of spans, got {short_repr(value)}") from None
    if value is None:
        return None
    if isinstance(value, Mapping):  # as the datasets library stores a sequence of dicts
        columns = {name: list(cells) for name, cells in value.items() if isinstance(cells, Sequence)}
        value = [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise ValueError(f"expected a list of spans, got {type(value).__name__}")
    return [_parse_span(each) for each in value]


def _parse_span(value: object) -> dict[str, Any]:
    parts = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else None
    if isinstance(value, Mapping):
        parts = [next((value[key] for key in keys if key in value), None) for keys in _SPAN_KEYS]
    if parts is None or len(parts) != len(_SPAN_KEYS):
        raise ValueError(f"expected a start, an end and a label, got {short_repr(value)}")
    *places, label = parts
    if not all(isinstance(place, int) and not isinstance(place, bool) and place >= 0 for place in places):
        raise ValueError(f"the start and the end must be whole numbers of at least 0, got {short_repr(value)}")
    name = _parse_label(label)
    if name is None or name.isspace():
        raise ValueError(f"a span has no label, got {short_repr(value)}")
    return {"start": places[0], "end": places[1], "label": name}


def _parse_values(cells: Sequence[object]) -> list[float] | None:
    """Return one number per column, or the numbers of the list in a single column."""
    if len(cells) == 1 and isinstance(cells[0], Sequence) and not isinstance(cells[0], str | bytes):
        cells = cells[0]
    numbers = [parse_number(cell) for cell in cells]
    return None if not numbers or None in numbers else [number for number in numbers if number is not None]


def _parse_image(value: object) -> ImageCell | None:
    """Return `bytes` of an encoded image or `path` of a file, in the layout of the datasets library."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None} if value else None
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return {"bytes": value.get("bytes") or None, "path": value.get("path")}
    if isinstance(value, Mapping):
        return None
    path = _parse_text(value)
    return None if path is None else {"bytes": None, "path": path}


def _parse_name(value: object, noun: str) -> str:
    text = as_text(value)
    if text is None or not text.strip():
        raise ValueError(f"the row has no {noun}")
    return text


class TimeParser:
    """Reads the cells of a column of times, which must all be of one kind.

    Attributes:
        kind: `numbers`, `dates without a zone` or `dates with a zone`, as the first cell that was read; None before.
    """

    def __init__(self) -> None:
        self.kind: str | None = None

    def __call__(self, value: object) -> float | datetime:
        """Return a number as it is, and a date in UTC if it has a zone; a date without a time is its midnight.

        Raises:
            ValueError: The cell is empty, or neither a number nor a date in ISO 8601, or not of the kind of the first.
        """
        time = _parse_time(value)
        kind = "numbers"
        if isinstance(time, datetime):
            kind = "dates without a zone" if time.tzinfo is None else "dates with a zone"
        self.kind = self.kind or kind
        if kind != self.kind:
            raise ValueError(f"the times before are {self.kind}, got {short_repr(value)}")
        return time


def _parse_time(value: object) -> float | datetime:
    if is_number(value) and not isinstance(value, bool):
        if (number := parse_number(value)) is not None:
            return number
    elif isinstance(value, str | date) and str(value).strip():
        try:
            # A date is not yet a datetime.
            time = datetime.fromisoformat(str(value).strip())
            return time if time.tzinfo is None else time.astimezone(UTC)
        except (ValueError, OverflowError):
            raise ValueError(f"expected a date in ISO 8601 or a number, got {short_repr(value)}") from None
    elif value is not None and not isinstance(value, str):
        raise ValueError(f"expected a date or a number, got {type(value).__name__}")
    raise ValueError("the row has no time")


def cell_parser(role: str, separator: str) -> CellParser:
    """Return the function from a cell to its value in a role; for `value`, from a list of cells.

    Args:
        role: One of `ROLE_NOUNS`, except `features`, or of `SPLIT_ROLES`.
        separator: The separator between the parts of a list in one cell.
    """
    parsers: dict[str, CellParser] = {
        "label": _parse_label,
        "labels": partial(_parse_labels, separator=separator),
        "words": partial(_parse_words, separator=separator),
        "tags": partial(_parse_tags, separator=separator),
        "spans": parse_spans,
        "value": _parse_values,
        "score": parse_number,
        "image": _parse_image,
        GROUP: partial(_parse_name, noun="group"),
        STRATUM: partial(_parse_name, noun="class to stratify by"),
        TIME: TimeParser(),
    }
    return parsers.get(role, _parse_text)


def split_key(values: Row) -> str:
    """Return the text that decides the split of a row: its inputs only; a text or words as they are.

    Raises:
        OSError: An image file cannot be read.
    """
    inputs = [role for role in _INPUT_ROLES if role in values]
    if inputs == ["text"]:
        return str(values["text"])
    parts = []
    for role in inputs:
        value = values[role]
        if role == "words":
            value = " ".join(value)
        elif role == "features":
            value = repr(sorted((name, _canonical(cell)) for name, cell in value.items()))
        elif role == "image":
            value = image_digest(value)
        parts.append(value)
    return "\0".join(" ".join(part.split()) for part in parts) if len(parts) > 1 else "".join(parts)


def _canonical(cell: Any) -> str:
    """Return the same text for 1, 1.0 and "1": no row changes its split if a numeric column becomes one of texts."""
    return "" if cell is None else repr(float(cell)) if is_number(cell) else as_text(cell) or ""


def describe_incomplete_rows(roles: Iterable[str]) -> str:
    """Return `rows without a text or a label`; features and labels may be empty.

    A row without a value in one of `SPLIT_ROLES` is an error.
    """
    nouns = [ROLE_NOUNS[role] for role in roles if role not in ("features", "labels", *SPLIT_ROLES)]
    return "rows without " + ", ".join([*nouns[:-2], " or ".join(nouns[-2:])])


def image_digest(image: ImageCell) -> str:
    """Return a digest of the bytes of an encoded image, in memory or in its file.

    Raises:
        OSError: The file cannot be read.
    """
    if image["bytes"] is not None:
        return blake2b(image["bytes"], digest_size=16).hexdigest()
    assert image["path"] is not None
    return file_bytes_digest(Path(image["path"]))


def file_bytes_digest(path: Path) -> str:
    """Return a digest of the bytes of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with open_input(path) as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def encode_png(pixels: np.ndarray) -> ImageCell:
    """Return pixels uint8 (H, W) as an encoded gray image, lossless."""
    from PIL import Image

    encoded = BytesIO()
    Image.fromarray(pixels).save(encoded, format="PNG", compress_level=1)
    return {"bytes": encoded.getvalue(), "path": None}
