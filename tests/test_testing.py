"""`trainer.testing` accepts every part of this project, and says what is wrong with broken ones."""

# ruff: noqa: E501  a case of the tables is a line

import struct
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from datasets import Dataset
from torch import Tensor, nn

from tests.task.test_every_task import TASKS, columns_of
from trainer import testing
from trainer.builders.instantiate import instantiate, locate, parameters
from trainer.config.groups import groups_in, own_folder
from trainer.data.cells import encode_png

GROUPS = groups_in([own_folder()])
FACTS: dict[str, Any] = {"num_outputs": 4, "class_counts": [3, 4, 5, 6], "vocab_size": 20, "max_length": 6}
FACTS |= {"num_features": 5, "image_channels": 1, "image_size": (8, 8), "total_steps": 40, "num_token_types": 1}
TARGETS: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "class": lambda: (torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 1, 0])),
    "multi_hot": lambda: (torch.randn(6, 4), torch.randint(2, (6, 4)).float()),
    "values": lambda: (torch.randn(6, 4), torch.randn(6, 4)),
    "views": lambda: (torch.randn(12, 4), torch.arange(6).repeat_interleave(2).view(6, 2)),
    "similarity": lambda: (torch.randn(12, 4), torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])),
}
WITHOUT_LOGITS = ("kl_distillation", "hierarchical_softmax", "adaptive_softmax", "crf", "global_pointer")
"""Losses that need a teacher, own the last layer of the model, or read sequences or spans."""
FROM_A_FOLDER = ("pretrained", "pretrained_image")
"""Models of transformers: tests/model/test_pretrained.py proves them equal to the library's own."""
INPUTS = {
    "tokens": lambda: {
        "input_ids": torch.randint(1, 20, (3, 6)),
        "attention_mask": torch.ones(3, 6, dtype=torch.int64),
    },
    "features": lambda: {"features": torch.randn(3, 5)},
    "images": lambda: {"pixel_values": torch.randn(3, 1, 8, 8)},
}


CHANGED_FACTS: dict[str, dict[str, Any]] = {
    "lenet": {"image_size": (32, 32)},
    "decomposable_attention": {"num_token_types": 2},
    "mlp": {"image_channels": None, "image_size": None},
}


def make(group: str, option: str, **changes: Any) -> Any:
    facts = FACTS | CHANGED_FACTS.get(option, {})
    known = {name: value for name, value in facts.items() if value is not None}
    return instantiate(group, GROUPS.content(group, option) | changes, **known)


def inputs_of(option: str, model: Any) -> dict[str, Tensor]:
    """Return a batch that a model reads: images of the size of its facts, tokens of the second text of a pair."""
    facts = FACTS | CHANGED_FACTS.get(option, {})
    if model.inputs[0] == "images":
        return {"pixel_values": torch.randn(3, 1, *facts["image_size"])}
    inputs = INPUTS[model.inputs[0]]()
    if facts["num_token_types"] > 1:
        inputs["token_type_ids"] = torch.tensor([[0, 0, 0, 1, 1, 1]] * 3)
    return inputs


@pytest.mark.parametrize("option", [name for name in GROUPS.options("loss") if name not in WITHOUT_LOGITS])
def test_our_losses_pass(option: str) -> None:
    torch.manual_seed(0)
    loss = make("loss", option)
    for target in set(loss.targets) & TARGETS.keys():
        testing.check_loss(loss, *TARGETS[target]())


@pytest.mark.parametrize("option", [name for name in GROUPS.options("model") if name not in FROM_A_FOLDER])
def test_our_models_pass(option: str) -> None:
    torch.manual_seed(0)
    model = make("model", option)
    testing.check_model(model, inputs_of(option, model))


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


@pytest.mark.parametrize("name", GROUPS.options("task"))
def test_our_tasks_pass(name: str) -> None:
    task, arguments, _, _ = TASKS[name]
    testing.check_task(lambda: task(**arguments), columns_of(task(**arguments)))


WORDS = [f"word {number} of {number % 7}" for number in range(60)]


def write_images() -> None:
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(30):
            image = encode_png(np.full((4, 4), number * 4 + len(name), np.uint8))
            Path("photos", name, f"{number}.png").write_bytes(image["bytes"] or b"")


def write_idx() -> None:
    for name, values in {"images": np.arange(60 * 16).reshape(60, 4, 4) % 251, "labels": np.arange(60) % 3}.items():
        header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
        Path(name).write_bytes(header + values.astype(np.uint8).tobytes())


def write_text(name: str, lines: list[str]) -> None:
    Path(name).write_text("\n".join(lines), encoding="utf-8")


def write_rows() -> None:
    Path("rows").mkdir()
    columns = {"text": WORDS, "label": [text[-1] for text in WORDS]}
    Dataset.from_dict(columns).to_parquet("rows/train.parquet")


SOURCES: dict[str, tuple[Callable[[], None], dict[str, Any], str]] = {
    "files": (lambda: write_text("a.csv", ["text,label", *(f"{each},{each[-1]}" for each in WORDS)]), {"train": "a.csv"}, "text label"),
    "lines": (lambda: write_text("a.txt", WORDS), {"train": "a.txt"}, "text"),
    "conll": (lambda: write_text("a.conll", [f"{each.replace(' ', '')} O\n" for each in WORDS]), {"train": "a.conll"}, "words tags"),
    "hub": (write_rows, {"path": "rows", "splits": {"train": "train", "validation": None, "test": None}}, "text label"),
    "imagefolder": (write_images, {"root": "photos"}, "image label"),
    "idx": (write_idx, {"train": {"images": "images", "labels": "labels"}}, "image label"),
    "digits": (lambda: None, {}, "image label"),
    "breast_cancer": (lambda: None, {}, "features label"),
    "diabetes": (lambda: None, {}, "features value"),
    "stdlib_docs": (lambda: None, {}, "text label"),
    "stdlib_pairs": (lambda: None, {}, "text text_pair label"),
    "stdlib_similar": (lambda: None, {}, "text positive"),
    "stdlib_sizes": (lambda: None, {}, "text value"),
    "stdlib_tokens": (lambda: None, {}, "words tags"),
    "stdlib_spans": (lambda: None, {}, "text spans"),
}  # fmt: skip
"""For each source: the function that writes its files, the keys that name them, and roles that it has."""


@pytest.mark.parametrize("option", GROUPS.options("data"))
def test_our_sources_pass(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))  # a small standard library
    functions = (
        f"def get_{n}(name_{n}, size):\n    'Return the {n} of all {n} words.  The {n} has {n} more words.'"
        for n in range(200)
    )
    Path("lib").mkdir()
    write_text("lib/cmd.py", list(functions))
    write, changes, roles = SOURCES[option]
    write()
    content = GROUPS.content("data", option) | changes
    content |= {"cache_dir": "cache"} if "cache_dir" in content else {}
    testing.check_source(lambda: instantiate("data", content), roles.split())


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
    with pytest.raises(AssertionError, match="ends_with_head: the layer head does not make the outputs"):
        testing.check_model(Doubled(nn.Linear(5, 2)), INPUTS["features"]())
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


class Doubled(Wrapped):
    ends_with_head = ("features",)

    def __init__(self, layer: nn.Module) -> None:
        super().__init__(layer)
        self.head = layer

    def forward(self, features: Tensor) -> Tensor:
        return 2 * super().forward(features)


class Mixing(Wrapped):
    def forward(self, features: Tensor) -> Tensor:
        output = super().forward(features)
        return output - output.mean(0)
