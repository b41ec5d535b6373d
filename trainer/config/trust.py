"""The code and the environment variables that a stored config may name: a closed list, unless the user trusts more.

A run may come from anyone, so its config is data. Each group may name the targets of its own options in `conf/`, and
classes of a few libraries that are of the group's base class. Everything else that runs code or reads this machine is
refused: other targets, targets inside parts, Hydra's own keys, and interpolations. The user allows more only with
`trust` on the command line of the present command, never in the stored config.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

from trainer.config import jobs, schema
from trainer.config.groups import HYDRA_KEYS, OWN, Groups, own_folder
from trainer.config.keys import find
from trainer.errors import format_error, raise_if_any

LIBRARIES = {
    "model": ("torch.nn",),
    "loss": ("torch.nn",),
    "optimizer": ("torch.optim", "transformers"),
    "scheduler": ("torch.optim",),
}
"""Packages that define classes which a stored config may name; other groups take none.

They must only compute: a model or a metric of a library that takes the name of another model would load it, with the
code that comes with it.
"""

BASES = {
    "model": "torch.nn.Module",
    "loss": "torch.nn.Module",
    "optimizer": "torch.optim.Optimizer",
    "scheduler": "torch.optim.lr_scheduler.LRScheduler",
}
"""The base of the library classes of a group."""

ENVIRONMENT = "oc.env"
"""The name in `trust` that allows references to environment variables."""

_GROUPS = schema.groups(jobs.TrainJob)
_REFERENCE = re.compile(r"\$\{oc\.env:[^{}$]+\}")
_START = "\0{"
"""Stands for `${` in a text that must not be resolved yet."""

_DECODED = re.compile(rf"\$\{{oc\.decode:{_REFERENCE.pattern}\}}")


def trust_problems(config: Mapping[str, Any], trust: Collection[str], replaced: Collection[str] = ()) -> list[str]:
    """Return a message for everything in a stored config that must not be used.

    Args:
        config: The stored config, not resolved.
        trust: Packages and targets that the user trusts, from the command line and never from the stored config.
        replaced: Full keys that the command line replaces.
    """
    names = sorted({*trust, *_names_to_trust(config, replaced)})
    remedy = f"If you trust {'them' if names[1:] else 'it'}, set trust=[{','.join(names)}]"
    return [
        *(_target_problem(path, target, remedy) for path, target in _untrusted_targets(config, trust)),
        *_hydra_key_problems(config, trust),
        *_interpolation_problems(config, trust, replaced, remedy),
    ]


def literal_problems(config: Mapping[str, Any]) -> list[str]:
    """Return a message for each text of a new run's config that `trust_problems` would refuse once it is stored.

    Args:
        config: The config, resolved except for references to the environment.
    """
    remedy = "Rename the file, folder or column, or write the value without ${"
    return [
        format_error(path, "must not contain ${, because no run with such a config can be used", remedy, value=text)
        for path, text in _texts(config)
        if "${" in text and not names_environment(text)
    ]


def trust_argument(config: Mapping[str, Any]) -> str:
    """Return ` trust=[my_parts]` with everything that a stored config needs; "" if it needs none."""
    names = _names_to_trust(config)
    return f" trust=[{','.join(sorted(names))}]" if names else ""


def _names_to_trust(config: Mapping[str, Any], replaced: Collection[str] = ()) -> set[str]:
    """Return everything that `trust` must name so that a stored config can be used."""
    names = {_trusted_name(target) for _, target in _untrusted_targets(config, ())}
    return names | {ENVIRONMENT for path, text in _texts(config) if path not in replaced and names_environment(text)}


def named_packages(config: Mapping[str, Any]) -> set[str]:
    """Return the packages of all targets of a config, and those that it trusts."""
    names = {str(part["_target_"]) for _, part in _mappings(config) if "_target_" in part}
    return {name.partition(".")[0] for name in (*names, *map(str, config.get("trust") or ()))}


# Targets


def _untrusted_targets(config: Mapping[str, Any], trust: Collection[str]) -> Iterator[tuple[str, str]]:
    for path, part in _mappings(config):
        if "_target_" in part and not (_is_trusted(part, trust) or _is_listed(path, part["_target_"])):
            yield f"{path}._target_".lstrip("."), str(part["_target_"])


def _target_problem(path: str, target: str, remedy: str) -> str:
    group, _, inner = path.partition(".")
    options = f"the options of {group}" if group in _GROUPS else "parts of trainer"
    libraries = ""
    if group in LIBRARIES:
        libraries = f" and classes of {' and '.join(LIBRARIES[group])} that are {BASES[group]}s"
    problem = f"a stored config may name only {options}{libraries}"
    if group == "observers":
        problem = "a stored config may name no observers"
    elif group == "metrics":
        problem = "a stored config may name metrics only without their class"
    elif inner != "_target_":
        problem = "a part of a stored config may not contain another part"
    return format_error(path, problem, remedy, value=target)


def _trusted_name(target: str) -> str:
    """Return the name that `trust` needs for a target: its package, or only itself if its package can do anything."""
    package = target.partition(".")[0]
    return target if package in {OWN.rstrip("."), "torch", "torchmetrics", "transformers"} else package


def _is_trusted(part: Mapping[str, Any], trust: Collection[str]) -> bool:
    target = str(part.get("_target_"))
    return any(target == name or target.startswith(f"{name}.") for name in trust)


def _is_listed(group: str, target: object) -> bool:
    """Return whether the part of a group may name a target; False if `group` is the path of an inner part."""
    if group not in _GROUPS or not isinstance(target, str):
        return False
    return _own_groups().option_of(group, target) is not None or _is_library_class(group, target)


def _own_groups() -> Groups:
    return Groups((own_folder(),))


@lru_cache(maxsize=64)
def _is_library_class(group: str, target: str) -> bool:
    """Return whether a target is a subclass of the group's base class, defined by a library.

    Only a module of the library is imported to find out: a module also holds what it imports, and
    `transformers.utils.os.system` would be a loophole.
    """
    *modules, name = target.split(".")
    if not _starts_with_library(group, target) or not _is_library_module(modules):
        return False
    try:
        named = getattr(import_module(".".join(modules)), name, None)
        base_module, _, base_name = BASES[group].rpartition(".")
        base = getattr(import_module(base_module), base_name)
    except Exception:  # a module of the library may need a package that is not installed
        return False
    if not inspect.isclass(named) or not _starts_with_library(group, f"{named.__module__}."):
        return False
    is_defined = getattr(sys.modules.get(named.__module__), named.__qualname__, None) is named
    return is_defined and issubclass(named, base)


def _starts_with_library(group: str, dotted: str) -> bool:
    return any(dotted.startswith(f"{library}.") for library in LIBRARIES.get(group, ()))


def _is_library_module(names: Sequence[str]) -> bool:
    """Return whether the names lead to a module in the library's own folder; nothing is imported."""
    if not all(name.isidentifier() and not name.startswith("__") for name in names):
        return False
    spec = find_spec(names[0])
    for folder in map(Path, spec.submodule_search_locations or () if spec else ()):
        path = folder.joinpath(*names[1:])
        if (path / "__init__.py").is_file() or path.with_suffix(".py").is_file():
            return True
    return False


