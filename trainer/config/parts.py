"""Checks of the parts: mappings with a `_target_` and its keyword arguments."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from trainer.config import schema, signatures
from trainer.config.catalogue import Catalogue
from trainer.config.keys import Keys
from trainer.constraints import (
    broken_rules,
    describe,
    fits_type,
    forms,
    is_constrained,
    literals,
    mapping_item,
    value_problems,
)
from trainer.errors import did_you_mean, format_error

OWN = "trainer."
_MEASURED = "optimizer.lr"
"""It may be `auto`: the optimizer then gets what a range test finds."""
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_", "_args_"})


def value_faults(path: str, value: Any, annotation: str) -> list[str]:
    """What is wrong with a value that `annotation` is to hold."""
    if value == "???":
        return [format_error(path, "a value is needed", f"Give {path}=<{describe(annotation)}>")]
    # An interpolation that is still there has been told of already.
    if "${" in str(value):
        return []
    if fits_type(value, annotation):
        return value_problems(path, value, annotation)
    if isinstance(value, Mapping) and value and (inner := mapping_item(annotation)):
        return [fault for key, item in value.items() for fault in value_faults(f"{path}.{key}", item, inner)]
    remedy = forms(annotation)
    if isinstance(value, str) and fits_type([value], annotation):
        remedy = f"Write {path}=[{value}]"
    known = literals(annotation)
    wrong = [item for item in (value if isinstance(value, list) else [value]) if item not in known]
    if wrong and isinstance(wrong[0], str) and did_you_mean(wrong[0], known).startswith("Did you mean"):
        remedy = did_you_mean(wrong[0], known)
    return [format_error(path, f"must be {describe(annotation)}", remedy, value=value)]


def part_faults(group: str, part: Any, keys: Keys) -> list[str]:
    """What is wrong with the part of a group: its target, keys and values."""
    options = f"One of {', '.join(keys.catalogue.options(group))} is needed"
    if part is None and group not in schema.needed_groups(keys.kind):
        return []
    if isinstance(part, Mapping):
        shared = _shared(group, keys)
        faults = [
            fault for key in shared if key in part for fault in value_faults(f"{group}.{key}", part[key], shared[key])
        ]
        return faults + _own_faults(group, {key: value for key, value in part.items() if key not in shared}, keys)
    return [format_error(group, "must be the name of an option", options, value=part)]


def _shared(group: str, keys: Keys) -> Mapping[str, str]:
    """The keys that every option of a group has, with their annotations."""
    kind = schema.shared_keys(keys.kind, group)
    return {} if kind is None else schema.keys(kind)


def _own_faults(group: str, part: Mapping[str, Any], keys: Keys) -> list[str]:
    options = f"One of {', '.join(keys.catalogue.options(group))} is needed"
    target = part.get("_target_")
    if not isinstance(target, str) or target == "???":
        return [
            format_error(f"{group}._target_", "must be the dotted name of a class or function", options, value=target)
        ]
    if not target.startswith(OWN):
        return _foreign_faults(group, part, target)
    try:
        found = signatures.read(target)
    except LookupError as error:
        return [format_error(f"{group}._target_", "names nothing", str(error), value=target)]
    if found is None:
        return []
    faults: list[str] = []
    bad: set[str] = set()
    for key, value in part.items():
        path = f"{group}.{key}"
        annotation = "Any" if key in HYDRA_KEYS else found.annotation(str(key))
        if path == _MEASURED and annotation is not None:
            annotation += " | Literal['auto']"
        wrong = [keys.unknown(path, value)] if annotation is None else value_faults(path, value, annotation)
        faults += wrong
        bad |= {str(key)} if wrong else set()
    faults += broken_rules(part, found.rules, prefix=f"{group}.", skip=frozenset(bad))
    return [*faults, *_left_out(group, part, target, found, keys.catalogue), *_inner_faults(group, part, keys)]


def _inner_faults(group: str, part: Mapping[str, Any], keys: Keys) -> Iterator[str]:
    """The keys of mappings in a part that there are not; the target's own option says which there are."""
    option = keys.catalogue.option_of(group, str(part["_target_"]))
    for name, written in keys.catalogue.content(group, option).items() if option else ():
        value = part.get(name)
        if isinstance(written, Mapping) and written and isinstance(value, Mapping):
            yield from (keys.unknown(f"{group}.{name}.{key}", value[key]) for key in value if key not in written)


