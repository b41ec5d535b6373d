"""What the configuration inside a checkpoint may run: a checkpoint is data, and may come from anyone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from trainer.config import signatures
from trainer.errors import format_error

LIBRARIES = ("torch.optim", "torch.nn", "transformers", "torchmetrics")
"""Packages whose classes a stored `_target_` may name, besides what we define ourselves."""


def trusted(config: Mapping[str, Any], trust: Sequence[str]) -> list[str]:
    """A message for each `_target_` of a stored configuration that may not be run.

    Args:
        config: The stored configuration.
        trust: Packages that the user trusts, from the command line and never from the stored configuration.
    """
    problem = f"a checkpoint may name our own parts and classes of {', '.join(LIBRARIES)} only"
    return [
        format_error(path, problem, f"If you trust it: trust=[{target.partition('.')[0]}]", value=target)
        for path, target in _targets(config)
        if not (_is_named(target, trust) or _is_known(target))
    ]


def trust_argument(config: Mapping[str, Any]) -> str:
    """` trust=[my_parts]`, with the packages that a stored configuration needs; "" where it needs none."""
    named = {target.partition(".")[0] for _, target in _targets(config) if not _is_known(target)}
    return f" trust=[{','.join(sorted(named))}]" if named else ""


def _targets(tree: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        if key == "_target_":
            yield f"{prefix}{key}", str(value)
        yield from _targets(value, f"{prefix}{key}.")


def _is_named(target: str, packages: Sequence[str]) -> bool:
    return any(target.startswith(f"{package}.") for package in packages)


def _is_known(target: str) -> bool:
    return signatures.defines(target) or _is_library_class(target)


def _is_library_class(target: str) -> bool:
    """Whether a target is a class in a module of a library.

    Every name before the last must be a module of that library: a module also holds what it imports, and
    `transformers.utils.os.system` would be a way out.
    """
    *modules, name = target.split(".")
    if not _is_named(target, LIBRARIES) or not name[:1].isupper():
        return False
    spec = find_spec(modules[0])
    for folder in map(Path, spec.submodule_search_locations or () if spec else ()):
        place = folder.joinpath(*modules[1:])
        if place.is_dir() or place.with_suffix(".py").is_file():
            return True
    return False
