"""Files and folders that a job is to read: whether they are there, told before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError, format_error

_DATA = {
    "trainer.data.files.Files": ("train", "validation", "test"),
    "trainer.data.lines.Lines": ("train", "validation", "test"),
    "trainer.data.conll.Conll": ("train", "validation", "test"),
    "trainer.data.imagefolder.ImageFolder": ("root",),
    "trainer.data.idx.Idx": ("folder",),
}
"""The keys of our own sources that name files and folders; patterns are left to the source."""

_STARTED = {
    **_DATA,
    "trainer.data.idx.Idx": ("folder", "train", "validation", "test"),
    "trainer.data.hub.Hub": ("path",),
}
"""The same, with what names a folder or something else."""

_DATA_NOUNS = {"root": "folder", "folder": "folder"}


def missing_data(config: Mapping[str, Any]) -> list[str]:
    """The keys of `data` that name what is not there."""
    data = config.get("data")
    if not isinstance(data, Mapping):
        return []
    keys = _DATA.get(str(data.get("_target_")), ())
    return [message for key in keys for message in _missing(f"data.{key}", data.get(key), _DATA_NOUNS.get(key, "file"))]


def located(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose paths of data and of a teacher are found from elsewhere than `run.cwd`, where they start.

    What is not there is left as it is, and so found, or missed, in the working directory.
    """
    cwd = run.get("cwd") if isinstance(run := config.get("run"), Mapping) else None
    found = dict(config)
    if not isinstance(cwd, str) or Path(cwd) == Path.cwd():
        return found
    target = str(data.get("_target_")) if isinstance(data := config.get("data"), Mapping) else ""
    for group, keys in (("data", _STARTED.get(target, ())), ("loss", ("teacher",))):
        part = found.get(group)
        if isinstance(part, Mapping):
            found[group] = {**part, **{key: _from(Path(cwd), part[key]) for key in keys if key in part}}
    return found


def _from(start: Path, value: Any) -> Any:
    if isinstance(value, list):
        return [_from(start, item) for item in value]
    if isinstance(value, Mapping):
        return {key: _from(start, item) for key, item in value.items()}
    if not isinstance(value, str) or not value:
        return value
    path = start / Path(value).expanduser()
    return str(path) if path.exists() or (has_magic(value) and glob(str(path), recursive=True)) else value


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
    from trainer.predict.files import resolve_paths

    try:
        resolve_paths(*(config[key] for key in keys))
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
            yield format_error(key, f"no such {noun}", remedy, value=given)