def _foreign_faults(group: str, part: Mapping[str, Any], target: str) -> list[str]:
    package = target.partition(".")[0]
    if not package.isidentifier() or "." not in target:
        problem = "must be a dotted name of a class or function"
        return [format_error(f"{group}._target_", problem, "Such as my_package.MyLoss", value=target)]
    missing = [value_faults(f"{group}.{key}", value, "Any") for key, value in part.items() if value == "???"]
    if find_spec(package) is None:
        remedy = "Packages are looked for in the working directory and where Python finds them"
        missing.append([format_error(f"{group}._target_", f"there is no package {package}", remedy, value=target)])
    else:
        missing.append(_user_faults(group, part, target))
    return [fault for faults in missing for fault in faults]


def _user_faults(group: str, part: Mapping[str, Any], target: str) -> list[str]:
    """What is wrong with a part of the working directory: its name, and what it declares of its arguments."""
    try:
        found = signatures.read(target)
    except LookupError as error:
        return [format_error(f"{group}._target_", str(error).rstrip("."), value=target)]
    if found is None:
        return []
    declared = {key: found.annotation(str(key)) or "Any" for key in part if key not in HYDRA_KEYS}
    wrong = {
        key: value_faults(f"{group}.{key}", part[key], text) for key, text in declared.items() if is_constrained(text)
    }
    bad = frozenset(str(key) for key, faults in wrong.items() if faults)
    faults = [fault for faults in wrong.values() for fault in faults]
    return faults + broken_rules(part, found.rules, prefix=f"{group}.", skip=bad)


def _left_out(
    group: str, part: Mapping[str, Any], target: str, found: signatures.Signature, catalogue: Catalogue
) -> list[str]:
    option = catalogue.option_of(group, target)
    return [
        format_error(f"{group}.{key}", "is needed", f"{group}={option} gives {value!r}")
        for key, value in _lacking(group, part, found, catalogue).items()
    ]


def _lacking(group: str, part: Mapping[str, Any], found: signatures.Signature, catalogue: Catalogue) -> dict[str, Any]:
    """Required parameters that the target's own option gives and this part does not, as that option gives them."""
    option = catalogue.option_of(group, str(part["_target_"]))
    written = catalogue.content(group, option) if option else {}
    return {key: value for key, value in written.items() if key not in part and {key, f"{key}_steps"} & found.required}


def completed(group: str, part: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """A part that was sound when it was stored, with the keys that its target has got since, at their defaults."""
    target = part.get("_target_")
    if not isinstance(target, str) or not target.startswith(OWN):
        return dict(part)
    try:
        found = signatures.read(target)
    except LookupError:
        return dict(part)
    return dict(part) if found is None else {**part, **_lacking(group, part, found, catalogue)}


def without_replaced(
    config: Mapping[str, Any], choices: Mapping[str, str | None], given: Collection[str], catalogue: Catalogue
) -> dict[str, Any]:
    """The configuration without the keys of an option whose `_target_` has been replaced by another.

    Such a key was meant for what the option names. Kept are the keys in `given` (dotted, from the command line), the
    keys that the chosen experiment and debug options give for the group, and Hydra's own (`_target_`, `_partial_`).
    """
    explicit = set(given)
    for group in ("experiment", "debug"):
        content = catalogue.content(group, choices.get(group) or "")
        explicit |= {f"{name}.{key}" for name, part in content.items() if isinstance(part, Mapping) for key in part}
    kept = dict(config)
    for group, part in config.items():
        option = catalogue.content(group, choices.get(group) or "")
        if not isinstance(part, Mapping) or option.get("_target_") in (None, part.get("_target_")):
            continue
        kept[group] = {
            key: value
            for key, value in part.items()
            if key in HYDRA_KEYS or f"{group}.{key}" in explicit or key not in option
        }
    return kept
