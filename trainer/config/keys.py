"""Keys that do not exist, and what was probably meant."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hydra.core.override_parser.types import Override

from trainer.config import jobs, schema
from trainer.config.catalogue import Catalogue
from trainer.config.overrides import is_sweep, variants
from trainer.errors import format_error

_ABSENT: Any = object()


@dataclass(frozen=True)
class Keys:
    """What may be given for one verb.

    Attributes:
        kind: The verb's schema.
        catalogue: The configuration folders.
        tree: The composed configuration, not resolved.
    """

    kind: type
    catalogue: Catalogue
    tree: Mapping[str, Any]

    def faults(self, override: Override) -> list[str]:
        """What is wrong with the key of an override of a value."""
        path, value = override.key_or_group, override.value()
        if is_sweep(override):
            value = override.get_value_string()
        if override.is_delete():
            return self._deletion_faults(path)
        if override.is_add() or override.is_force_add():
            # A key that is new is judged with the composed configuration, where its whole surrounding is known.
            known = find(self.tree, path) is not _ABSENT and not isinstance(value, dict | list)
            remedy = f"Leave out the +: {path}={override.get_value_string()}"
            return [format_error(path, "is there already", remedy)] if known and override.is_add() else []
        if isinstance(value, dict) and isinstance(find(self.tree, path), Mapping):
            inner = [(f"{path}.{key}", item) for key, item in value.items()]
            return [self.unknown(key, item) for key, item in inner if find(self.tree, key) is _ABSENT]
        return [] if find(self.tree, path) is not _ABSENT or self.is_open(path) else [self.unknown(path, value)]

    def is_open(self, path: str) -> bool:
        """Whether a key is new in a mapping whose keys are another library's, which its part checks: `model.config`."""
        parts = path.split(".")
        above = find(self.tree, ".".join(parts[:2]))
        return len(parts) > 2 and parts[0] in schema.groups(self.kind) and above == {}

    def _deletion_faults(self, path: str) -> list[str]:
        if find(self.tree, path) is _ABSENT:
            return [self.unknown(path)]
        top = path.split(".")[0]
        if top in schema.groups(self.kind) and path != top:
            return []
        return [format_error(path, "cannot be left out", "Give it a value; null turns off what can be turned off")]

    def unknown(self, path: str, value: Any = _ABSENT) -> str:
        """The message for a key that there is not."""
        parent, _, name = path.rpartition(".")
        above = find(self.tree, parent) if parent else self.tree
        if above is _ABSENT:
            return self.unknown(parent)
        shown = {} if value is _ABSENT else {"value": value}
        if above is None and parent in schema.groups(self.kind):
            options = " or ".join(f"{parent}={option}" for option in self.catalogue.options(parent))
            return format_error(path, f"no {parent} is chosen", f"Add {options}", **shown)
        if above is None:
            given = "..." if value is _ABSENT else value
            return format_error(
                path, f"{parent} is null and has no keys", f"Give {parent}={{{name}: {given}}}", **shown
            )
        if not isinstance(above, Mapping):
            return format_error(path, f"{parent} is a value and has no keys", **shown)
        return format_error(path, "there is no such key", self._remedy(parent, name, above), **shown)

    def _remedy(self, parent: str, name: str, above: Mapping[str, Any]) -> str:
        siblings = [key for key in self._siblings(parent, above) if key != name and not key.startswith("_")]
        prefix = f"{parent}." if parent else ""
        if near := get_close_matches(name, siblings, n=1, cutoff=0.6):
            return f"Did you mean {prefix}{near[0]}"
        itself = f"{prefix}{name}"
        if elsewhere := [path for path in leaves(self.tree) if path.rpartition(".")[2] == name and path != itself]:
            return f"Did you mean {' or '.join(elsewhere)}"
        known = f"Known: {', '.join(prefix + key for key in dict.fromkeys(siblings))}" if siblings else "It has no keys"
        return ". ".join(filter(None, [self._other_option(parent, name), known, self._foreign(parent, above)]))

    def _siblings(self, parent: str, above: Mapping[str, Any]) -> list[str]:
        """The keys that there are beside a wrong one; others may be wrong as well."""
        sections = schema.sections(self.kind)
        if not parent:
            return [*schema.keys(self.kind), *jobs.bare_groups(self.kind), *jobs.stored_sections(self.kind)]
        if parent in sections:
            return list(schema.keys(sections[parent]))
        option = self.catalogue.option_of(parent, str(above.get("_target_")))
        shared = schema.shared_keys(self.kind, parent)
        return (list(schema.keys(shared)) if shared else []) + list(
            self.catalogue.content(parent, option) if option else map(str, above)
        )

    def _other_option(self, group: str, name: str) -> str:
        for option in self.catalogue.options(group) if group in schema.groups(self.kind) else ():
            public = [key for key in self.catalogue.content(group, option) if not key.startswith("_")]
            if near := get_close_matches(name, public, n=1, cutoff=0.6):
                return f"{group}={option} has {group}.{near[0]}"
        return ""

    @staticmethod
    def _foreign(group: str, part: Mapping[str, Any]) -> str:
        target = str(part.get("_target_", "trainer."))
        return "" if target.startswith("trainer.") else f"A key of {target} is added with +{group}.<key>=<value>"


