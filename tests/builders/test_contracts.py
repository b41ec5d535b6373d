from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.builders.contracts import check_contract
from trainer.data.stdlib_docs import StdlibDocs
from trainer.errors import ConfigError
from trainer.protocols import Source
from trainer.task.text_classification import TextClassification


class Shout(TextClassification):
    def answers(self) -> list[str]:
        return []


class Both(TextClassification):
    def answers(self) -> list[str]:
        return []

    def predictions(self, *_: Any, **__: Any) -> list[dict[str, Any]]:
        return []


class Rows(StdlibDocs):
    @property
    def alone(self) -> None:
        return None


class Columns(StdlibDocs):
    column = "a value, no method"


class Stub(Source):
    """Inherits the empty methods of the protocol."""


class CostlySource:
    def load(self) -> None: ...
    def describe_row(self) -> None: ...
    def describe_role(self) -> None: ...

    @property
    def fingerprint(self) -> str:
        raise AssertionError("computed")


class ForwardOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_targets = nn.Identity()

    def forward(self, output: Tensor, _: Tensor) -> Tensor:
        return output.sum()


class Watcher:
    def __call__(self, step: int) -> float:
        return float(step)

    def observe(self) -> None: ...


def made(cls: type) -> object:
    return object.__new__(cls)


@pytest.mark.parametrize(
    ("group", "part"),
    [
        ("task", made(Both)),
        ("data", CostlySource()),
        ("loss", ForwardOnly()),
        ("optimizer", torch.optim.SGD([nn.Parameter(torch.zeros(1))])),
        ("scheduler", len),
        ("model", nn.ReLU()),
        ("prune", len),
    ],
)
def test_a_part_that_fits_is_accepted(group: str, part: object) -> None:
    check_contract(group, "mine.Part", part)


@pytest.mark.parametrize(
    ("group", "part", "remedy"),
    [
        ("task", made(Shout), "Rename answers to predictions."),
        ("data", made(Rows), "Rename alone to for_split."),
        ("data", made(Stub), "Define fingerprint, load, describe_row, describe_role."),
        ("loss", len, "Define num_targets."),
        ("scheduler", Watcher(), "Define state_dict, load_state_dict, every_steps."),
        ("scheduler", 1.0, "Define __call__."),
        ("model", nn.Module(), "Define forward."),
        ("model", len, "must make an instance of torch.nn.modules.module.Module"),
        ("optimizer", None, "must make an instance of torch.optim.optimizer.Optimizer"),
        ("prune", None, "must make a callable"),
    ],
)
def test_a_misfit_is_one_error_with_the_remedy(group: str, part: object, remedy: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_contract(group, "mine.Part", part)

    [message] = caught.value.messages
    assert message.startswith(f"{group}._target_: ")
    assert "'mine.Part'" in message
    assert remedy in message


def test_former_names_and_missing_members_are_one_error() -> None:
    class Old:
        def where(self) -> None: ...

    with pytest.raises(ConfigError, match=r"Rename where to describe_row\. Define fingerprint, load, describe_role\.$"):
        check_contract("data", "mine.Old", Old())


def test_an_attribute_with_a_former_name_is_no_method() -> None:
    check_contract("data", "mine.Columns", made(Columns))
