"""The targets of a batch: checked on the host before a kernel fails on them, counted, and passed to the loss."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional as F

from trainer.deferred_logits import DeferredLogits, sum_in_chunks
from trainer.distributed.ranks import Ranks
from trainer.errors import DataError, RowError, format_error
from trainer.protocols import (
    Batch,
    ChecksTargets,
    HasBatchStatistic,
    HasDecisionRule,
    HasLossHead,
    HasRowTerms,
    HasTagTransitions,
    Loss,
    Task,
    UsesTagTransitions,
)
from trainer.spans import NO_BOUNDARY, NO_SPAN
from trainer.tags import decode_tags

_TOLERANCE = 1e-4
"""Largest difference from 1 of the sum of a row of shares."""


def count_targets(loss: Loss, batch: Batch) -> float:
    """Check the targets of a batch on the host, and return the number of terms of its loss.

    Raises:
        DataError: A target does not fit the loss; the sample is named.
    """
    assert batch.target is not None, "a batch to train on needs a target"
    if not batch.num_samples:
        return 0.0  # a filler, see `BatchPlan.micro_batches`
    # Quicker than `isinstance` with a protocol, which a step of a small model would notice; so is `compute_loss`.
    if (check := getattr(loss, "check", None)) is not None:
        try:
            check(batch.target)
        except RowError as error:
            raise DataError(f"{_describe_sample(batch, error.position)}: {error}") from error
    return float(loss.num_targets(batch.target))


def compute_loss(loss: Loss, output: Tensor | DeferredLogits, batch: Batch) -> Tensor:
    """Return the sum of the loss over a batch; a loss with `needs_inputs` also gets the model's inputs."""
    assert batch.target is not None, "a batch to train on needs a target"
    if isinstance(output, DeferredLogits):
        return sum_in_chunks(loss, output, batch.target)
    if getattr(loss, "needs_inputs", False):
        return loss(output, batch.target, batch.inputs)  # type: ignore[call-arg]
    return loss(output, batch.target)


def compute_shared_loss(loss: Loss, output: Tensor | DeferredLogits, batch: Batch, ranks: Ranks) -> tuple[Tensor, bool]:
    """Return a loss whose gradient is this process's share, and whether its value counts towards the logged loss.

    The loss is a sum over targets, so a process's share is the loss of its own targets. Every process computes a
    statistic of the whole batch from the rows of all processes; only the value of the first process counts.
    """
    if isinstance(output, DeferredLogits):  # neither for fillers nor for statistics, see `builders.loss.defer_logits`
        return compute_loss(loss, output, batch), True
    if not batch.num_samples:
        output = output * 0.0  # a filler: it has a gradient, and the gradient is 0
    if ranks.size == 1 or not (isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic):
        total = compute_loss(loss, output, batch)
        return (total, True) if batch.num_samples else (total * 0.0, False)
    assert batch.target is not None, "a batch to train on needs a target"
    target = batch.target
    if output.ndim > 2:  # (B, T, C) of one process may be longer than in another
        output, target = output.flatten(0, -2), target.flatten()
    own = slice(None) if batch.num_samples else slice(0)
    rows = ranks.gather_rows(output[own]), ranks.gather_rows(target[own])
    if isinstance(loss, nn.Module) and not ranks.is_first:
        # Every process has the complete gradient of the loss's own weights: it counts once.
        total = functional_call(loss, {name: weight.detach() for name, weight in loss.named_parameters()}, rows)
    else:
        total = loss(*rows)
    # A process without rows of its own still needs a gradient to send: it is 0.
    total = total if batch.num_samples else total + output.sum() * 0.0
    return total, ranks.is_first


