"""The names and annotations of a module, read from its source."""

import ast
import typing
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge

from trainer import constraints
from trainer.constraints import Count
from trainer.constraints.annotations import IsDuration
from trainer.constraints.declarations import bindings, find_builtin, meaning, read_annotation, resolve_annotation
from trainer.constraints.values import value_problems


class Seed:
    """A name of the user's own that `trainer.constraints` has, too."""


def test_only_imported_names_have_a_meaning() -> None:
    source = """
import trainer.constraints as c
from typing import Annotated as A, TYPE_CHECKING
if TYPE_CHECKING:
    from trainer.constraints import Fraction as Share, Note
else:
    Share = Note = object
import annotated_types
class Probability: ...
def Count(low): ...
from elsewhere import Note as Remark
"""
    names = bindings(ast.parse(source).body, "package")

    def read(text: str) -> object:
        find = lambda name: meaning(names[name]) if name in names else find_builtin(name)  # noqa: E731
        return read_annotation(ast.Constant(text), find)

    assert read("c.Count") == constraints.Count
    assert read("Share | None") == constraints.Fraction | None
    assert read("A[int, annotated_types.Ge(1), c.Note('x')]") == Annotated[int, Ge(1), constraints.Note("x")]
    assert read("A[c.Duration, Remark(c.Mode), Count(1)]") == Annotated[int | str, IsDuration()]
    assert [read(text) for text in ("Probability", "Seed", "c.Count.x", "list[Seed]")] == [Any, Any, Any, list[Any]]
    assert resolve_annotation("Seed", globals()) is Seed
    assert value_problems("key", -1, resolve_annotation("Seed | None", globals())) == []


def test_names_imported_for_the_type_checker_are_read_from_the_source() -> None:
    scope = {"__name__": "trainer.constraints", "Literal": Literal}
    expected = Annotated[Any, Ge(0)] | Literal["a"]
    assert resolve_annotation("Annotated[Tensor, Ge(0)] | Literal['a']", scope) == expected


@pytest.mark.parametrize("annotation", [list["Count"], "list['Count']", "'list[Count]'", typing.List["Count"]])  # noqa: UP006
def test_strings_inside_annotations_are_evaluated(annotation: object) -> None:
    assert value_problems("key", [0], resolve_annotation(annotation, vars(constraints))) == [
        "key: must be at least 1, got 0."
    ]
