"""Annotations of parameters: their metadata and their structure.

An annotation is an object: a type, a construct of `typing`, or `Annotated` with metadata of `annotated_types` and this
module. Anything else allows every value.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Interval, Le, Len, Lt, MaxLen, MinLen, MultipleOf


@dataclass(frozen=True)
class PathTo:
    """Metadata: text is a path.

    Attributes:
        noun: What is at the path, for messages.
        from_cwd: A relative path starts at `run.cwd`.
        must_exist: A path that does not exist is an error.
        hub: `owner/name` may also be a name on the Hugging Face hub; only what cannot be such a name must exist.
    """

    noun: Literal["file", "folder", "file or folder"] = "file or folder"
    from_cwd: bool = True
    must_exist: bool = True
    hub: bool = False

    @property
    def words(self) -> str:
        """The words that follow "must be" for such a value."""
        return "a path or a name" if self.hub or (self.from_cwd and not self.must_exist) else "a path"


@dataclass(frozen=True)
class AllowInfinity:
    """Metadata: an infinite number is allowed. All other numbers with metadata must be finite."""


@dataclass(frozen=True)
class Note:
    """Metadata: the reason for a range, shown in parentheses after it."""

    text: str


@dataclass(frozen=True)
class IsDuration:
    """Metadata: an integer or text is a duration."""


@dataclass(frozen=True)
class IsTime:
    """Metadata: text is an amount of time."""


RANGES: Final = (Gt, Ge, Lt, Le, Interval, MultipleOf)
"""The metadata of a range."""
METADATA: Final = (*RANGES, Len, MinLen, MaxLen, AllowInfinity, Note, PathTo, IsDuration, IsTime)
"""The metadata that has a meaning."""
_CONTAINERS: Final[dict[object, object]] = {dict: Mapping, list: Sequence}


def origin_of(annotation: object) -> object:
    """Return the construct of an annotation: a type, or one of Union, Literal, Annotated, Mapping, Sequence, tuple."""
    if annotation is Annotated:  # without arguments; on Python 3.11 and 3.12 it is a class
        return Any
    if type(annotation) is type:  # most annotations are classes, and the rest takes longer
        return _CONTAINERS.get(annotation, annotation)
    origin = NoneType if annotation is None else get_origin(annotation) or annotation
    if origin is UnionType:
        return Union
    if (origin is Union or origin is Literal) and not get_args(annotation):
        return Any
    try:
        return _CONTAINERS.get(origin, origin)
    except TypeError:  # it has no hash
        return Any


def alternatives(annotation: object) -> Sequence[object]:
    return get_args(annotation) if origin_of(annotation) is Union else (annotation,)


def metadata_of(annotation: object) -> list[object]:
    """Return the metadata of an `Annotated` that this module knows."""
    metadata = get_args(annotation)[1:] if origin_of(annotation) is Annotated else ()
    return [item for item in metadata if isinstance(item, METADATA)]


def walk(annotation: object) -> Iterator[object]:
    """Yield an annotation and the annotations in it."""
    yield annotation
    origin, arguments = origin_of(annotation), get_args(annotation)
    for inner in () if origin is Literal else arguments[:1] if origin is Annotated else arguments:
        yield from walk(inner)


def is_duration(annotation: object) -> bool:
    return any(isinstance(item, IsDuration) for item in metadata_of(annotation))


def is_time(annotation: object) -> bool:
    return any(isinstance(item, IsTime) for item in metadata_of(annotation))


def fixed_items(annotation: object) -> Sequence[object] | None:
    """Return the annotations of the items of a tuple of fixed length; None for any other annotation."""
    arguments = getattr(annotation, "__args__", None)  # `tuple[()]` has arguments, `tuple` has not
    if origin_of(annotation) is not tuple or arguments is None or arguments[1:] == (Ellipsis,):
        return None
    is_unpacked = any(getattr(argument, "__unpacked__", False) for argument in arguments)
    return None if is_unpacked else tuple(arguments)


def item_of(annotation: object) -> object:
    """Return the annotation of the values of a mapping or of the items of a list of any length."""
    arguments = get_args(annotation)
    if origin_of(annotation) is Mapping:
        return arguments[1] if len(arguments) == 2 else Any
    return arguments[0] if arguments and not getattr(arguments[0], "__unpacked__", False) else Any


def literals(annotation: object) -> list[str]:
    """Return the texts that the `Literal`s of `annotation` allow."""
    values = [value for inner in walk(annotation) if origin_of(inner) is Literal for value in get_args(inner)]
    return [value for value in values if isinstance(value, str)]


def mapping_item(annotation: object) -> object | None:
    """Return the annotation of a mapping's values if `annotation` allows a mapping or null only."""
    others = [item for item in alternatives(annotation) if origin_of(item) is not NoneType]
    if len(others) != 1 or origin_of(others[0]) is not Mapping or not get_args(others[0]):
        return None
    return item_of(others[0])


def mapping_keys(annotation: object) -> list[str]:
    """Return the keys that a mapping must have one of, if `annotation` allows a mapping of some keys only."""
    mappings = [item for item in alternatives(annotation) if origin_of(item) is Mapping and get_args(item)]
    return literals(get_args(mappings[0])[0]) if len(mappings) == 1 else []


def is_constrained(annotation: object) -> bool:
    """Return whether `annotation` has metadata that this module knows."""
    return any(metadata_of(inner) for inner in walk(annotation))


def numbers_of(metadata: Iterable[object], name: str) -> list[float]:
    """Return the numbers that metadata gives to an attribute such as `ge` or `max_length`."""
    values = (getattr(item, name, None) for item in metadata)
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
