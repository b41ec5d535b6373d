"""What the value of one cell is in each role; None where the cell holds nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from math import isfinite, isnan
from typing import Any

from trainer.data.images import digest_of
from trainer.data.rows import as_text

INPUTS = ("text", "text_pair", "words", "features", "image")
"""The roles that the split of a row follows from, as far as they are asked for."""

NOUNS = {
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
    "features": "features",
    "image": "an image",
}
"""Every role, and what a row without it lacks."""

CLASSES = ("label", "labels", "tags")
"""The roles that hold classes: what training has none of cannot be told apart."""

REMEDIES = {
    **dict.fromkeys(("text", "text_pair", "positive", "negative", "label"), "Texts and labels are strings or numbers"),
    **dict.fromkeys(("value", "score"), "Values and scores are finite numbers"),
    **dict.fromkeys(("labels", "words", "tags"), "Write a JSON list, or one text with data.list_separator between"),
    "features": "Features are numbers, texts or nothing; name the columns to take in data.columns.features",
    "image": "Write the path of an image file, relative to the folder of the file that names it",
}
"""What to do about a cell that cannot be used."""


def number(value: Any) -> float | None:
    """A finite number, from a number or from the text of one; None where there is none (None, NaN, white space).

    Raises:
        ValueError: It is something else.
    """
    if isinstance(value, str):
        if not value.strip():
            return None
        try:
            found = float(value.replace("_", "?"))  # Python's own 1_000 is no number elsewhere
        except ValueError:
            raise ValueError(f"expected a number, got {shown(value)}") from None
    elif isinstance(value, int | float | Decimal):
        found = float(value)
    elif value is None:
        return None
    else:
        raise ValueError(f"expected a number, got {type(value).__name__}")
    if isnan(found):
        return None
    if not isfinite(found):
        raise ValueError(f"expected a finite number, got {shown(value)}")
    return found


def is_number(value: Any) -> bool:
    """Whether a cell that is not empty stands for a number, infinite ones included."""
    if not isinstance(value, str):
        return isinstance(value, int | float | Decimal)
    try:
        float(value.replace("_", "?"))
    except ValueError:
        return False
    return True


def shown(value: Any) -> str:
    """A value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _text(value: Any) -> str | None:
    text = as_text(value)
    return None if text is None or not text or text.isspace() else text


def _label(value: Any) -> str | None:
    return as_text(value) or None


def _parts(value: Any, separator: str) -> list[Any]:
    """The parts of a list, or of a text that the separator divides; a space divides at any white space."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return list(value)
    text = as_text(value) or ""
    return [part.strip() for part in text.split(None if separator == " " else separator) if part.strip()]


def _labels(value: Any, separator: str) -> list[str]:
    """Distinct labels; a row may have none."""
    labels = [_label(part) for part in _parts(value, separator)]
    return list(dict.fromkeys(label for label in labels if label is not None))


def _words(value: Any, separator: str) -> list[str] | None:
    words = [_label(part) for part in _parts(value, separator)]
    if any(word is None or word.isspace() for word in words):
        raise ValueError("one of the words or tags is empty")
    return [word for word in words if word is not None] or None


def _tags(value: Any, separator: str) -> list[str] | None:
    tags = _words(value, separator)
    if isinstance(value, str) and any(len(tag.split()) > 1 for tag in tags or ()):
        raise ValueError(f"a tag holds white space, got {shown(value)}; is data.list_separator right?")
    return tags


def _value(values: Sequence[Any]) -> list[float] | None:
    """One number of each column, or the list in the only one."""
    if len(values) == 1 and isinstance(values[0], Sequence) and not isinstance(values[0], str | bytes):
        values = values[0]
    numbers = [number(value) for value in values]
    return None if not numbers or None in numbers else [value for value in numbers if value is not None]


def _image(value: Any) -> dict[str, Any] | None:
    """`bytes` of an encoded image or `path` of a file, as the library datasets writes them."""
    if isinstance(value, bytes):
        return {"bytes": value, "path": None} if value else None
    if isinstance(value, Mapping) and (value.get("bytes") or value.get("path")):
        return {"bytes": value.get("bytes") or None, "path": value.get("path")}
    if isinstance(value, Mapping):
        return None
    path = _text(value)
    return None if path is None else {"bytes": None, "path": path}


def converter(role: str, separator: str) -> Callable[[Any], Any]:
    """Makes the value of a role of its cell; of a list of cells for `value`.

    Args:
        role: One of `NOUNS`, but not `features`.
        separator: Between the parts of a list in one cell.
    """
    found: dict[str, Callable[[Any], Any]] = {
        "label": _label,
        "labels": partial(_labels, separator=separator),
        "words": partial(_words, separator=separator),
        "tags": partial(_tags, separator=separator),
        "value": _value,
        "score": number,
        "image": _image,
    }
    return found.get(role, _text)


def key_of(values: Mapping[str, Any]) -> str:
    """What the split of a row follows from: its inputs alone; for a text or words that text, as it stands.

    Raises:
        OSError: The file of an image cannot be read.
    """
    given = [role for role in INPUTS if role in values]
    if given == ["text"]:
        return str(values["text"])
    parts = []
    for role in given:
        value = values[role]
        if role == "words":
            value = " ".join(value)
        elif role == "features":
            value = repr(sorted((name, _canonical(cell)) for name, cell in value.items()))
        elif role == "image":
            value = digest_of(value)
        parts.append(value)
    return "\0".join(" ".join(part.split()) for part in parts) if len(parts) > 1 else "".join(parts)


def _canonical(cell: Any) -> str:
    """The same for 1, 1.0 and "1", so that no row moves where a column of numbers becomes one of texts."""
    return "" if cell is None else repr(float(cell)) if is_number(cell) else as_text(cell) or ""


def lacks(roles: Iterable[str]) -> str:
    """`rows without a text or a label`."""
    nouns = [NOUNS[role] for role in roles if role not in ("features", "labels")]
    return "rows without " + ", ".join([*nouns[:-2], " or ".join(nouns[-2:])])
