"""Values of our own sources of data that say nothing, or not one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainer.errors import format_error

_SEVERAL = ("value", "features")
"""Roles that several columns may play together."""


def faults(config: Mapping[str, Any]) -> Iterator[str]:
    """A message for each; keys that are absent or of the wrong type are passed over."""
    data = config.get("data")
    if not isinstance(data, Mapping) or not str(data.get("_target_")).startswith("trainer."):
        return
    yield from _empty("data", data)
    yield from _files(data)
    yield from _columns(data)
    for first, second in (("text", "label"), ("word", "tag")):
        if first in data and data[first] == data.get(second):
            yield format_error(f"data.{second}", f"must be another column than data.{first}", value=data[second])
    for key in ("separator", "quote"):
        sign = data.get(key)
        if "quote" in data and isinstance(sign, str) and len(sign) > 1:
            yield format_error(f"data.{key}", "must be one character or null", value=sign)
    for key in ("separator", "quote", "list_separator", "comment"):
        sign = data.get(key)
        if isinstance(sign, str) and not set(sign).isdisjoint("\r\n"):
            yield format_error(f"data.{key}", "must stand within a line", value=sign)


def _empty(path: str, values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _empty(f"{path}.{key}", value)
        elif value == "" or (isinstance(value, list) and (not value or "" in value)):
            yield format_error(f"{path}.{key}", "must not be empty", value=value)


def _files(data: Mapping[str, Any]) -> Iterator[str]:
    """Files or splits by name: what must be given, and what must be given together."""
    splits = data.get("splits")
    if isinstance(splits, Mapping) and "train" in splits and splits["train"] is None:
        yield format_error("data.splits.train", "must be the name of a split", value=None)
    if not str(data["_target_"]).startswith("trainer.data.idx."):
        return
    named = {name: files for name in ("train", "validation", "test") if isinstance(files := data.get(name), Mapping)}
    for name, files in named.items():
        given = [role for role in ("images", "labels") if files.get(role) is not None]
        if len(given) == 1:
            other = "labels" if given == ["images"] else "images"
            yield format_error(f"data.{name}.{other}", f"is needed beside data.{name}.{given[0]}", value=None)
    folder, any_given = data.get("folder"), any(file is not None for files in named.values() for file in files.values())
    if folder is None and named.get("train", {}).get("images") is None:
        yield format_error("data.folder", "is needed, or data.train.images and data.train.labels", value=None)
    if folder is not None and any_given:
        yield format_error("data.folder", "must be null where files are named", value=folder)


def _columns(data: Mapping[str, Any]) -> Iterator[str]:
    columns = data.get("columns")
    for role, name in columns.items() if isinstance(columns, Mapping) else ():
        if isinstance(name, list) and role not in _SEVERAL:
            yield format_error(f"data.columns.{role}", "must be one column", value=name)
        elif isinstance(name, list) and len(set(map(str, name))) < len(name):
            yield format_error(f"data.columns.{role}", "must be different columns", value=name)