# Hydra's own keys


def _hydra_key_problems(config: Mapping[str, Any], trust: Collection[str]) -> Iterator[str]:
    for path, part in _mappings(config):
        for key in (HYDRA_KEYS - {"_target_"}) & part.keys():
            if not (_is_trusted(part, trust) or (key == "_partial_" and _is_partial(path, part[key]))):
                problem = "a stored config may not contain this key of Hydra"
                yield format_error(f"{path}.{key}".lstrip("."), problem, value=part[key])


def _is_partial(group: str, value: object) -> bool:
    """Return whether options of the group have `_partial_` with this value; a replaced `_target_` keeps it."""
    own = _own_groups()
    return group in _GROUPS and any(own.content(group, name).get("_partial_") is value for name in own.options(group))


# Interpolations and the environment


def _interpolation_problems(
    config: Mapping[str, Any], trust: Collection[str], replaced: Collection[str], remedy: str
) -> Iterator[str]:
    for path, text in _texts(config):
        if "${" not in text or path in replaced:
            continue
        if not names_environment(text):
            yield format_error(path, "a stored config may not contain interpolations", value=text)
        elif ENVIRONMENT not in trust:
            yield format_error(path, "a stored config may not read the environment", remedy, value=text)


def names_environment(value: object) -> bool:
    """Return whether a value is a text that names environment variables and contains no other interpolation."""
    if not isinstance(value, str):
        return False
    if _DECODED.fullmatch(value):
        return True
    return bool(_REFERENCE.search(value)) and "${" not in _REFERENCE.sub("", value)


