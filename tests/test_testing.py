"""`trainer.testing` accepts every part of this project, and says what is wrong with broken ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchmetrics
from torch import Tensor, nn

from tests.task.test_every_task import TASKS, columns_of
from trainer import testing
from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.config.groups import groups_in, own_folder
from trainer.data.breast_cancer import BreastCancer
from trainer.data.digits import Digits

GROUPS = groups_in([own_folder()])
FACTS: dict[str, Any] = {"num_outputs": 4, "class_counts": [3, 4, 5, 6], "vocab_size": 20, "max_length": 6}
FACTS |= {"num_features": 5, "image_channels": 1, "image_size": (8, 8), "total_steps": 40}
TARGETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "class": lambda: (torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])),
    "multi_hot": lambda: (torch.randn(6, 4), torch.randint(2, (6, 4)).float()),
    "values": lambda: (torch.randn(6, 4), torch.randn(6, 4)),
    "views": lambda: (torch.randn(12, 4), torch.arange(6).repeat_interleave(2).view(6, 2)),
    "similarity": lambda: (torch.randn(12, 4), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])),
}
WITHOUT_LOGITS = ("kl_distillation", "hierarchical_softmax", "adaptive_softmax")
"""Losses that need a teacher, or own the last layer of the model."""
INPUTS = {
    "tokens": lambda: {
        "input_ids": torch.randint(1, 20, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.int64),
    },
    "features": lambda: {"features": torch.randn(3, 5)},
    "images": lambda: {"pixel_values": torch.randn(3, 1, 8, 8)},
}


def make(group: str, option: str, **changes: Any) -> Any:
    return instantiate(group, GROUPS.content(group, option) | changes, **FACTS)


@pytest.mark.parametrize("option", [name for name in GROUPS.options("loss") if name not in WITHOUT_LOGITS])
def test_our_losses_pass(option: str) -> None:
    torch.manual_seed(0)
    loss = make("loss", option)
    for target in set(loss.targets) & TARGETS.keys():
        testing.check_loss(loss, *TARGETS[target]())


@pytest.mark.parametrize("option", ["mlp", "convnet", "text_encoder"])
def test_our_models_pass(option: str) -> None:
    torch.manual_seed(0)
    model = make("model", option)
    testing.check_model(model, INPUTS["tokens" if option == "text_encoder" else model.inputs[-1]]())


@pytest.mark.parametrize("option", GROUPS.options("scheduler"))
def test_our_schedules_pass(option: str) -> None:
    content = GROUPS.content("scheduler", option)
    names = parameters(locate("scheduler", content))
    durations = {f"{key}_steps": 4 for key in content if f"{key}_steps" in names}
    others = {key: value for key, value in content.items() if f"{key}_steps" not in names}
    testing.check_schedule(instantiate("scheduler", others | durations, **FACTS), 40)


@pytest.mark.parametrize("option", GROUPS.options("optimizer"))
def test_our_optimizers_pass(option: str) -> None:
    content = GROUPS.content("optimizer", option)
    testing.check_optimizer(lambda groups: instantiate("optimizer", content, params=groups, hidden={"weight"}))


@pytest.mark.parametrize("name", [name for name in TASKS if name != "image_classification"])
def test_our_tasks_pass(name: str) -> None:
    task, arguments, _, _ = TASKS[name]
    testing.check_task(lambda: task(**arguments), columns_of(task(**arguments)))


def test_our_sources_pass() -> None:
    testing.check_source(BreastCancer, ["features", "label"])
    testing.check_source(Digits, ["image", "label"])


def test_a_metric_passes() -> None:
    testing.check_metric(torchmetrics.MeanAbsoluteError(), torch.randn(5), torch.randn(5))


class SquaredLoss:
    """A right loss, of which the tests break one thing each."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return self.wide(output).sub(target).square().sum()

    def wide(self, output: Tensor) -> Tensor:
        return output if output.dtype == torch.float64 else output.float()

    def num_targets(self, target: Tensor) -> Tensor:
        return torch.tensor(target.numel())


class MeanLoss(SquaredLoss):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return super().__call__(output, target) / len(target)


class HalfLoss(SquaredLoss):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target.to(output.dtype)).square().sum()


class DetachedLoss(SquaredLoss):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return super().__call__(output, target) + self.wide(output).detach().exp().sum()


class OrderedLoss(SquaredLoss):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (self.wide(output) * torch.arange(1.0, len(output) + 1)[:, None]).sub(target).square().sum()


class InPlaceLoss(SquaredLoss):
    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return super().__call__(output, target.add_(1))


class CountedLoss(SquaredLoss):
    def num_targets(self, target: Tensor) -> Tensor:
        return torch.tensor(1)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (MeanLoss, "must be the sum of the losses of its samples"),
        (HalfLoss, "of bfloat16 outputs must be float32"),
        (DetachedLoss, "differs from differences"),
        (OrderedLoss, "depends on the order"),
        (InPlaceLoss, "changes the target"),
        (CountedLoss, "must add up"),
    ],
)
def test_broken_loss_is_found(loss: type, message: str) -> None:
    torch.manual_seed(0)
    testing.check_loss(SquaredLoss(), *TARGETS["values"]())
    with pytest.raises(AssertionError, match=message):
        testing.check_loss(loss(), *TARGETS["values"]())


def test_other_broken_parts_are_found() -> None:
    with pytest.raises(AssertionError, match="depends on the other samples"):
        testing.check_model(Mixing(nn.Linear(5, 2)), INPUTS["features"]())
    unused = Wrapped(nn.Linear(5, 2))
    unused.more = nn.Linear(1, 1)
    with pytest.raises(AssertionError, match=r"without a gradient: more\.weight"):
        testing.check_model(unused, INPUTS["features"]())
    with pytest.raises(AssertionError, match="at least 0, got -"):
        testing.check_schedule(lambda step: 1 - step / 10, 20)
    calls: list[int] = []
    with pytest.raises(AssertionError, match="depends on earlier calls"):
        testing.check_schedule(lambda step: float(calls.append(step) or len(calls)), 20)
    with pytest.raises(AssertionError, match="raise the loss"):
        testing.check_optimizer(lambda groups: torch.optim.SGD(groups, lr=2.0))


class Wrapped(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, features: Tensor) -> Tensor:
        output: Tensor = self.layer(features)
        return output


class Mixing(Wrapped):
    def forward(self, features: Tensor) -> Tensor:
        output = super().forward(features)
        return output - output.mean(0)
