"""The check of a value against an annotation, and the paths in a value."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from types import NoneType
from typing import Annotated, Any, Final, Literal, NamedTuple, Union, get_args

from trainer.constraints.annotations import (
    RANGES,
    AllowInfinity,
    Note,
    PathTo,
    alternatives,
    fixed_items,
    is_duration,
    is_time,
    item_of,
    metadata_of,
    numbers_of,
    origin_of,
    walk,
)
from trainer.constraints.descriptions import describe
from trainer.display import counted
from trainer.durations import parse, parse_time
from trainer.errors import format_error

_MAX_NAME: Final = 255
"""Bytes that a file system allows in the name of a file or folder."""
_MAX_PATH: Final = 3072
"""Bytes of a path: Linux allows 4,096, and the working folder and the files inside a folder take some of them."""
_LARGEST: Final[float] = 3.4028234663852886e38
"""The largest number of float32."""


def _is_float(value: float) -> bool:
    """Return whether a number is no bool and not beyond the floating-point numbers, as an integer may be."""
    return not isinstance(value, bool) and (isinstance(value, float) or abs(value) < 2**1024)


_FITS: Final[dict[object, Callable[[object], bool]]] = {
    int: lambda value: isinstance(value, int) and not isinstance(value, bool),
    float: lambda value: isinstance(value, int | float) and _is_float(value),
    bool: lambda value: isinstance(value, bool),
    str: lambda value: isinstance(value, str),
    NoneType: lambda value: value is None,
}
"""For each type, the function that tells if a value has it."""


def value_problems(key: str, value: object, annotation: object) -> list[str]:
    """Return a message for each problem of a value that `annotation` does not allow.

    An int is a float, a bool is no int. An annotation that this module does not know allows every value.
    """
    # The text of an annotation would allow everything.
    assert not isinstance(annotation, str), annotation
    if not fits_type(value, annotation):
        return [format_error(key, f"must be {describe(annotation)}", value=value)]
    problems = _range_problems(value, annotation)
    return list(dict.fromkeys(format_error(f"{key}{path}", text, value=item) for text, item, path in problems))


def character_problems(value: object, key: str = "") -> Iterator[str]:
    """Yield a message for each text in a config whose characters no file can take: NUL, and what is not UTF-8."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from character_problems(str(name), f"{key}: a name")
            yield from character_problems(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from character_problems(item, key)
    elif isinstance(value, str) and "\0" in value:
        yield format_error(key, "contains a NUL character", "Leave it out", value=value)
    elif isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        # Python decodes bytes of a command line that are not UTF-8 to these characters.
        yield format_error(key, "is not UTF-8", "Encode it as UTF-8", value=value)


def fits_type(value: object, annotation: object) -> bool:
    """Return whether `annotation` allows values of this type, in range or not."""
    origin, arguments = origin_of(annotation), get_args(annotation)
    if origin is Union:
        return any(fits_type(value, alternative) for alternative in arguments)
    if origin is Literal:
        return any(type(value) is type(known) and value == known for known in arguments)
    if origin is Annotated:
        return fits_type(value, arguments[0]) and not (
            (is_duration(annotation) and parse(value) is None) or (is_time(annotation) and parse_time(value) is None)
        )
    if origin in _FITS:
        return _FITS[origin](value)
    if origin is Mapping:
        good = isinstance(value, Mapping)
    elif origin is Sequence or origin is tuple:
        fixed = fixed_items(annotation)
        good = isinstance(value, list | tuple) and (fixed is None or len(fixed) == len(value))
    else:
        return True
    return good and all(fits_type(item, inner) for item, inner, _ in _items(value, annotation))


def paths_in(
    value: object, annotation: object, about: PathTo | None = None, key: str = ""
) -> Iterator[tuple[str, PathTo, str]]:
    """Yield each path in a value, its metadata, and its key in the value (`.key` in a mapping, else empty)."""
    for alternative in alternatives(annotation):
        if origin_of(alternative) is Annotated:
            inner = next((item for item in metadata_of(alternative) if isinstance(item, PathTo)), about)
            yield from paths_in(value, get_args(alternative)[0], inner, key)
        elif alternative is str and isinstance(value, str) and about is not None:
            yield value, about, key
        else:
            for item, inner_annotation, path in _items(value, alternative):
                yield from paths_in(item, inner_annotation, about, f"{key}{path}")


def map_paths(value: object, annotation: object, change: Callable[[str, PathTo], str]) -> object:
    """Return the value with each of its paths changed, in lists and mappings too, also in the keys of mappings."""
    return _replaced(value, {path: change(path, about) for path, about, _ in paths_in(value, annotation)})


def _replaced(value: object, changed: Mapping[str, str]) -> object:
    if isinstance(value, list | tuple):
        return [_replaced(item, changed) for item in value]
    if isinstance(value, Mapping):
        return {changed.get(key, key): _replaced(item, changed) for key, item in value.items()}
    return changed.get(value, value) if isinstance(value, str) else value


def _items(value: object, annotation: object) -> Iterator[tuple[object, object, str]]:
    """Yield the items of a container, each with its annotation and its key (`.key` in a mapping, else empty)."""
    origin = origin_of(annotation)
    if origin is Mapping and isinstance(value, Mapping):
        arguments = get_args(annotation) or (Any,)
        for key, item in value.items():
            yield key, arguments[0], ""
            yield item, item_of(annotation), f".{key}"
    elif origin in (Sequence, tuple) and isinstance(value, list | tuple):
        fixed = fixed_items(annotation)
        inner = [item_of(annotation)] * len(value) if fixed is None else fixed
        yield from ((item, each, "") for item, each in zip(value, inner, strict=False))


def _range_problems(value: object, annotation: object) -> list[tuple[str, object, str]]:
    """Return each problem, the value that has it and the value's key, for a value whose type fits."""
    origin = origin_of(annotation)
    if origin is Union:
        tried = [_range_problems(value, item) for item in get_args(annotation) if fits_type(value, item)]
        if not all(tried):
            return []
        if all(problems[0][1] is value for problems in tried):
            problems = list(dict.fromkeys(problem for ((problem, *_), *_) in tried))
            return [(" or ".join([problems[0], *(each.removeprefix("must be ") for each in problems[1:])]), value, "")]
        return tried[-1]
    if origin is Annotated:
        inner = _range_problems(value, get_args(annotation)[0])
        return inner or [(problem, value, "") for problem in _metadata_problems(value, annotation)]
    return [
        (problem, wrong, f"{path}{inner_path}")
        for item, item_annotation, path in _items(value, annotation)
        for problem, wrong, inner_path in _range_problems(item, item_annotation)
    ]


def _metadata_problems(value: object, annotation: object) -> Iterator[str]:
    metadata = metadata_of(annotation)
    notes = "".join(f" ({item.text})" for item in metadata if isinstance(item, Note))
    if isinstance(value, str) and any(isinstance(item, PathTo) for item in metadata):
        names = value.encode(errors="replace").split(b"/")
        if any(len(name) > _MAX_NAME for name in names):
            yield f"must not have a name of more than {_MAX_NAME} bytes"
        elif sum(map(len, names)) + len(names) > _MAX_PATH:
            yield f"must not be a path of more than {_MAX_PATH} bytes"
    if isinstance(value, str) and any(map(is_duration, walk(annotation))) and (duration := parse(value)):
        value = Fraction(duration.amount)
    elif any(map(is_time, walk(annotation))) and (seconds := parse_time(value)) is not None:
        value = Fraction(seconds)
    if isinstance(value, int | float | Fraction) and not isinstance(value, bool):
        is_real = any(inner is float for inner in walk(annotation))
        if problem := _number_problem(value, metadata, is_real=is_real):
            yield problem + notes
    elif isinstance(value, str | list | tuple | Mapping):
        least = max(numbers_of(metadata, "min_length"), default=0)
        most = min(numbers_of(metadata, "max_length"), default=None)
        if len(value) < least or (most is not None and len(value) > most):
            yield _length_problem(least, most, value) + notes


def _length_problem(least: float, most: float | None, value: object) -> str:
    noun = "character" if isinstance(value, str) else "item"
    if least == 1 and most is None:
        return "must not be empty"
    if most is None:
        return f"must have at least {counted(int(least), noun)}"
    return f"must have {'' if least == most else f'{least} to '}{counted(int(most), noun)}"


class _Limit(NamedTuple):
    """A limit of a number on one side."""

    bound: float
    is_excluded: bool


def _number_problem(value: float | Fraction, metadata: Sequence[object], *, is_real: bool) -> str | None:
    """Return the problem of a number; of several limits on the same side, the strictest one counts.

    A real number must be one of float32: a tensor would hold infinity in its place.
    """
    if not any(isinstance(item, RANGES) for item in metadata):
        return None
    lower = max(_limits(metadata, "ge", "gt"), default=None)
    upper = min(_limits(metadata, "le", "lt"), key=lambda each: (each.bound, not each.is_excluded), default=None)
    steps = [step for step in numbers_of(metadata, "multiple_of") if step]
    is_infinite = isinstance(value, float) and not math.isfinite(value)
    must_be_finite = is_infinite and not any(isinstance(item, AllowInfinity) for item in metadata)
    is_too_large = is_real and not is_infinite and not -_LARGEST <= value <= _LARGEST
    is_above = lower is None or value > lower.bound or (value == lower.bound and not lower.is_excluded)
    is_below = upper is None or value < upper.bound or (value == upper.bound and not upper.is_excluded)
    is_multiple = all(not is_infinite and _is_multiple(value, step) for step in steps)
    if value == value and is_above and is_below and is_multiple and not must_be_finite and not is_too_large:
        return None
    words = ["a whole number" if step == 1 else f"a multiple of {step}" for step in steps]
    limits = _describe_limits(lower, upper, is_too_large=is_too_large)
    required = ", ".join(filter(None, [*words, limits])) or "a number"
    if must_be_finite and (lower is None or upper is None):
        required = f"finite and {required}".removesuffix(" and a number")
    return f"must be {required}"


def _limits(metadata: Sequence[object], including: str, excluding: str) -> list[_Limit]:
    names = ((including, False), (excluding, True))
    return [_Limit(bound, is_excluded) for name, is_excluded in names for bound in numbers_of(metadata, name)]


def _describe_limits(lower: _Limit | None, upper: _Limit | None, *, is_too_large: bool) -> str:
    """Return limits in words that follow "must be"; the limits of float32 too if a number is beyond them."""
    if lower and upper and not lower.is_excluded and not upper.is_excluded:
        return f"between {_shown(lower.bound)} and {_shown(upper.bound)}"
    low, high = ("at least -3.4e38", "at most 3.4e38") if is_too_large else ("", "")
    if lower:
        low = f"{'greater than' if lower.is_excluded else 'at least'} {_shown(lower.bound)}"
    if upper:
        high = f"{'less than' if upper.is_excluded else 'at most'} {_shown(upper.bound)}"
    return " and ".join(filter(None, (low, high)))


def _is_multiple(value: float | Fraction, step: float) -> bool:
    try:
        return value % step == 0
    except OverflowError:  # an integer beyond the floating-point numbers, and a step that is no integer
        return False


def _shown(bound: float) -> str:
    power = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2 ** {power}" if power >= 32 and bound == 1 << power else str(bound)