def describe_unresolved(path: str, text: object, error: OmegaConfBaseException) -> str:
    """Return the message for a value whose interpolation cannot be resolved."""
    reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0]).strip('".')
    return format_error(path, "the interpolation has no value", reason, value=text)


def resolve_environment(config: Mapping[str, Any], texts: Collection[str] = ()) -> dict[str, Any]:
    """Return a config with the values of the environment variables that it names.

    Args:
        config: The config.
        texts: Keys whose values are free text, in which a reference is a part of the text.

    Raises:
        ConfigError: A variable is not set and has no default.
    """
    problems: list[str] = []

    def resolve(text: str, path: str) -> Any:
        if not names_environment(text):
            return text
        try:
            return OmegaConf.create({"value": text}).value
        except OmegaConfBaseException as error:
            problems.append(describe_unresolved(path, text, error))
            return text

    resolved = {key: value if key in texts else _map_texts(value, resolve, str(key)) for key, value in config.items()}
    raise_if_any(*problems)
    return resolved


def keep_references(config: Mapping[str, Any], composed: DictConfig) -> dict[str, Any]:
    """Return a resolved config with references to the environment as they are written, so that no secret is stored.

    Args:
        config: The config, resolved.
        composed: The same, not resolved.
    """
    if "oc.env" not in str(OmegaConf.to_container(composed, resolve=False)):
        return dict(config)
    with _environment_unread():
        written = OmegaConf.to_container(composed, resolve=True)
    return {key: _with_references(value, find(written, key)) for key, value in config.items()}


@contextmanager
def _environment_unread() -> Iterator[None]:
    """Let references to the environment resolve to their own text, in every value that they are a part of."""

    def reference(name: str, *default: object) -> str:
        return f"{_START}oc.env:{','.join([name, *map(_quoted, default)])}}}"

    def decoded(text: Any, *, _parent_: Any, _node_: Any) -> Any:
        is_reference = isinstance(text, str) and text.startswith(_START)
        return f"{_START}oc.decode:{text}}}" if is_reference else oc.decode(text, _parent_, _node_)

    OmegaConf.register_new_resolver("oc.env", reference, replace=True)
    OmegaConf.register_new_resolver("oc.decode", decoded, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
        OmegaConf.register_new_resolver("oc.decode", oc.decode, replace=True)


def _quoted(default: object) -> str:
    """Return the default of a reference as it is written; braces could not be told from an interpolation's own."""
    if default is None:
        return "null"
    text = re.sub(r"[{}$]", "", str(default))
    return text if re.fullmatch(r"[\w./:+-]+", text) else "'" + text.replace("'", "\\'") + "'"


def _with_references(value: Any, written: Any) -> Any:
    """Return a value with the texts of `written` that refer to the environment."""
    if isinstance(value, Mapping):
        return {key: _with_references(item, find(written, str(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_references(item, find(written, str(position))) for position, item in enumerate(value)]
    is_reference = isinstance(written, str) and _START in written
    return written.replace(_START, "${") if is_reference else value


# Walks


def _mappings(tree: object, path: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield every mapping of a config with its path."""
    if isinstance(tree, Mapping):
        yield path, tree
    for key, value in _items(tree):
        yield from _mappings(value, f"{path}.{key}".lstrip("."))


def _texts(tree: object, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every text of a config with its path."""
    if isinstance(tree, str):
        yield path, tree
    for key, value in _items(tree):
        yield from _texts(value, f"{path}.{key}".lstrip("."))


def _map_texts(tree: Any, change: Callable[[str, str], Any], path: str) -> Any:
    """Return a config with every text replaced by what `change` returns for it and its path."""
    if isinstance(tree, Mapping):
        return {key: _map_texts(value, change, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list):
        return [_map_texts(value, change, f"{path}.{position}") for position, value in enumerate(tree)]
    return change(tree, path) if isinstance(tree, str) else tree


def _items(tree: object) -> Iterator[tuple[Any, Any]]:
    if isinstance(tree, Mapping):
        yield from tree.items()
    elif isinstance(tree, list):
        yield from enumerate(tree)
