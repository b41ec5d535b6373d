"""How like PyTorch's an artifact's outputs are over the evaluation split, whatever the metric says."""

from __future__ import annotations

from math import inf, sqrt
from typing import TYPE_CHECKING

import torch

from trainer.errors import ProofError, format_error
from trainer.protocols import Target

if TYPE_CHECKING:
    from torch import Tensor

_LEAST_AGREEMENT = 0.75
_MOST_APART = 0.5
_LEAST_SPREAD = 0.2  # of the size: outputs that hardly differ have rounding of their size, not of their differences
_REMEDY = "The file is removed: it answers otherwise than the model, whatever its metric"


class Likeness:
    """What an artifact's outputs have in common with PyTorch's.

    Args:
        target: What the task's targets are, which says what an output decides.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._decisions = 0
        self._agreed = 0
        self._apart = 0.0
        self._squares = 0.0
        self._sums: dict[int, Tensor] = {}
        self._rows: dict[int, int] = {}

    @property
    def agreement(self) -> float | None:
        """Share of equal decisions; None where an output decides nothing. See `decisions`."""
        return self._agreed / self._decisions if self._decisions else None

    @property
    def relative_difference(self) -> float:
        """The difference by the spread of PyTorch's outputs around their means: that of constant outputs is about 1.

        Both are roots of sums of squares. Of outputs that hardly differ, a fifth of their size stands for the spread.
        """
        means = sum(float(total.square().sum()) / self._rows[width] for width, total in self._sums.items())
        scale = sqrt(max(self._squares - means, _LEAST_SPREAD**2 * self._squares))
        return sqrt(self._apart) / scale if scale else inf if self._apart else 0.0

    def update(self, expected: Tensor, got: Tensor, target: Tensor) -> None:
        """Adds outputs (B, ..., C) of PyTorch and of the artifact, but those of places that have no target."""
        if self._target == "class" and target.shape == expected.shape[:-1]:
            expected, got = expected[target >= 0], got[target >= 0]
        wanted, found = decisions(expected, self._target), decisions(got, self._target)
        if wanted is not None and found is not None:
            self._decisions += wanted.numel()
            self._agreed += int((wanted == found).sum())
        width = expected.shape[-1] if expected.ndim > 1 else 1
        # Where there is an infinity on a side, `proof.difference` judges.
        finite = expected.isfinite() & got.isfinite()
        outputs = torch.where(finite, expected, 0.0).double().reshape(-1, width)
        self._apart += float((torch.where(finite, got, 0.0).reshape(-1, width) - outputs).square().sum())
        self._squares += float(outputs.square().sum())
        self._sums[width] = self._sums.get(width, torch.zeros(width)) + outputs.sum(0)
        self._rows[width] = self._rows.get(width, 0) + len(outputs)

    def prove(self, artifact: str) -> None:
        """Raises what no metric may hide.

        Raises:
            ProofError: Decisions are others, or outputs are nearly as far from PyTorch's as any would be.
        """
        if self.agreement is not None and self.agreement < _LEAST_AGREEMENT:
            problem = f"decisions over the evaluation split must agree with PyTorch's in {_LEAST_AGREEMENT:g} or more"
            raise ProofError(format_error(artifact, problem, _REMEDY, value=self.agreement))
        if not self.relative_difference <= _MOST_APART:
            problem = f"outputs over the evaluation split must be within {_MOST_APART:g} of the spread of PyTorch's"
            raise ProofError(format_error(artifact, problem, _REMEDY, value=self.relative_difference))


def decisions(output: Tensor, target: Target) -> Tensor | None:
    """What an output (B, ..., C) decides: of classes the likeliest, of labels which are likelier than not."""
    if target == "class" and output.ndim > 1 and output.shape[-1] > 1:
        return output.argmax(-1)
    return output > 0 if target == "multi_hot" else None
