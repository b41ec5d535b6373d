"""Files and folders that a job is to read: whether they are there, told before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from glob import has_magic
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, explain

_DATA = {
    "trainer.data.files.Files": ("train", "validation", "test"),
    "trainer.data.lines.Lines": ("train", "validation", "test"),
    "trainer.data.conll.Conll": ("train", "validation", "test"),
    "trainer.data.imagefolder.ImageFolder": ("root",),
    "trainer.data.idx.Idx": ("folder",),
}
"""The keys of our own sources that name files and folders; patterns are left to the source."""

_DATA_NOUNS = {"root": "folder", "folder": "folder"}


def missing_data(config: Mapping[str, Any]) -> list[str]:
    """The keys of `data` that name what is not there."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return []
    keys = _DATA.get(str(data.get("_target_")), ())
    return [message for key in keys for message in _missing(f"data.{key}", data.get(key), _DATA_NOUNS.get(key, "file"))]


def missing_parts(config: Mapping[str, Any]) -> list[str]:
    """The other keys that name what is not there: weights, a teacher, a model or tokenizer not of the hub."""
    parts = {name: part for name, part in config.items() if isinstance(part, Mapping)}
    flat = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    found = [message for key in ("model.weights", "loss.teacher") for message in _missing(key, flat.get(key))]
    hub = [key for key in ("model.path", "task.tokenizer") if _is_path(flat.get(key))]
    messages = [message for key in hub for message in _missing(key, flat[key])]
    # task.tokenizer follows model.path unless it is given.
    return [*found, *(messages[:1] if len({flat[key] for key in hub}) == 1 else messages)]


def missing_inputs(config: Mapping[str, Any]) -> list[str]:
    """What is wrong with the files that `trainer predict` is to read and write."""
    keys = ("input", "corpus", "output")
    if not all(isinstance(config.get(key, 0), str | None) for key in keys):
        return []
    # Its readers import numpy, which no other verb waits for.
    from trainer.predict.given import read_given

    try:
        read_given(*(config[key] for key in keys))
    except ConfigError as error:
        return list(error.messages)
    return []


def _is_path(value: Any) -> bool:
    """Whether a value can be no `owner/name` of the hub."""
    return isinstance(value, str) and (value.startswith((".", "/", "~")) or value.count("/") > 1 or "\\" in value)


def _missing(key: str, value: Any, noun: str = "file or folder") -> Iterator[str]:
    for given in value if isinstance(value, list) else [value]:
        if not isinstance(given, str) or has_magic(given):
            continue
        path = Path(given).expanduser()
        if not path.exists():
            names = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
            similar = get_close_matches(path.name, names, n=1)
            remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
            yield explain(key, f"no such {noun}", remedy, value=given)
