"""The contract of a loss, `Loss`, and the abilities that a loss may have in addition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.tags import TagTransitions


@runtime_checkable
class Loss(Protocol):
    """A loss is a sum over targets; the loop divides by the number of targets of the whole optimizer step.

    The number is counted over all micro-batches and all devices, so a loss needs to know neither. A device without a
    sample of its own may call it with the rows of another device's sample; the result is then multiplied by 0. A loss
    whose value is no sum over samples must fit `HasBatchStatistic`; otherwise each device would compute its own value.

    A loss may also fit `DeclaresTargets`, `ChecksTargets`, `IgnoresTargets`, `UsesInputs`, `HasLossHead`, `HasTeacher`,
    `SumsOverRows`, `HasRowTerms`, `HasTagTransitions`.
    """

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), float32 (float64 for a float64 output)."""
        ...

    def num_targets(self, target: Tensor) -> Tensor:
        """Return the number of terms of the sum: int64, shape (), on the target's device (no host sync)."""
        ...


@runtime_checkable
class DeclaresTargets(Protocol):
    """A loss that declares which types of `Target` it supports.

    `targets` is a class attribute with a literal value: it is read from the source before torch is loaded.
    """

    targets: tuple[str, ...]


class NeedsSequences(Protocol):
    """A loss of sequences of tags: each row of its targets (B, T) must be a sequence, see `tags_sequences` of tasks.

    `needs_sequences` is a class attribute with a literal value, as `targets`.
    """

    needs_sequences: bool


@runtime_checkable
class ChecksTargets(Protocol):
    """A loss that checks each batch's targets on the host, before they reach a kernel."""

    def check(self, target: Tensor) -> None:
        """Raise RowError if the loss does not support a target."""
        ...


@runtime_checkable
class IgnoresTargets(Protocol):
    """A loss that leaves targets of this value out."""

    ignore_index: int


@runtime_checkable
class HasBatchStatistic(Protocol):
    """A loss that may be a statistic of the whole batch: its value is no sum of the values of the batch's samples.

    It returns its value times the number of targets. Every device calls it with the same rows, so it must use no random
    numbers; only a device's own rows pass a gradient on. Micro-batches of one device are not joined.

    So that jobs that need a sum are refused before torch is loaded, `is_batch_statistic` is a class attribute with a
    literal value, or the class attribute `statistic_by` lists the values of keys with which it is True.
    """

    is_batch_statistic: bool
    """True if it is: the rows of a micro-batch are then gathered from all devices before the loss is computed."""


@runtime_checkable
class UsesInputs(Protocol):
    """A loss that also reads the model's inputs: if `needs_inputs`, it is called as `loss(output, target, inputs)`."""

    needs_inputs: bool


@runtime_checkable
class HasLossHead(Protocol):
    """A loss with its own output layer: the model returns `in_features` features instead of class scores."""

    in_features: int

    def scores(self, output: Tensor) -> Tensor:
        """Return the class scores (..., C) of the features (..., D), for metrics, predictions and artifacts.

        Of spans, the scores are (B, C, T, T).
        """
        ...


@runtime_checkable
class HasTagTransitions(Protocol):
    """A loss that also scores transitions between tags: the best sequence of tags is then the answer."""

    def tag_transitions(self) -> TagTransitions:
        """Return the scores of transitions, detached copies in float32."""
        ...


@runtime_checkable
class SumsOverRows(Protocol):
    """A loss that is a sum over rows of class scores if `sums_over_rows`: it may then get them in chunks of rows."""

    sums_over_rows: bool


@runtime_checkable
class HasRowTerms(Protocol):
    """A loss that can say what each row adds to its sum, which takes less time than calling it row by row."""

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum for B outputs and targets: (B,), or (B, ...) with several terms a row."""
        ...


@runtime_checkable
class HasTeacher(Protocol):
    """A loss that learns from another model, which is neither trained nor saved with it."""

    @property
    def teacher_model(self) -> Callable[[dict[str, Tensor]], Tensor]:
        """The teacher: model inputs by name to logits (..., C)."""
        ...
