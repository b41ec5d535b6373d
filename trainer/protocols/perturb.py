"""The contracts of the methods of the group `perturb`: they move weights, or compare outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor


@runtime_checkable
class PerturbsWeights(Protocol):
    """A method that moves weights to where the loss of a step is larger (the group `perturb`)."""

    perturbs: str
    """The weights that move by default: `embeddings` (of tokens), or `matrices` (with at least two axes)."""
    targets: list[str] | None
    """Patterns for names of the weights to move instead."""
    moves: int
    """Number of moves in a step; each needs a forward and backward pass."""
    weight: float
    """Weight of the loss after the last move; the weight of the loss itself is 1."""
    start_steps: int
    """Optimizer steps before the first move."""

    def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
        """Return the next offset of a weight from its value; all tensors have the weight's shape.

        With `shard`, they are `DTensor`: torch's operations on them see the complete weight, as norms do.

        Args:
            weight: The weight as it is trained.
            offset: Its present offset; 0 at first.
            gradient: The gradient of the mean loss of the step at the present offset.
        """
        ...


@runtime_checkable
class ComparesOutputs(Protocol):
    """A term that makes two forward passes with different dropout masks agree (the group `perturb`)."""

    perturbs: str
    """`outputs`."""
    targets: tuple[str, ...]
    """The types of `Target` that it supports."""
    start_steps: int
    """Optimizer steps before the first second pass."""

    def __call__(self, first: Tensor, second: Tensor, target: Tensor, ignore_index: int | None) -> Tensor:
        """Return what is added to the mean of both losses: a sum over the targets, shape ().

        Args:
            first: Scores of the first pass (..., C).
            second: Scores of the second pass, of the same shape.
            target: The targets of the batch.
            ignore_index: Targets of this value are left out; None if the loss has none.
        """
        ...