def compute_row_losses(loss: Loss, output: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each sample, (B,), of targets (B, ...) and outputs with K rows for each sample, (B * K, ...).

    Args:
        loss: A loss that is a sum over samples, and reads no inputs.
        output: The outputs.
        target: The targets.
    """
    if isinstance(loss, HasRowTerms):
        return loss.row_terms(output, target).reshape(len(target), -1).sum(dim=1)
    samples, targets = output.reshape(len(target), -1, *output.shape[1:]), target[:, None]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of operations that are vectorized by a loop
            values: Tensor = vmap(loss)(samples, targets)
    except RuntimeError:  # the loss has operations that cannot be vectorized
        values = torch.stack([loss(*sample) for sample in zip(samples, targets, strict=True)])
    return values


def compute_scores(loss: Loss, output: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the scores that metrics see: the scores of the loss's head, or the output itself.

    With targets, a loss of sequences of tags also finds the best sequence, whose tags then have the largest scores.
    """
    if target is not None and isinstance(loss, HasTagTransitions):
        return decode_tags(output, target >= 0, loss.tag_transitions())
    return loss.scores(output) if isinstance(loss, HasLossHead) else output


def compute_artifact_scores(task: Task, output: Tensor, target: Tensor) -> Tensor:
    """Return the scores that metrics see, as `compute_scores`, of the output of a deployed model."""
    output = calibrate_output(task, output)
    if isinstance(task, UsesTagTransitions) and task.transitions is not None:
        return decode_tags(output, target >= 0, task.transitions)
    return output


def calibrate_output(task: Task, output: Tensor) -> Tensor:
    """Return scores divided by the temperature that was set after training, if any: what metrics and predictions read.

    Every output passes through here once, before anything reads it; training knows no temperature.
    """
    if isinstance(task, HasDecisionRule) and task.decision_rule:
        return task.calibrated(output)
    return output


@contextmanager
def calibrated_scores(model: nn.Module, loss: Loss, task: Task) -> Iterator[Loss]:
    """Let a model return calibrated scores inside the block, and yield the loss of these scores.

    Without a temperature, the model and its loss stay as they are. A loss with a head reads features instead of scores,
    so the negative log-likelihood of the scores, which its heads are trained with, takes its place.
    """
    if not (isinstance(task, HasDecisionRule) and task.decision_rule and task.decision_rule.temperature is not None):
        yield loss
        return
    hook = model.register_forward_hook(lambda *call: calibrate_output(task, compute_scores(loss, call[2])))
    try:
        yield _LikelihoodOfScores(loss) if isinstance(loss, HasLossHead) else loss
    finally:
        hook.remove()


class _LikelihoodOfScores:
    """The negative log-likelihood of class scores, in place of a loss with a head.

    Args:
        loss: The loss, which still checks and counts the targets.
    """

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target, reduction="sum")

    def num_targets(self, target: Tensor) -> Tensor:
        return self._loss.num_targets(target)

    def check(self, target: Tensor) -> None:
        if isinstance(self._loss, ChecksTargets):
            self._loss.check(target)


def with_loss_head(model: nn.Module, loss: Loss) -> nn.Module:
    """Return a model that outputs what metrics see: a copy with the loss's head, or the model if there is none."""
    if not isinstance(loss, HasLossHead):
        return model
    assert isinstance(loss, nn.Module)
    # A hook instead of a wrapper: the inputs keep the names of the model's forward, also in an exported graph.
    copy = deepcopy(model)
    copy.add_module("scoring", loss)
    copy.register_forward_hook(_apply_head)
    return copy


def _apply_head(model: nn.Module, arguments: object, output: Tensor) -> Tensor:
    scores: Tensor = model.scoring.scores(output)  # type: ignore[union-attr, operator]
    return scores


def check_classes(target: Tensor, num_classes: int | None, ignore_index: int) -> None:
    """Raise RowError unless `target` is int64 with classes below `num_classes` or `ignore_index`."""
    if target.dtype != torch.int64:
        raise RowError(0, "target", format_error("target", "must be classes (int64)", value=str(target.dtype)))
    if target.numel():
        lowest, highest = (int(each) for each in torch.aminmax(target))
        if lowest >= 0 and (num_classes is None or highest < num_classes):
            return  # one pass, as almost always
    wrong = (target < 0) | (target >= num_classes) if num_classes is not None else target < 0
    allowed = f"must be a class in 0 ... {num_classes - 1}" if num_classes is not None else "must be a class, 0 or more"
    _raise_if_any(target, wrong & (target != ignore_index), f"{allowed}, or {ignore_index} to be left out")


def check_shares(target: Tensor, num_classes: int | None) -> None:
    """Raise RowError unless `target` is float (B, `num_classes`) with entries of at least 0 and rows that sum to 1."""
    _check_table(target, num_classes, "the share of each class")
    _raise_if_any(target, ~(target >= 0), "must be shares of at least 0")
    total = target.sum(dim=1)
    _raise_if_any(total, ~((total - 1).abs() <= _TOLERANCE), "must be shares that sum to 1 in each row")


def check_multi_hot(target: Tensor, num_outputs: int | None, ignore_index: int) -> None:
    """Raise RowError unless `target` is float (B, `num_outputs`) of 0, 1 and `ignore_index`."""
    _check_table(target, num_outputs, "0 or 1 for each label")
    wrong = (target != 0) & (target != 1) & (target != ignore_index)
    _raise_if_any(target, wrong, f"must be 0, 1, or {ignore_index} to be left out")


