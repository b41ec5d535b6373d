"""Names of validation sets: the split `validation`, or a split `validation/<name>` for each of several sets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from trainer.errors import did_you_mean, format_error

VALIDATION: Final = "validation"

SPLIT_PATTERN: Final = r"train|test|validation(/[A-Za-z][\w-]*)?"
"""The names of splits, as a regular expression."""

_MAX_LENGTH: Final = 128
"""The most characters of a name, which is a part of the names of files."""

_RESERVED: Final = ("train", "validation", "test")
_IMAGE_FILES: Final = {"images", "labels"}
"""The two files of one set of the source `idx`."""


def validation_of(data: object) -> object:
    """Return what the keys of a source name as validation data: `data.validation`, or `data.splits.validation`."""
    if not isinstance(data, Mapping):
        return None
    splits = data.get("splits")
    return splits.get(VALIDATION) if isinstance(splits, Mapping) else data.get(VALIDATION)


def named_sets(validation: object) -> list[str]:
    """Return the names of several validation sets, for the argument `validation` of a source; none for a single set."""
    if not isinstance(validation, Mapping) or is_image_set(validation):
        return []
    # The two files of `idx`, which are null by default, stay next to the names of sets.
    return [str(name) for name, value in validation.items() if value is not None or name not in _IMAGE_FILES]


def is_image_set(validation: object) -> bool:
    """Return whether an argument `validation` is the two files of one set of images."""
    return isinstance(validation, Mapping) and set(validation) == _IMAGE_FILES


def by_split(validation: object) -> dict[str, Any]:
    """Return the data of each validation split, for the argument `validation` of a source."""
    names = named_sets(validation)
    return {set_split(name): validation[name] for name in names} if names else {VALIDATION: validation}  # type: ignore[index]


def set_split(name: str) -> str:
    """Return the split of a named validation set."""
    return f"{VALIDATION}/{name}"


def is_validation(split: object) -> bool:
    """Return whether a split is a validation set."""
    return isinstance(split, str) and split.partition("/")[0] == VALIDATION


def validation_splits(splits: Iterable[str]) -> list[str]:
    """Return the validation sets among some splits, in their order."""
    return [split for split in splits if is_validation(split)]


def file_stem(split: str) -> str:
    """Return the name of a split in file names and keys: `validation.clean`."""
    return split.replace("/", ".")


def describe_split(split: str) -> str:
    """Return a split in words: `the test split`, `the validation set clean`."""
    kind, _, name = split.partition("/")
    return f"the {kind} set {name}" if name else f"the {split} split"


def select_monitored(monitor: str | None, splits: Sequence[str]) -> tuple[str, str | None]:
    """Return the validation split and the metric that `checkpoint.monitor` names: the first one and None by default.

    Args:
        monitor: A metric, `<set>/<metric>`, or None.
        splits: The validation splits.
    """
    name, _, metric = (monitor or "").partition("/")
    if set_split(name) in splits:
        return set_split(name), metric or None
    return splits[0], monitor


def name_problems(validation: object, key: str = f"data.{VALIDATION}") -> Iterator[str]:
    """Yield a message for each name of a validation set that cannot be one; `key` names the sets."""
    if isinstance(validation, Mapping) and not validation:
        yield format_error(key, "names no set", "Set a file or a split, or null", value={})
    names = named_sets(validation)
    for number, name in enumerate(names):
        if alike := [other for other in names[:number] if other.casefold() == name.casefold()]:
            problem = f"differs from {alike[0]!r} in case only, so some disks would keep one file for both"
            yield format_error(key, problem, "Rename one of them", value=name)
        valid = name.isascii() and name[:1].isalpha() and name.replace("-", "_").isidentifier()
        if not valid or name in _RESERVED or len(name) > _MAX_LENGTH:
            problem = "the name of a validation set is letters, digits, _ and -, from a letter, and no other split"
            problem += f", at most {_MAX_LENGTH} characters" if len(name) > _MAX_LENGTH else ""
            yield format_error(key, problem, "Rename it", value=name)


def set_problem(monitor: object, validation: object) -> str | None:
    """Return the message about a set in `checkpoint.monitor` that does not exist; None if there is none."""
    names = named_sets(validation)
    name, separator, _ = monitor.partition("/") if isinstance(monitor, str) else ("", "", "")
    if not separator or not names or name in names:
        return None
    problem = f"there is no validation set {name!r}"
    return format_error("checkpoint.monitor", problem, did_you_mean(name, names), value=monitor)