def group_faults(override: Override, kind: type, catalogue: Catalogue, chosen: Sequence[str]) -> list[str]:
    """What is wrong with the choice of an option. `chosen` are the groups that have one by default."""
    group = override.key_or_group
    if override.is_delete():
        needed = group in schema.needed_groups(kind)
        return (
            [format_error(group, "cannot be left out", f"One of {_listed(group, catalogue)} is needed")]
            if needed
            else []
        )
    if override.package is None and group in chosen and (override.is_add() or override.is_force_add()):
        return [format_error(group, "is there already", f"Leave out the +: {group}={override.get_value_string()}")]
    names: list[Any] = []
    for text in variants(override, catalogue):
        value = _read_value(text) if is_sweep(override) else override.value()
        names += value if isinstance(value, list) else [value]
    if is_sweep(override) and not names:
        return [
            format_error(
                group, "no option fits", f"Known: {_listed(group, catalogue)}", value=override.get_value_string()
            )
        ]
    return [fault for name in names for fault in _option_faults(group, name, kind, catalogue)]


def _read_value(text: str) -> str:
    return text.partition("=")[2].strip("'\"")


def _option_faults(group: str, name: Any, kind: type, catalogue: Catalogue) -> list[str]:
    options = catalogue.options(group)
    if isinstance(name, str) and name.removesuffix(".yaml") in options:
        return []
    if name is None:
        needed = group in schema.needed_groups(kind)
        remedy = f"One of {', '.join(options)} is needed" if needed else f"~{group} leaves it out"
        return [format_error(group, "must be the name of an option", remedy, value=None)]
    near = get_close_matches(str(name), options, n=1, cutoff=0.6)
    remedy = f"Did you mean {group}={near[0]}" if near else f"Known: {', '.join(options)}"
    return [format_error(group, "there is no such option", remedy, value=name)]


def _listed(group: str, catalogue: Catalogue) -> str:
    return ", ".join(catalogue.options(group))


def find(tree: Any, path: str) -> Any:
    """The value at a dotted path, or a marker that no value equals where there is none."""
    for name in path.split("."):
        if isinstance(tree, Mapping) and name in tree:
            tree = tree[name]
        elif isinstance(tree, list) and name.isdecimal() and int(name) < len(tree):
            tree = tree[int(name)]
        else:
            return _ABSENT
    return tree


def is_known(tree: Mapping[str, Any], path: str) -> bool:
    """Whether there is a value at a dotted path."""
    return find(tree, path) is not _ABSENT


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted path of every value."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