def check_values(target: Tensor, num_outputs: int | None) -> None:
    """Raise RowError unless `target` is float (B, `num_outputs`) and finite."""
    _check_table(target, num_outputs, "values")
    _raise_if_any(target, ~torch.isfinite(target), "must be finite")


def check_similarity(target: Tensor) -> None:
    """Raise RowError unless `target` is float (B,) of -1 and 1."""
    if not target.is_floating_point() or target.ndim != 1:
        problem = "must be -1 or 1 for each pair, (B,)"
        raise RowError(0, "target", format_error("target", problem, value=_describe_shape(target)))
    _raise_if_any(target, target.abs() != 1, "must be -1 or 1")


def check_views(target: Tensor) -> None:
    """Raise RowError unless `target` is int64 (B, K) with at least two views."""
    if target.dtype != torch.int64 or target.ndim != 2 or target.shape[1] < 2:
        problem = "must be the sample's number for each of at least two views, int64 (B, K)"
        raise RowError(0, "target", format_error("target", problem, value=_describe_shape(target)))


def check_spans(target: Tensor, num_classes: int) -> None:
    """Raise RowError unless `target` is int64 (B, T, M) as `trainer.spans` describes, of spans of `num_classes`."""
    if target.dtype != torch.int64 or target.ndim != 3:
        problem = "must be the spans that start at each token, int64 (B, T, M)"
        raise RowError(0, "target", format_error("target", problem, value=_describe_shape(target)))
    first = torch.arange(target.shape[1], device=target.device)[:, None]
    last = target.div(num_classes, rounding_mode="floor")
    wrong = (target >= 0) & ((last < first) | (last >= target.shape[1]))
    wrong |= (target < 0) & (target != NO_SPAN) & (target != NO_BOUNDARY)
    _raise_if_any(target, wrong, f"must be a last token of the row times {num_classes} classes plus a class")


def _check_table(target: Tensor, num_outputs: int | None, contents: str) -> None:
    if not target.is_floating_point() or target.ndim != 2 or num_outputs not in (None, target.shape[1]):
        problem = f"must be {contents}, float (B, {'C' if num_outputs is None else num_outputs})"
        raise RowError(0, "target", format_error("target", problem, value=_describe_shape(target)))


def _raise_if_any(target: Tensor, wrong: Tensor, problem: str) -> None:
    # One pass over a host tensor; the position is searched only if something is wrong.
    if bool(wrong.any()):
        position = wrong.nonzero()[0]
        value = target[tuple(position)].item()
        raise RowError(int(position[0]), "target", format_error("target", problem, value=value))


def _describe_sample(batch: Batch, position: int) -> str:
    """Name the sample of a target's row, or all samples if a row of the target is not a sample."""
    assert batch.target is not None
    if len(batch.target) == len(batch.ids):
        return f"sample {batch.ids[position]} (position in its split)"
    return f"one of the samples {', '.join(map(str, batch.ids[:16]))} (positions in their split)"


def _describe_shape(target: Tensor) -> str:
    return f"{str(target.dtype).removeprefix('torch.')} {tuple(target.shape)}"


def by_class_name(values: Mapping[Any, float], names: Sequence[str]) -> dict[str, float]:
    """Return the values by the name of their class.

    A key that YAML or Hydra has read as a number or as a truth value stands for the only name that is written in
    another way: 100000.0 for `1e5`, True for `true`. It stands for no name that another key spells.
    """
    spelled = {str(key) for key in values}
    others = [name for name in dict.fromkeys(names) if name not in spelled]
    alike: dict[tuple[type, float], list[str]] = {}
    for name in others if not spelled.issubset(names) else ():
        for reading in _readings(name):
            alike.setdefault(reading, []).append(name)
    known, named = set(names), {}
    for key, value in values.items():
        same = alike.get((bool, key) if isinstance(key, bool) else (float, key), ())
        named[same[0] if str(key) not in known and len(same) == 1 else str(key)] = value
    return named


def _readings(name: str) -> Iterator[tuple[type, float]]:
    """Yield what YAML or Hydra may read instead of a name: a number, a truth value."""
    if (folded := name.casefold()) in ("true", "yes", "on", "false", "no", "off"):
        yield bool, folded in ("true", "yes", "on")
    with suppress(ValueError):
        yield float, float(name)
