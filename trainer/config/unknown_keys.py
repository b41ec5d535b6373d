"""Unknown keys and options on the command line, with the key that was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.types import Override

from trainer.config import jobs, schema
from trainer.config.groups import Groups
from trainer.config.overrides import is_sweep, variants
from trainer.config.signatures import OWN
from trainer.errors import format_error

_ABSENT: Any = object()


@dataclass(frozen=True)
class KnownKeys:
    """The keys that one verb has.

    Attributes:
        job_type: The verb's job type.
        groups: The groups of all config folders.
        tree: The composed config, not resolved.
    """

    job_type: type
    groups: Groups
    tree: Mapping[str, Any]

    def validate_override(self, override: Override) -> list[str]:
        """Return the problems of the key of an override of a value."""
        path, value = override.key_or_group, override.value()
        if is_sweep(override):
            value = override.get_value_string()
        if override.is_delete():
            return self._validate_deletion(path)
        current = find(self.tree, path)
        if override.is_add() or override.is_force_add():
            # A new key is validated with the composed config, where everything around it is known.
            exists = current is not _ABSENT and not isinstance(value, dict | list)
            remedy = f"Leave out the +: {path}={override.get_value_string()}"
            return [format_error(path, "already exists", remedy)] if exists and override.is_add() else []
        if isinstance(value, dict) and isinstance(current, Mapping):
            inner = [(f"{path}.{key}", item) for key, item in value.items()]
            return [self.unknown(key, item) for key, item in inner if find(self.tree, key) is _ABSENT]
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

    def unknown(self, path: str, value: Any = _ABSENT) -> str:
        """Return the message for an unknown key."""
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent) if parent else self.tree
        if above is _ABSENT:
            return self.unknown(parent)
        shown = {} if value is _ABSENT else {"value": value}
        if above is None and parent in schema.groups(self.job_type):
            options = " or ".join(f"{parent}={option}" for option in self.groups.options(parent))
            return format_error(path, f"no {parent} is chosen", f"Add {options}", **shown)
        if above is None:
            example = "..." if value is _ABSENT else value
            return format_error(
                path, f"{parent} is null and has no keys", f"Set {parent}={{{name}: {example}}}", **shown
            )
        if not isinstance(above, Mapping):
            return format_error(path, f"{parent} is a value and has no keys", **shown)
        return format_error(path, "unknown key", self._remedy(parent, name, above), **shown)

    def _remedy(self, parent: str, name: str, above: Mapping[str, Any]) -> str:
        siblings = [key for key in self._siblings(parent, above) if key != name and not key.startswith("_")]
        prefix = f"{parent}." if parent else ""
        if near := get_close_matches(name, siblings, n=1, cutoff=0.6):
            return f"Did you mean {prefix}{near[0]}?"
        itself = f"{prefix}{name}"
        if elsewhere := [path for path in leaves(self.tree) if path.rpartition(".")[2] == name and path != itself]:
            return f"Did you mean {' or '.join(elsewhere)}?"
        known = f"Known: {', '.join(prefix + key for key in dict.fromkeys(siblings))}" if siblings else "It has no keys"
        return ". ".join(filter(None, [self._other_option(parent, name), known, self._plugged_in(parent, above)]))

    def _siblings(self, parent: str, above: Mapping[str, Any]) -> list[str]:
        """Return the known keys next to an unknown one; other keys of the tree may be wrong as well."""
        sections = schema.sections(self.job_type)
        if not parent:
            presets, stored = jobs.preset_groups(self.job_type), jobs.stored_sections(self.job_type)
            return [*schema.keys(self.job_type), *presets, *stored]
        if parent in sections:
            return list(schema.keys(sections[parent]))
        option = self.groups.option_of(parent, str(above.get("_target_")))
        shared = schema.shared_keys(self.job_type, parent)
        own = self.groups.content(parent, option) if option else map(str, above)
        return [*(schema.keys(shared) if shared else ()), *own]

    def _other_option(self, group: str, name: str) -> str:
        """Return a hint to an option of the group that has the key, or else one with a similar name; may be empty."""
        options = self.groups.options(group) if group in schema.groups(self.job_type) else ()
        for cutoff in (1.0, 0.6):
            for option in options:
                public = [key for key in self.groups.content(group, option) if not key.startswith("_")]
                if near := get_close_matches(name, public, n=1, cutoff=cutoff):
                    return f"{group}={option} has {group}.{near[0]}"
        return ""

    @staticmethod
    def _plugged_in(group: str, part: Mapping[str, Any]) -> str:
        target = str(part.get("_target_", OWN))
        return "" if target.startswith(OWN) else f"Add a key of {target} with +{group}.<key>=<value>"


def validate_choice(override: Override, job_type: type, groups: Groups, chosen: Sequence[str]) -> list[str]:
    """Return the problems of the choice of an option. `chosen` are the groups that have an option by default."""
    group = override.key_or_group
    if override.is_delete():
        required = group in schema.required_groups(job_type)
        return [format_error(group, "cannot be deleted", f"Choose one of {groups.listed(group)}")] if required else []
    if override.package is None and group in chosen and (override.is_add() or override.is_force_add()):
        return [format_error(group, "already exists", f"Leave out the +: {group}={override.get_value_string()}")]
    names: list[Any] = []
    for text in variants(override, groups):
        value = text.partition("=")[2].strip("'\"") if is_sweep(override) else override.value()
        names += value if isinstance(value, list) else [value]
    if is_sweep(override) and not names:
        remedy = f"Known: {groups.listed(group)}"
        return [format_error(group, "matches no option", remedy, value=override.get_value_string())]
    return [problem for name in names for problem in _validate_option(group, name, job_type, groups)]


def _validate_option(group: str, name: Any, job_type: type, groups: Groups) -> list[str]:
    options = groups.options(group)
    if isinstance(name, str) and name.removesuffix(".yaml") in options:
        return []
    if name is None:
        required = group in schema.required_groups(job_type)
        remedy = f"Choose one of {', '.join(options)}" if required else f"Delete it with ~{group}"
        return [format_error(group, "must be the name of an option", remedy, value=None)]
    near = get_close_matches(str(name), options, n=1, cutoff=0.6)
    remedy = f"Did you mean {group}={near[0]}?" if near else f"Known: {', '.join(options)}"
    return [format_error(group, "unknown option", remedy, value=name)]


def find(tree: Any, path: str) -> Any:
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


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the dotted path of every value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
