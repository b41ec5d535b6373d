"""Field helpers: how the keys of jobs and sections are declared, and functions that read the declarations.

A job type (`trainer.config.jobs`) has keys, sections and groups. An option of a group makes a part; its keys are the
parameters of the part's `_target_` and are declared only there.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import MISSING, Field, field, fields, is_dataclass
from functools import lru_cache
from typing import Any


def key(default: object, doc: str) -> Any:
    """Declare a key of a job or section."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


def text(default: str | None, doc: str) -> Any:
    """Declare a key of a job whose value is free text, taken verbatim from the command line."""
    return field(default=default, metadata={"doc": doc, "text": True})


def section(section_type: type, doc: str) -> Any:
    """Declare a section of a job."""
    return field(default_factory=section_type, metadata={"doc": doc, "section": section_type})


def group(doc: str, keys: type | None = None) -> Any:
    """Declare a group of a job; `keys` declares the keys that all options of the group share."""
    return field(default_factory=dict, metadata={"doc": doc, "group": True, "keys": keys})


def optional_group(doc: str, keys: type | None = None) -> Any:
    """Declare a group whose part may be null."""
    return field(default=None, metadata={"doc": doc, "group": True, "keys": keys, "optional": True})


def keys(job_type: type) -> dict[str, object]:
    """Return the configurable keys of a job or section, with their annotations."""
    return _keys(job_type)


@lru_cache(maxsize=64)
def _keys(job_type: type) -> dict[str, object]:
    # Imported here, as the help of a verb does without it.
    from trainer import constraints
    from trainer.constraints.declarations import resolve_annotation

    scope = vars(constraints) | vars(sys.modules[job_type.__module__])
    return {item.name: resolve_annotation(item.type, scope) for item in _ordered(job_type) if "doc" in item.metadata}


def _ordered(job_type: type) -> list[Field[Any]]:
    """Return the fields of a job or section; those that it does not share with other jobs come first."""
    own = inspect.get_annotations(job_type)
    return sorted(fields(job_type), key=lambda item: item.name not in own)


def doc(job_type: type, name: str) -> str:
    """Return the help text of a key."""
    return next(str(item.metadata["doc"]) for item in fields(job_type) if item.name == name)


def texts(job_type: type) -> frozenset[str]:
    """Return the keys of a job whose values are free text."""
    return frozenset(item.name for item in fields(job_type) if "text" in item.metadata)


def sections(job_type: type) -> dict[str, type]:
    """Return the sections of a job, with their types."""
    return {item.name: item.metadata["section"] for item in fields(job_type) if "section" in item.metadata}


def groups(job_type: type) -> tuple[str, ...]:
    """Return the groups of a job that make a part."""
    return tuple(item.name for item in fields(job_type) if "group" in item.metadata)


def required_groups(job_type: type) -> tuple[str, ...]:
    """Return the groups of a job whose part must not be null."""
    return tuple(item.name for item in fields(job_type) if "group" in item.metadata and "optional" not in item.metadata)


def shared_type(job_type: type, group: str) -> type | None:
    """Return the declaration of the keys that all options of a group share; the builders use them themselves."""
    declared = next((item for item in fields(job_type) if item.name == group), None)
    return None if declared is None else declared.metadata.get("keys")


def shared_keys(job_type: type, group: str) -> dict[str, object]:
    """Return the keys that all options of a group share, with their annotations."""
    shared = shared_type(job_type, group)
    return {} if shared is None else keys(shared)


def option_keys(part: dict[str, Any], shared: type) -> dict[str, Any]:
    """Return the keys of a part without the keys that all options of its group share."""
    return {key: value for key, value in part.items() if key not in keys(shared)}


def defaults(job_type: type) -> dict[str, Any]:
    """Return the default of every key of a job or section as plain mappings; options of groups have theirs in YAML."""
    values: dict[str, Any] = {}
    for item in _ordered(job_type):
        if "doc" not in item.metadata:
            continue
        if "optional" in item.metadata:
            values[item.name] = None
            continue
        if "group" in item.metadata:
            values |= {item.name: defaults(shared)} if (shared := item.metadata["keys"]) else {}
            continue
        value = item.default if item.default_factory is MISSING else item.default_factory()
        values[item.name] = defaults(type(value)) if is_dataclass(value) else value
    return values


def as_argument(value: object) -> str:
    """Return the value of a key as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def as_overrides(section_type: type) -> str:
    """Return the keys of a section with their defaults, in the syntax of the command line."""
    return "{" + ", ".join(f"{name}: {value}" for name, value in defaults(section_type).items()) + "}"
