"""How the keys we own are declared, and what can be asked of them: each is a field of a dataclass.

A job (`trainer.config.jobs`) has keys, sections (`trainer.config.sections`) and groups. The options of a group make
parts, whose keys are the parameters of what their `_target_` names and are not declared anywhere else.
"""

from __future__ import annotations

import inspect
from dataclasses import MISSING, Field, field, fields, is_dataclass
from typing import Any


def key(default: Any, doc: str) -> Any:
    """A key of a job or section."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def text(default: str | None, doc: str) -> Any:
    """A key of a job whose value is a text of a user, taken as it is written."""
    return field(default=default, metadata={"doc": doc, "text": True})


def section(kind: type, doc: str) -> Any:
    """A section of a job, with its schema."""
    return field(default_factory=kind, metadata={"doc": doc, "section": kind})


def group(doc: str, keys: type | None = None) -> Any:
    """A group of a job; `keys` is the schema of those that all its options have."""
    return field(default_factory=dict, metadata={"doc": doc, "group": True, "keys": keys})


def optional_group(doc: str, keys: type) -> Any:
    """A group that a job can do without: its part may be null."""
    return field(default=None, metadata={"doc": doc, "group": True, "keys": keys, "optional": True})


def keys(kind: type) -> dict[str, str]:
    """The configurable keys of a job or section, with their annotations."""
    return {item.name: str(item.type) for item in _own_first(kind) if "doc" in item.metadata}


def _own_first(kind: type) -> list[Field[Any]]:
    """The fields of a job or section, those before that it does not share with other jobs."""
    own = inspect.get_annotations(kind)
    return sorted(fields(kind), key=lambda item: item.name not in own)


def doc(kind: type, name: str) -> str:
    """What a key means."""
    return next(str(item.metadata["doc"]) for item in fields(kind) if item.name == name)


def texts(kind: type) -> frozenset[str]:
    """The keys of a job whose values are texts of a user, taken as they are written."""
    return frozenset(item.name for item in fields(kind) if "text" in item.metadata)


def sections(kind: type) -> dict[str, type]:
    """The sections of a job that we own, with their schemas."""
    return {item.name: item.metadata["section"] for item in fields(kind) if "section" in item.metadata}


def groups(kind: type) -> tuple[str, ...]:
    """The groups of a job that make a part."""
    return tuple(item.name for item in fields(kind) if "group" in item.metadata)


def needed_groups(kind: type) -> tuple[str, ...]:
    """The groups that a job cannot do without; the part of another one may be null."""
    return tuple(item.name for item in fields(kind) if "group" in item.metadata and "optional" not in item.metadata)


def shared_keys(kind: type, group: str) -> type | None:
    """The schema of the keys that every option of a group has, whatever it makes; build itself uses them."""
    found = next((item for item in fields(kind) if item.name == group), None)
    return None if found is None else found.metadata.get("keys")


def own_keys(part: dict[str, Any], shared: type) -> dict[str, Any]:
    """The keys of a part without those that every option of its group has."""
    return {key: value for key, value in part.items() if key not in keys(shared)}


def defaults(kind: type) -> dict[str, Any]:
    """The default of every key of a job or section as plain mappings; a group's own keys are left to the YAML."""
    found: dict[str, Any] = {}
    for item in _own_first(kind):
        if "doc" not in item.metadata:
            continue
        if "optional" in item.metadata:
            found[item.name] = None
            continue
        if "group" in item.metadata:
            found |= {item.name: defaults(shared)} if (shared := item.metadata["keys"]) else {}
            continue
        value = item.default if item.default_factory is MISSING else item.default_factory()
        found[item.name] = defaults(type(value)) if is_dataclass(value) else value
    return found


def written(kind: type) -> str:
    """The keys of a section with their defaults, as they are written on the command line."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in defaults(kind).items()) + "}"
