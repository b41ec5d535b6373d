import functools
from collections.abc import Callable
from typing import Any

import hydra
import pytest
import torch

from trainer.builders.instantiate import _bind, _literal, instantiate
from trainer.errors import ConfigError, format_error


class Part(torch.nn.Module):
    """A part as a user would write one."""

    forward = len

    def __init__(self, size: int, num_outputs: int, nested: Any = None) -> None:
        super().__init__()
        if size < 0:
            raise ValueError("size is negative")
        self.size, self.num_outputs, self.nested = size, num_outputs, nested


def scaled(step: int, *, factor: float, total_steps: int) -> float:
    return factor * step / total_steps


HERE = "tests.builders.test_instantiate"


def test_a_part_gets_its_keys_and_the_context_it_has_parameters_for() -> None:
    made = instantiate("model", {"_target_": f"{HERE}.Part", "size": 3}, num_outputs=5, vocab_size=100)

    assert (made.size, made.num_outputs) == (3, 5)


def test_a_key_overrides_the_context() -> None:
    assert (
        instantiate("model", {"_target_": f"{HERE}.Part", "size": 3, "num_outputs": 7}, num_outputs=5).num_outputs == 7
    )


@pytest.mark.parametrize("text", ["a${b}.csv", r"a\${b}", r"\\\${b}", r"C:\\${b}", "${", "$${x}${y}", "a$b", "{x}"])
def test_text_that_looks_like_an_interpolation_is_a_text(text: str) -> None:
    nested = [{"x": text}, [text]]
    made = instantiate("model", {"_target_": f"{HERE}.Part", "size": 3, "num_outputs": text, "nested": nested})

    assert (made.num_outputs, made.nested) == (text, nested)


def test_a_part_of_this_project_gets_the_values_that_hydra_would_pass() -> None:
    keys: dict[str, Any] = {
        "problem": "${seed}",
        "value": [1, (2, 3)],
        "remedy": {"a": [None, {"b": 0.5}]},
        "path": "\\${x}",
    }
    config = {"_target_": "trainer.errors.format_error", **keys}
    bound = _bind(config, format_error, keys)
    assert isinstance(bound, functools.partial)

    by_hydra = hydra.utils.instantiate({**_literal(config), "_partial_": True}, _convert_="all")
    assert bound.keywords == by_hydra.keywords == keys | {"value": [1, [2, 3]]}
    assert bound.keywords["remedy"]["a"][1] is not keys["remedy"]["a"][1], "a part must not change the config"


def test_context_objects_are_not_copied() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = instantiate("optimizer", {"_target_": "torch.optim.SGD", "lr": 0.1}, params=[("p", parameter)])

    assert optimizer.param_groups[0]["params"][0] is parameter
    assert optimizer.param_groups[0]["param_names"] == ["p"]


def test_a_partial_part_is_not_called() -> None:
    schedule: Callable[[int], float] = instantiate(
        "scheduler", {"_target_": f"{HERE}.scaled", "_partial_": True, "factor": 2.0}, total_steps=4, warmup_steps=1
    )

    assert isinstance(schedule, functools.partial)
    assert schedule(1) == 0.5


class Ramp:
    def __init__(self, total_steps: int) -> None:
        self.total_steps = total_steps

    def __call__(self, step: int) -> float:
        return step / self.total_steps


@pytest.mark.parametrize("target", ["Ramp", "scaled"])
@pytest.mark.parametrize("partial", [True, False])
def test_a_schedule_is_a_function_or_made_by_a_class_whatever_partial_says(target: str, partial: bool) -> None:
    config = {"_target_": f"{HERE}.{target}", "_partial_": partial, **({"factor": 1.0} if target == "scaled" else {})}

    assert instantiate("scheduler", config, total_steps=4)(1) == 0.25


def test_a_function_that_is_the_part_needs_its_arguments() -> None:
    with pytest.raises(ConfigError, match=r"^scheduler\.factor: is missing"):
        instantiate("scheduler", {"_target_": f"{HERE}.scaled", "_partial_": True}, total_steps=4)


def test_nested_parts_are_instantiated_in_plain_lists() -> None:
    made = instantiate(
        "model", {"_target_": f"{HERE}.Part", "size": 1, "nested": [{"_target_": "torch.nn.ReLU"}]}, num_outputs=1
    )

    assert type(made.nested) is list
    assert isinstance(made.nested[0], torch.nn.ReLU)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_target_": "nowhere.Part"},
            r"model\._target_: cannot be imported .*No module named 'nowhere'.*got 'nowhere.Part'",
        ),
        (
            {"_target_": f"{HERE}.Prat"},
            rf"^model\._target_: there is no Prat in {HERE}, got '{HERE}.Prat'. Did you mean Part.$",
        ),
        (
            {"_target_": "torch.nn.Zzz"},
            r"^model\._target_: there is no Zzz in torch.nn, got 'torch.nn.Zzz'\.$",
        ),
        ({"_target_": f"{HERE}.HERE"}, r"model\._target_: .*"),
        (
            {"_target_": f"{HERE}.Part"},
            rf"^model\.size: is missing; {HERE}.Part needs it for its parameter size\. Set \+\+model\.size=<value>",
        ),
        (
            {"_target_": f"{HERE}.Part", "size": 1, "sise": 2},
            rf"^model\.sise: {HERE}\.Part has no such parameter, got 2\. Did you mean size\?$",
        ),
        ({"_target_": f"{HERE}.Part", "size": -1}, r"model: cannot be created \(ValueError: size is negative\)"),
    ],
)
def test_errors_name_the_key_and_the_cause(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        instantiate("model", config, num_outputs=1)


def test_errors_of_a_part_get_the_name_of_its_group() -> None:
    with pytest.raises(ConfigError) as caught:
        instantiate(
            "loss",
            {
                "_target_": "trainer.loss.focal.Focal",
                "gamma": -1.0,
                "alpha": None,
                "label_smoothing": 0.0,
                "ignore_index": -100,
            },
        )

    assert caught.value.messages[0].startswith("loss.gamma: ")
