"""One part from its config: the only caller of Hydra's instantiate."""

from __future__ import annotations

import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import Any

import hydra
from hydra.errors import InstantiationException

from trainer.builders.contracts import check_contract
from trainer.config.groups import HYDRA_KEYS, OWN
from trainer.config.parts import CALL_ARGUMENTS, is_the_part, missing_argument, unknown_argument
from trainer.errors import ConfigError, TrainerError, did_you_mean, format_error
from trainer.layout import Document

_MAX_LISTED = 20
"""A module's names are listed in a message only if there are at most this many."""

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

# Hydra also logs what cannot be imported, at length; our message is enough.
logging.getLogger(hydra.utils.__name__).setLevel(logging.CRITICAL)


def instantiate(group: str, config: Document, /, **context: Any) -> Any:
    """Create the part of a group from its `_target_` and keys.

    Args:
        group: The group's name, for messages.
        config: The part's resolved config. With `_partial_: true` the result is the callable with its arguments bound.
        context: Values that only the running job knows (`vocab_size`, `class_counts`, ...); the target gets those that
            it has a parameter for, unless the config sets them.

    Raises:
        ConfigError: The target cannot be imported, does not take these keys, rejects their values, or makes a part that
            does not fit the contract of its group.
    """
    target = locate(group, config)
    keys = {key: value for key, value in config.items() if key not in ("_target_", "_partial_", "_convert_")}
    needed = {name: value for name, value in context.items() if name in parameters(target) and name not in keys}
    partial = is_the_part(group, config, parameters(target), is_class=inspect.isclass(target))
    _check_arguments(group, config["_target_"], target, keys | needed, CALL_ARGUMENTS.get(group, 0) if partial else 0)
    try:
        bound = _bind(config, target, keys)
        # The context is bound here: Hydra would copy them, and parameters must stay the same objects.
        if partial:
            # Hydra's own partial checks its policy in every call, which takes longer than a schedule.
            bound = functools.partial(bound.func, *bound.args, **bound.keywords, **needed)
        else:
            bound = functools.partial(bound, **needed)
        with in_group(group):
            part = bound if partial else bound()
    except TrainerError:
        raise
    except (InstantiationException, ValueError, TypeError, ImportError, OSError) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        problem = f"cannot be created ({type(cause).__name__}: {cause})"
        raise ConfigError(format_error(group, problem)) from cause
    check_contract(group, config["_target_"], part)
    return part


def _bind(config: Document, target: Callable[..., Any], keys: Document) -> functools.partial[Any]:
    """Return the target of a part with its keys bound, which may contain parts of their own."""
    if config["_target_"].startswith(OWN) and not _contains_parts(keys):
        # Hydra would copy the config several times, which takes longer than making a small part.
        return functools.partial(target, **{key: _copy(value) for key, value in keys.items()})
    return hydra.utils.instantiate({**_literal(config), "_partial_": True}, _convert_="all")  # type: ignore[no-any-return]


def _contains_parts(value: Any) -> bool:
    """Return whether a value contains a mapping with a key that Hydra acts on."""
    if isinstance(value, Mapping):
        return not HYDRA_KEYS.isdisjoint(value) or any(map(_contains_parts, value.values()))
    return isinstance(value, list | tuple) and any(map(_contains_parts, value))


def _copy(value: Any) -> Any:
    """Return a copy of a plain value, which a part may change."""
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list | tuple) else value


def _literal(value: Any) -> Any:
    """Return a resolved value that Hydra does not resolve again: a text that looks like an interpolation is a text."""
    if isinstance(value, Mapping):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_literal(item) for item in value]
    if isinstance(value, str):
        for _ in range(2):  # Hydra resolves a config in place, and its values again when it reads them
            value = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


@contextmanager
def in_group(group: str) -> Iterator[None]:
    """Put the name of a group in front of the keys in every ConfigError that the block raises."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(*(f"{group}.{message}" for message in error.messages)) from error


def locate(group: str, config: Document) -> Callable[..., Any]:
    """Return the class or function that `_target_` names.

    Raises:
        ConfigError: It cannot be imported, or is not callable.
    """
    path = config["_target_"]
    try:
        target = hydra.utils.get_object(path)
    except Exception as error:
        raise ConfigError(format_error(f"{group}._target_", *_import_problem(path), value=path)) from error
    if not callable(target):
        raise ConfigError(format_error(f"{group}._target_", "must name a class or a function", value=path))
    return target  # type: ignore[no-any-return]  # Hydra's get_object is untyped


def parameters(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class or function by name; empty if it has no readable signature."""
    try:
        return inspect.signature(target).parameters
    except (TypeError, ValueError):
        return {}


def _import_problem(path: str) -> tuple[str, str]:
    """Return why a dotted path cannot be imported, and the remedy."""
    module, _, name = path.rpartition(".")
    try:
        known = [each for each in dir(import_module(module)) if not each.startswith("_")]
    except Exception as error:  # importing a user's module may fail in any way
        return f"cannot be imported ({type(error).__name__}: {error})", ""
    # A large library's names would fill the screen: only a close match is shown.
    near = did_you_mean(name, known)
    listed = near.startswith("Did you mean") or len(known) <= _MAX_LISTED
    return f"there is no {name} in {module}", near if listed else ""


def _check_arguments(
    group: str, path: str, target: Callable[..., Any], arguments: Mapping[str, Any], call_arguments: int
) -> None:
    """Check that a target can be called with `arguments` by name and `call_arguments` more by position."""
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * call_arguments, **arguments)
    except TypeError as error:
        by_name = [each for each in signature.parameters.values() if each.kind in _BY_NAME][call_arguments:]
        missing = [each.name for each in by_name if each.default is each.empty and each.name not in arguments]
        names = ", ".join(signature.parameters)
        problems = [missing_argument(group, name, path) for name in missing]
        takes_any = any(each.kind is each.VAR_KEYWORD for each in signature.parameters.values())
        unknown = () if takes_any else sorted(arguments.keys() - signature.parameters.keys())
        problems += [unknown_argument(group, name, arguments[name], path, [*signature.parameters]) for name in unknown]
        raise ConfigError(*problems or [f"{group}: {path} {error}. Its parameters are {names}."]) from error
