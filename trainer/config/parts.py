"""Validation of parts: the target of each, its keys and their values."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from itertools import chain
from typing import Any, Literal

from trainer.config import schema, signatures
from trainer.config.compatibility import value_at
from trainer.config.foreign_names import foreign_value
from trainer.config.groups import HYDRA_KEYS, OWN, Groups, is_local
from trainer.config.keys import DURATIONS, KnownKeys, is_named_set, keys_of
from trainer.config.signatures import Signature
from trainer.constraints.annotations import is_constrained, literals, mapping_item, mapping_keys
from trainer.constraints.descriptions import describe, forms
from trainer.constraints.rules import broken_rules
from trainer.constraints.values import fits_type, value_problems
from trainer.durations import LENGTH_FORMS
from trainer.errors import did_you_mean, format_error, show_value

MEASURED = "optimizer.lr"
"""A key that may be `auto`; the optimizer then gets the value that a range test selects."""

CALL_ARGUMENTS = {"scheduler": 1, "prune": 1, "export": 2}
"""Number of arguments by position that a target gets in a call if it is the part itself."""

HYDRA_KEY_TYPES: Mapping[str, object] = {
    "_partial_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_recursive_": bool,
    "_args_": list,
}
"""Keys with which Hydra makes a part that is plugged in."""

_TASK_INFO = f"{OWN}protocols.TaskInfo"
_BUILDER_ARGUMENTS: Mapping[str, frozenset[str]] = {
    "model": frozenset({"architecture"}),
    "loss": frozenset({"teacher_model"}),
    "optimizer": frozenset({"params", "hidden"}),
    "scheduler": frozenset({"total_steps"}),
    "prune": frozenset({"seed"}),
    "perturb": frozenset({"target"}),
    "metrics": frozenset({"num_outputs", "task", "num_classes", "num_labels"}),
}
"""Parameters that `builders` fills in by name. Models and losses also get the fields of `TaskInfo`."""

_METRIC_KEYS = dict.fromkeys(("compute_on_cpu", "compute_with_cache", "sync_on_compute"), bool)
"""Keys of every metric of torchmetrics."""


def validate_value(path: str, value: object, annotation: object) -> list[str]:
    """Return the problems of a value that must fit `annotation`."""
    if value == "???":
        return [format_error(path, "needs a value", f"Set {path}=<{describe(annotation)}>")]
    # An interpolation that is still there has been reported already.
    if "${" in str(value):
        return []
    if fits_type(value, annotation):
        return value_problems(path, value, annotation)
    if isinstance(value, Mapping) and (allowed := mapping_keys(annotation)):
        unknown = [(f"{path}.{key}", str(key), item) for key, item in value.items() if key not in allowed]
        if unknown:
            return [
                format_error(at, "unknown key", did_you_mean(key, allowed), value=item) for at, key, item in unknown
            ]
    if isinstance(value, Mapping) and value and (inner := mapping_item(annotation)):
        return [problem for key, item in value.items() for problem in validate_value(f"{path}.{key}", item, inner)]
    remedy = LENGTH_FORMS if path == "train.duration" else forms(annotation)
    if isinstance(value, str) and fits_type([value], annotation):
        remedy = f"Write {path}=[{value}]"
    elif value is None:
        remedy = "Leave it out to keep its default"
    if path == "device" and type(value) is int:
        remedy = f"Set device=cuda:{value} for one GPU, or devices=N for several"
    if (here := foreign_value(path, value)) is not None:
        remedy = f"Set {path}={here}"
    # The message lists all values, so a remote guess would only mislead: 8-bit floats are not "fp32".
    known = literals(annotation)
    wrong = [item for item in (value if isinstance(value, list) else [value]) if item not in known]
    if wrong and isinstance(wrong[0], str) and (near := get_close_matches(wrong[0], known, n=1, cutoff=0.6)):
        remedy = f"Did you mean {near[0]}"
    return [format_error(path, f"must be {describe(annotation)}", remedy, value=value)]


def validate_part(group: str, part: object, known: KnownKeys) -> list[str]:
    """Return the problems of the part of a group: its target, keys and values."""
    if part is None and group not in schema.required_groups(known.job_type):
        return []
    remedy = f"Choose one of {known.groups.listed(group)}"
    if not isinstance(part, Mapping):
        return [format_error(group, "must be the name of an option", remedy, value=part)]
    shared = schema.shared_keys(known.job_type, group)
    values = ((key, part[key]) for key in shared if key in part)
    problems = [problem for key, value in values for problem in validate_value(f"{group}.{key}", value, shared[key])]
    own = {str(key): value for key, value in part.items() if key not in shared}
    target = part.get("_target_")
    if not isinstance(target, str) or target == "???":
        problem = "must be the dotted name of a class or function"
        return [*problems, format_error(f"{group}._target_", problem, remedy, value=target)]
    signature, wrong_target = read_signature(group, target)
    checked = {key: _validate_key(group, key, value, target, signature, known) for key, value in own.items()}
    problems += [*chain.from_iterable(checked.values()), *wrong_target]
    if signature is None:
        installed = None if wrong_target else _installed_signature(target)
        return [*problems, *_argument_problems(group, own, installed, known.tree)]
    problems += [format_error(f"{group}._target_", *fault, value=target) for fault in signature.faults]
    wrong = frozenset(key for key, messages in checked.items() if messages or _makes_object(own[key]))
    problems += [] if signature.faults else broken_rules(own, signature.rules, prefix=f"{group}.", skip=wrong)
    if target.startswith(OWN):
        return [*problems, *_validate_option_keys(group, own, signature, known)]
    return [*problems, *_argument_problems(group, own, signature, known.tree)]


def validate_entry(path: str, entry: Mapping[str, Any], known: KnownKeys, names: Collection[str] = ()) -> list[str]:
    """Return the problems of an entry of a list that makes an object of a class of your own.

    Args:
        path: The full key of the entry.
        entry: Its `_target_` and keys.
        known: The keys of the job.
        names: Keys that are not for the class.
    """
    target = str(entry["_target_"])
    signature, problems = read_signature(path, target)
    own = {str(key): value for key, value in entry.items() if key not in names}
    if signature is None:
        return problems or _argument_problems(path, own, _installed_signature(target), known.tree)
    values = (
        _validate_own_value(f"{path}.{key}", value, annotation, known)
        for key, value in own.items()
        if key not in HYDRA_KEYS and (annotation := signature.annotation(key)) is not None
    )
    return [*chain.from_iterable(values), *_argument_problems(path, own, signature, known.tree)]


def _installed_signature(target: str) -> Signature | None:
    """Return the signature of a class or function of an installed package, as far as its source tells."""
    try:
        signature = signatures.read(target, any_package=True)
    except LookupError:  # other packages may create their names during the import
        return None
    if signature is None or not target.startswith("torchmetrics.") or not signature.open:
        return signature
    # Its classes pass further keys on to their base class, whose error would name none that exist.
    return replace(signature, annotations={**signature.annotations, **_METRIC_KEYS}, open=False)


def _argument_problems(
    group: str, part: Mapping[str, Any], signature: Signature | None, tree: Mapping[str, Any]
) -> list[str]:
    """Return the keys for which a plugged-in part has no parameter, and the parameters that it lacks."""
    if signature is None or signature.is_wrapped:
        return []
    target, is_open = str(part["_target_"]), signature.open
    names = _parameters(group, part, signature)
    unknown = [] if is_open else [key for key in part if key not in HYDRA_KEYS and not _takes(group, key, names)]
    missing = _missing_arguments(group, part, signature, tree)
    return [
        *(unknown_argument(group, key, part[key], target, names) for key in unknown),
        *(missing_argument(group, name, target) for name in missing),
    ]


def _parameters(group: str, part: Mapping[str, Any], signature: Signature) -> list[str]:
    """Return the parameters of a part that its keys can set."""
    is_part = is_the_part(group, part, signature.annotations, is_class=signature.is_class)
    return list(signature.annotations)[CALL_ARGUMENTS.get(group, 0) if is_part else 0 :]


def _takes(group: str, key: str, names: Collection[str]) -> bool:
    return key in names or (group in DURATIONS and f"{key}_steps" in names)


def is_the_part(group: str, part: Mapping[str, Any], names: Collection[str], *, is_class: bool) -> bool:
    """Return whether a target is the part, its arguments bound, instead of making the part.

    A replaced `_target_` keeps the `_partial_` of its option, but a class always makes the part, and a function of the
    step (one of its parameters' `names`) is a schedule.
    """
    return not is_class and (bool(part.get("_partial_")) or (group == "scheduler" and "step" in names))


def unknown_argument(group: str, key: str, value: object, target: str, names: Collection[str]) -> str:
    """Return the message about a key for which a target has no parameter; `names` are the parameters that it has."""
    keys = keys_of(group, names)
    # An entry of a list, such as `metrics.0`, cannot be changed by itself.
    leave_out = f"Leave it out, with '~{group}.{key}' if a file sets it" if group.isidentifier() else "Leave it out"
    near = get_close_matches(key, keys, n=1, cutoff=0.6)
    known = f"Its parameters are {', '.join(keys)}. {leave_out}" if keys else f"It has none. {leave_out}"
    remedy = f"Did you mean {near[0]}" if near else known
    return format_error(f"{group}.{key}", f"{target} has no such parameter", remedy, value=value)


def missing_argument(group: str, name: str, target: str) -> str:
    """Return the message about a required parameter that nobody sets; `x_steps` of a duration is the key `x`."""
    is_duration = group in DURATIONS and name.endswith("_steps")
    key, value = (name.removesuffix("_steps"), "5%") if is_duration else (name, "<value>")
    remedy = f"Set ++{group}.{key}={value}, or give {name} a default"
    if "." in group:  # an entry of a list
        remedy = f"Add {name}: {value} to the entry, or give {name} a default"
    return format_error(f"{group}.{key}", f"is missing; {target} needs it for its parameter {name}", remedy)


def _missing_arguments(group: str, part: Mapping[str, Any], signature: Signature, tree: Mapping[str, Any]) -> list[str]:
    """Return the required parameters of a plugged-in part that neither its keys nor `builders` set."""
    task, kind = value_at(tree, "task._target_"), group.partition(".")[0]
    # The facts of another task may have more fields; then it is checked when the part is made.
    is_own_task = isinstance(task, str) and task.startswith(OWN)
    if "_args_" in part or (group in ("model", "loss") and not is_own_task):
        return []
    provided = {*part, *_BUILDER_ARGUMENTS.get(kind, ())}
    if group in DURATIONS:
        provided |= {f"{key}_steps" for key in part}
    if group in ("model", "loss") and (task_info := signatures.read(_TASK_INFO)):
        provided |= task_info.annotations.keys()
    return [name for name in _parameters(group, part, signature) if name in signature.required - provided]


def read_signature(group: str, target: str) -> tuple[Signature | None, list[str]]:
    """Return the signature of a target if its source can be read, and the problem of the target."""
    package = target.partition(".")[0]
    if not package.isidentifier() or "." not in target:
        problem, remedy = "must be the dotted name of a class or function", "Write it like my_package.MyLoss"
    elif find_spec(package) is None and not is_local(package):
        problem, remedy = f"there is no package {package}", "Install it, or put it in the working directory"
    else:
        try:
            return signatures.read(target), []
        except LookupError as error:
            problem, _, remedy = str(error).partition(". ")
            problem = problem.rstrip(".")
    return None, [format_error(f"{group}._target_", problem, remedy, value=target)]


def _validate_key(
    group: str, key: str, value: object, target: str, signature: Signature | None, known: KnownKeys
) -> list[str]:
    """Return the problems of a key of a part; a user's own part has any key, and values are free unless limited."""
    path = f"{group}.{key}"
    if key in HYDRA_KEYS:
        return _validate_hydra_key(group, key, value, target, known)
    annotation = key_annotation(group, key, target, signature)
    if annotation is None:
        return [known.unknown(path, value)]
    validate = validate_value if target.startswith(OWN) else partial(_validate_own_value, known=known)
    return validate(path, value, annotation)


def _validate_own_value(path: str, value: object, annotation: object, known: KnownKeys) -> list[str]:
    """Return the problems of a value of a part of your own.

    In a stored config, plain types are not checked: the part took the value when the run was made.
    """
    is_free = _makes_object(value) or (known.is_stored and not is_constrained(annotation))
    return [] if is_free else validate_value(path, value, annotation)


def _makes_object(value: object) -> bool:
    """Return whether a value contains a `_target_`, in whose place the part gets the object that it makes."""
    if isinstance(value, Mapping):
        return "_target_" in value or any(map(_makes_object, value.values()))
    return isinstance(value, list) and any(map(_makes_object, value))


def key_annotation(group: str, key: str, target: str, signature: Signature | None) -> object | None:
    """Return the annotation of a key of a part that is no key of Hydra; None if the part has no such key."""
    annotation: Any = Any if signature is None else signature.annotation(key)
    if annotation is None and not target.startswith(OWN):
        annotation = Any  # `_argument_problems` reports a key that the part does not take
    elif annotation is not None and f"{group}.{key}" == MEASURED and target.startswith(OWN):
        annotation |= Literal["auto"]
    checked: object | None = annotation
    return checked


def _validate_hydra_key(group: str, key: str, value: object, target: str, known: KnownKeys) -> list[str]:
    """Return the problems of a key with which Hydra makes a part; a part of this project has the keys of its option."""
    path = f"{group}.{key}"
    if key == "_target_":
        return []
    if target.startswith(OWN):
        option = known.groups.option_of(group, target)
        content = known.groups.content(group, option) if option else {}
        if key not in content:
            return [format_error(path, f"has no effect on {target}", "Leave it out", value=value)]
        required = content[key]
        return [] if value is required else [format_error(path, f"must be {show_value(required)}", value=value)]
    if key == "_partial_" and value is True and group not in CALL_ARGUMENTS:
        return [format_error(path, f"must be false, as a {group} is made with its keys", value=value)]
    return validate_value(path, value, HYDRA_KEY_TYPES[key])


def _validate_option_keys(group: str, part: Mapping[str, Any], signature: Signature, known: KnownKeys) -> Iterator[str]:
    """Yield a message for each key that a part lacks, and for each unknown key of a mapping in it.

    The option of the target defines which keys exist.
    """
    option = known.groups.option_of(group, str(part["_target_"]))
    for key, value in _missing_keys(group, part, signature, known.groups).items():
        yield format_error(f"{group}.{key}", "is missing", f"{group}={option} sets {value!r}")
    for name, written in known.groups.content(group, option).items() if option else ():
        value = part.get(name)
        if isinstance(written, Mapping) and written and isinstance(value, Mapping):
            inner = {f"{group}.{name}.{key}": item for key, item in value.items() if key not in written}
            yield from (known.unknown(path, item) for path, item in inner.items() if not is_named_set(path, item))


def _missing_keys(group: str, part: Mapping[str, Any], signature: Signature, groups: Groups) -> dict[str, Any]:
    """Return the required keys that a part lacks, with the values that its target's own option sets."""
    option = groups.option_of(group, str(part["_target_"]))
    written = groups.content(group, option) if option else {}
    required = signature.required
    return {key: value for key, value in written.items() if key not in part and {key, f"{key}_steps"} & required}


def complete_part(group: str, part: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """Return a part that was valid when it was stored, with the defaults of keys that its target has gained since.

    A key that a mapping in it has gained is null by default.
    """
    target = part.get("_target_")
    if not isinstance(target, str) or not target.startswith(OWN):
        return dict(part)
    signature, _ = read_signature(group, target)
    if signature is None:
        return dict(part)
    option = groups.content(group, groups.option_of(group, target) or "")
    inner = {
        name: {**{key: None for key, value in default.items() if value is None}, **part[name]}
        for name, default in option.items()
        if isinstance(default, Mapping) and isinstance(part.get(name), Mapping)
    }
    return {**part, **inner, **_missing_keys(group, part, signature, groups)}
