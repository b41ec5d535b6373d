"""When a text ends, and why."""

import pytest
import torch

from tests.support.language_models import END, prompt_of
from trainer.decode.prompt import Ending


def reached(ending: Ending, *rows: list[int]) -> list[bool]:
    found: list[bool] = ending.reached(torch.tensor(rows)).tolist()
    return found


def test_a_text_ends_with_the_token_or_the_string_that_ends_it() -> None:
    ending = Ending(prompt_of([7, 8]), 5, ["3 4"])

    assert reached(ending, [7, 8, END], [7, 8, 3], [7, 8, 4]) == [True, False, False]
    assert reached(ending, [7, 8, 3, 4], [7, 8, END, 1], [7, 8, 4, 3]) == [True, False, False]
    assert reached(Ending(prompt_of([3, 4]), 5, ["3 4"]), [3, 4, 1]) == [False]


def test_a_text_ends_at_the_most_tokens() -> None:
    assert reached(Ending(prompt_of([7, 8]), 2, []), [7, 8, 1]) == [False]
    assert reached(Ending(prompt_of([7, 8]), 2, []), [7, 8, 1, 1]) == [True]
    assert reached(Ending(prompt_of([7, 8], max_length=3), 2, []), [7, 8, 1]) == [True]


@pytest.mark.parametrize(
    ("new", "why"),
    [([END], "end"), ([3], "stop"), ([1, 2, 1], "length"), ([1, 2], "context"), ([1], "exhausted"), ([], "exhausted")],
)
def test_why_a_text_ended(new: list[int], why: str) -> None:
    found = Ending(prompt_of([7], max_length=3), 3, ["3"]).continuation(torch.tensor([7, *new]), score=-0.5)

    assert (found.ids, found.ended, found.score) == (tuple(new), why, -0.5)
