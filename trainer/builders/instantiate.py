"""One part out of its config: the only caller of Hydra's instantiate."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import hydra
from hydra.errors import InstantiationException

from trainer.errors import ConfigError, TrainerError, did_you_mean, format_error

_FEW = 20
"""Of a module with so many names at most all are shown."""

# It tells of what cannot be imported too, and at length.
logging.getLogger(hydra.utils.__name__).setLevel(logging.CRITICAL)


def make(group: str, part: Mapping[str, Any], /, **facts: Any) -> Any:
    """Makes the part of a group from its `_target_` and keys.

    Args:
        group: The group's name, for messages.
        part: Its resolved config. With `_partial_: true` the result is the callable with its arguments bound.
        facts: What only the running job knows (`vocab_size`, `class_counts`, ...); a target gets those of them that it
            has a parameter for.

    Raises:
        ConfigError: The target cannot be imported, does not take these keys, or refuses their values.
    """
    target = locate(group, part)
    given = {key: value for key, value in part.items() if key not in ("_target_", "_partial_", "_convert_")}
    needed = {name: value for name, value in facts.items() if name in parameters(target) and name not in given}
    partial = bool(part.get("_partial_", False))
    if not partial:
        _check_binds(group, part["_target_"], target, given | needed)
    try:
        bound = hydra.utils.instantiate({**part, "_partial_": True}, _convert_="all")
        # The facts are bound here: Hydra would copy them, and parameters must stay the same objects.
        bound = functools.partial(bound, **needed)
        return bound if partial else bound()
    except ConfigError as error:
        raise ConfigError(*(f"{group}.{message}" for message in error.messages)) from error
    except TrainerError:
        raise
    except (InstantiationException, ValueError, TypeError, ImportError, OSError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        raise ConfigError(format_error(group, f"cannot be made ({type(cause).__name__}: {cause})")) from cause


def locate(group: str, part: Mapping[str, Any]) -> Callable[..., Any]:
    """What `_target_` names.

    Raises:
        ConfigError: It cannot be imported, or cannot be called.
    """
    path = part["_target_"]
    try:
        target = hydra.utils.get_object(path)
    except Exception as error:
        raise ConfigError(format_error(f"{group}._target_", *_why_not(path), value=path)) from error
    if not callable(target):
        raise ConfigError(format_error(f"{group}._target_", "must name a class or a function", value=path))
    return target  # type: ignore[no-any-return]  # Hydra's get_object is untyped


def _why_not(path: str) -> tuple[str, str]:
    """Why a dotted path names nothing, and the remedy."""
    module, _, name = path.rpartition(".")
    try:
        known = [each for each in dir(import_module(module)) if not each.startswith("_")]
    except Exception as error:  # a user's module may fail in any way while it is imported
        return f"cannot be imported ({type(error).__name__}: {error})", ""
    # Of a large library the names of what is near alone.
    near = did_you_mean(name, known)
    return f"there is no {name} in {module}", near if near.startswith("Did you mean") or len(known) <= _FEW else ""


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a class or function by name; empty for what has no signature to read."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _check_binds(group: str, path: str, target: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ConfigError(f"{group}: {path} {error}. It takes {', '.join(signature.parameters)}.") from error
