"""What a batch's targets must be, checked on the host: a wrong one is named before a kernel trips over it."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

from trainer.errors import DataError, RowError, format_error
from trainer.protocols import Batch, Loss

_ROUNDING = 1e-4
"""Of the sum of a row of shares, by which it may miss 1."""


def count_targets(loss: Loss, batch: Batch) -> float:
    """How many terms the loss of a batch on the host has; its targets are checked first.

    Raises:
        DataError: A target does not fit the loss; the sample is named.
    """
    assert batch.target is not None, "a batch to train on needs a target"
    check = getattr(loss, "check", None)
    if check is not None:
        try:
            check(batch.target)
        except RowError as error:
            raise DataError(f"{_named(batch, error.position)}: {error}") from error
    return float(loss.num_targets(batch.target))


def loss_of(loss: Loss, output: Tensor, batch: Batch) -> Tensor:
    """The loss's sum over a batch; a loss with `needs_inputs` gets the model's inputs, too."""
    assert batch.target is not None, "a batch to train on needs a target"
    if getattr(loss, "needs_inputs", False):
        return loss(output, batch.target, batch.inputs)  # type: ignore[call-arg]
    return loss(output, batch.target)


def scores_of(loss: Loss, output: Tensor) -> Tensor:
    """What metrics, answers and artifacts see of an output: the loss's scores where it reads features."""
    scores = getattr(loss, "scores", None)
    return output if scores is None else scores(output)


def _named(batch: Batch, position: int) -> str:
    """The samples at fault: one, where each row of the target is a sample."""
    assert batch.target is not None
    if len(batch.target) == len(batch.ids):
        return f"sample {batch.ids[position]} (position in its split)"
    return f"one of the samples {', '.join(map(str, batch.ids[:16]))} (positions in their split)"


def check_classes(target: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Raises RowError unless `target` is int64 with classes below `num_classes` or `ignore_index`."""
    if target.dtype != torch.int64:
        raise RowError(0, "target", format_error("target", "must be classes (int64)", value=str(target.dtype)))
    wrong = (target < 0) | (target >= num_classes) if num_classes is not None else target < 0
    allowed = f"must be a class in 0 ... {num_classes - 1}" if num_classes is not None else "must be a class, 0 or more"
    _refuse(target, wrong & (target != ignore_index), f"{allowed}, or {ignore_index} to be left out")


def check_shares(target: Tensor, num_classes: int | None) -> None:
    """Raises RowError unless `target` is floating (B, `num_classes`), no entry below 0 and 1 in each row."""
    _check_table(target, num_classes, "the share of each class")
    _refuse(target, ~(target >= 0), "must be shares of at least 0")
    total = target.sum(dim=1)
    _refuse(total, ~((total - 1).abs() <= _ROUNDING), "must be shares that sum to 1 in each row")


def check_multi_hot(target: Tensor, num_outputs: int | None, ignore_index: int) -> None:
    """Raises RowError unless `target` is floating (B, `num_outputs`) of 0, 1 and `ignore_index`."""
    _check_table(target, num_outputs, "0 or 1 for each label")
    wrong = (target != 0) & (target != 1) & (target != ignore_index)
    _refuse(target, wrong, f"must be 0, 1, or {ignore_index} to be left out")


def check_values(target: Tensor, num_outputs: int | None) -> None:
    """Raises RowError unless `target` is floating (B, `num_outputs`) and finite."""
    _check_table(target, num_outputs, "values")
    _refuse(target, ~torch.isfinite(target), "must be finite")


def check_similarity(target: Tensor) -> None:
    """Raises RowError unless `target` is floating (B,) of -1 and 1."""
    if not target.is_floating_point() or target.ndim != 1:
        raise RowError(0, "target", format_error("target", "must be -1 or 1 for each pair, (B,)", value=_shape(target)))
    _refuse(target, target.abs() != 1, "must be -1 or 1")


def check_views(target: Tensor) -> None:
    """Raises RowError unless `target` is int64 (B, K) with at least two views."""
    if target.dtype != torch.int64 or target.ndim != 2 or target.shape[1] < 2:
        problem = "must be the sample's number for each of at least two views, int64 (B, K)"
        raise RowError(0, "target", format_error("target", problem, value=_shape(target)))


def _check_table(target: Tensor, num_outputs: int | None, what: str) -> None:
    if not target.is_floating_point() or target.ndim != 2 or num_outputs not in (None, target.shape[1]):
        width = "C" if num_outputs is None else num_outputs
        raise RowError(0, "target", format_error("target", f"must be {what}, float (B, {width})", value=_shape(target)))


def _refuse(target: Tensor, wrong: Tensor, problem: str) -> None:
    # One pass over a host tensor; only a fault looks for its place.
    if bool(wrong.any()):
        place = wrong.nonzero()[0]
        raise RowError(int(place[0]), "target", format_error("target", problem, value=target[tuple(place)].item()))


def _shape(target: Tensor) -> str:
    return f"{str(target.dtype).removeprefix('torch.')} {tuple(target.shape)}"


def with_loss_head(model: nn.Module, loss: Loss) -> nn.Module:
    """A model whose output is what the metrics see: a copy with the loss in it, where the loss scores features."""
    if not hasattr(loss, "scores"):
        return model
    assert isinstance(loss, nn.Module)
    # A hook, not a wrapper: the names of the inputs stay those of the model's forward, also in an exported graph.
    copy = deepcopy(model)
    copy.add_module("scoring", loss)
    copy.register_forward_hook(_score)
    return copy


def _score(model: nn.Module, arguments: object, output: Tensor) -> Tensor:
    scores: Tensor = model.scoring.scores(output)  # type: ignore[union-attr, operator]
    return scores
