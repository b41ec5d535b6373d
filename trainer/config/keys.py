"""The keys that exist, and the messages about unknown ones with the key that was probably meant."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import jobs, schema, signatures
from trainer.config.foreign_names import foreign_name
from trainer.config.groups import OWN, Groups
from trainer.documents import flatten
from trainer.errors import format_error

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override  # help is printed without loading Hydra

_ABSENT: Any = object()

DURATIONS = ("scheduler", "perturb")
"""Groups whose keys `x` are durations if the target has a parameter `x_steps`."""

_FREE = ("data.mix", "loader.weights")
"""Keys whose values are mappings of names in the user's data."""


def is_named_set(path: str, value: object) -> bool:
    """Return whether a key of a part is a validation set of several files, by a name of the user's."""
    return path.startswith("data.validation.") and isinstance(value, Mapping)


@dataclass(frozen=True)
class KnownKeys:
    """The keys that one verb has.

    Attributes:
        job_type: The verb's job type.
        groups: The groups of all config folders.
        tree: The composed config, not resolved.
        is_stored: The config belongs to a run, so its options cannot be chosen again.
        presets: The file of the experiment or debug option that sets a key, for each such key.
    """

    job_type: type
    groups: Groups
    tree: Mapping[str, Any]
    is_stored: bool = False
    presets: Mapping[str, Path] = field(default_factory=dict)

    def validate_override(self, override: Override) -> list[str]:
        """Return the problems of the key of an override of a value."""
        path, value = override.key_or_group, override.value()
        if override.is_sweep_override():
            value = override.get_value_string()
        if override.is_delete():
            return self._validate_deletion(path)
        current = find(self.tree, path)
        if is_named_set(path, value) and isinstance(find(self.tree, "data.validation"), Mapping):
            return []  # its part checks the files of the set
        if override.is_add() or override.is_force_add():
            # A new key is validated with the composed config, where everything around it is known.
            exists = current is not _ABSENT and not isinstance(value, dict | list)
            remedy = f"Leave out the +: {path}={override.get_value_string()}"
            return [format_error(path, "already exists", remedy)] if exists and override.is_add() else []
        if isinstance(value, dict) and isinstance(current, Mapping) and path not in _FREE:
            inner = [(f"{path}.{key}", item) for key, item in value.items()]
            unknown = [
                (key, item)
                for key, item in inner
                if find(self.tree, key) is _ABSENT and not self._is_open(key) and not is_named_set(key, item)
            ]
            return [self.unknown(key, item) for key, item in unknown]
        return [] if current is not _ABSENT or self._is_open(path) else [self.unknown(path, value)]

    def _is_open(self, path: str) -> bool:
        """Return whether a key is in a mapping of another library, such as `model.config`; its part checks the key."""
        names = path.split(".")
        above = find(self.tree, ".".join(names[:2]))
        return len(names) > 2 and names[0] in schema.groups(self.job_type) and above == {}

    def _validate_deletion(self, path: str) -> list[str]:
        if find(self.tree, path) is _ABSENT:
            return [self.unknown(path)]
        top = path.split(".")[0]
        if top in schema.groups(self.job_type) and path != top:
            return []
        return [format_error(path, "cannot be deleted", "Set a value; null turns off an optional feature")]

    def unknown(self, path: str, value: object = _ABSENT) -> str:
        """Return the message for an unknown key."""
        if remedy := self._foreign_remedy(path, value):
            return format_error(path, "unknown key", remedy, **({} if value is _ABSENT else {"value": value}))
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent) if parent else self.tree
        error = partial(format_error, path) if value is _ABSENT else partial(format_error, path, value=value)
        if above is _ABSENT:
            is_key = "." not in parent and name in schema.keys(self.job_type)  # such as trainer.devices
            return error("unknown key", f"Did you mean {name}?") if is_key else self.unknown(parent)
        if above is None and parent in schema.groups(self.job_type):
            every = self.groups.options(parent)
            having = [option for option in every if name in self.groups.content(parent, option)] or every
            options = " or ".join(f"{parent}={option}" for option in having)
            return error(f"no {parent} is chosen", "" if self.is_stored else f"Add {options}")
        if above is None:
            example = "..." if value is _ABSENT or isinstance(value, dict | list) else value
            return error(f"{parent} is null and has no keys", f"Set {parent}={{{name}: {example}}}")
        if not isinstance(above, Mapping):
            return error(f"{parent} is a value and has no keys")
        remedy = self._remedy(parent, name, above)
        if parent == "data.validation" and {"images", "labels"} <= above.keys() and remedy.startswith("Known"):
            remedy = f"For a validation set of this name, write {path}={{images: <file>, labels: <file>}}"
        if path in self.presets:  # often the key of another option than the one that is chosen
            file = os.path.relpath(self.presets[path])
            separator = " " if remedy.endswith("?") else ". "
            remedy = f"{remedy.removesuffix('.')}{separator}It is set in {file}: add '~{path}' to leave it out"
        return error("unknown key", remedy)

    def _foreign_remedy(self, path: str, value: object) -> str:
        """Return what does here what a key of another trainer does there; empty if the key is not one."""
        foreign = None if self.is_stored else foreign_name(path)
        top = path.partition(".")[0]
        groups = {*schema.groups(self.job_type), *jobs.preset_groups(self.job_type)}
        if foreign is None or not foreign.fits({*dict(flatten(self.tree)), *groups}):
            return ""
        text = None if value is _ABSENT else schema.as_argument(value)
        is_itself = path in foreign.names.split() and foreign.translate(text) is not None
        of_section = "." in path and top in self.tree and not foreign.override.startswith(f"{top}.")
        return "" if of_section and not is_itself and self._is_near(path) else foreign.remedy(text)

    def _is_near(self, path: str) -> bool:
        """Return whether a key is one of its section, misspelled, or one of another option."""
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent)
        if not isinstance(above, Mapping) or self._other_option(parent, name):
            return True
        return bool(get_close_matches(name, self._siblings(parent, above), n=1, cutoff=0.75))

    def _remedy(self, parent: str, name: str, above: Mapping[str, Any]) -> str:
        prefix = f"{parent}." if parent else ""
        parameters = None if self.is_stored else _parameters(parent, above)
        if parameters is not None and name in parameters:
            return f"Write +{prefix}{name}, as {above['_target_']} has this parameter and no file sets it"
        siblings = [key for key in self._siblings(parent, above) if key != name and not key.startswith("_")]
        if near := get_close_matches(name, siblings, n=1, cutoff=0.6):
            sign = "+" if parameters is not None and near[0] not in above else ""
            return f"Did you mean {sign}{prefix}{near[0]}?"
        itself = f"{prefix}{name}"
        names = {path: path.rpartition(".")[2] for path, _ in flatten(self.tree)}
        near = [name] if parent else get_close_matches(name, [*names.values()], n=1, cutoff=0.85)
        if elsewhere := [path for path, last in names.items() if last in near and path != itself and self._has(path)]:
            return f"Did you mean {' or '.join(elsewhere)}?"
        known = f"Known: {', '.join(prefix + key for key in dict.fromkeys(siblings))}" if siblings else "It has no keys"
        if self.is_stored:
            return known
        is_plugged_in = not str(above.get("_target_", OWN)).startswith(OWN) and parameters is None
        more = f"Add a key of {above['_target_']} with +{parent}.<key>=<value>" if is_plugged_in else ""
        return ". ".join(filter(None, [self._other_option(parent, name), known, more]))

    def _has(self, path: str) -> bool:
        """Return whether a key of the tree is known: the command line may have added one that is not."""
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent)
        return not parent or not isinstance(above, Mapping) or name in self._siblings(parent, above)

    def _siblings(self, parent: str, above: Mapping[str, Any]) -> list[str]:
        """Return the known keys next to an unknown one; other keys of the tree may be wrong as well."""
        sections = schema.sections(self.job_type)
        if not parent:
            presets, stored = jobs.preset_groups(self.job_type), jobs.stored_sections(self.job_type)
            return [*schema.keys(self.job_type), *presets, *stored]
        if parent in sections:
            return list(schema.keys(sections[parent]))
        own: Iterable[str] | None = _parameters(parent, above)
        if own is None:
            option = self.groups.option_of(parent, str(above.get("_target_")))
            own = self.groups.content(parent, option) if option else map(str, above)
        return [*schema.shared_keys(self.job_type, parent), *own]

    def _other_option(self, group: str, name: str) -> str:
        """Return a hint to the options of the group that have the key, or else a similar one; may be empty."""
        options = self.groups.options(group) if group in schema.groups(self.job_type) else ()
        for cutoff in (1.0, 0.6):
            having: dict[str, list[str]] = {}
            for option in options:
                public = [key for key in self.groups.content(group, option) if not key.startswith("_")]
                for near in get_close_matches(name, public, n=1, cutoff=cutoff):
                    having.setdefault(near, []).append(f"{group}={option}")
            if having:
                near = name if name in having else get_close_matches(name, list(having), n=1)[0]
                verb = "has" if len(having[near]) == 1 else "have"
                *others, last = having[near]
                names = f"{', '.join(others)} and {last}" if others else last
                return f"{names} {verb} {group}.{near}"
        return ""


def _parameters(group: str, part: Mapping[str, Any]) -> list[str] | None:
    """Return the keys that the target of a plugged-in part has parameters for; None if its source does not tell."""
    target = str(part.get("_target_", OWN))
    signature = None
    with suppress(LookupError):
        signature = None if target.startswith(OWN) else signatures.read(target, any_package=True)
    if signature is None or signature.open or signature.is_wrapped:
        return None
    return keys_of(group, signature.annotations)


def keys_of(group: str, parameters: Iterable[str]) -> list[str]:
    """Return the keys that set the parameters of a part: the key of a duration is the parameter without `_steps`."""
    return [name.removesuffix("_steps") if group in DURATIONS else name for name in parameters]


def find(tree: object, path: str) -> Any:
    """Return the value at a dotted path, or a marker that equals no value if there is none."""
    for name in path.split("."):
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return _ABSENT
    return tree


def is_known(tree: Mapping[str, Any], path: str) -> bool:
    """Return whether there is a value at a dotted path."""
    return find(tree, path) is not _ABSENT
