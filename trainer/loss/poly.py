"""Poly-1 loss over classes."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from trainer.constraints import BelowOne, validated
from trainer.loss.classification import IGNORE_INDEX_RULES, WEIGHT_RULES, Factors, compute_class_terms
from trainer.loss.cross_entropy import CrossEntropy


class Poly(CrossEntropy):
    """Cross entropy with another leading term: H + epsilon * w[y] * (1 - t), logits (..., C), classes (...,) or shares.

    t is the probability that the model gives to the target: p[y], or the sum of the smoothed target times p. The cross
    entropy's expansion in powers of 1 - p[y] starts with the coefficient 1; this loss changes it to 1 + epsilon (Leng
    et al. 2022, https://arxiv.org/abs/2204.12511, Poly-1). `trainer.loss.classification` defines H and the weights w;
    epsilon 0 is `CrossEntropy`.

    Args:
        epsilon: Added to the first coefficient, at least -1; a lower value would penalize confident, correct rows.
        weight: One factor per class, in their order or by name, at least 0; "auto" or "effective_number" for factors
            with a mean of 1 from the training counts; None for no weights.
        label_smoothing: Share of the target spread evenly over the classes, in [0, 1).
        ignore_index: Target that is ignored in the sum and in the count.
        class_counts: Training targets of each class, if the task counts them.
        num_outputs: Number of classes C, if it is known.
        class_names: Names of the classes, if the task has them.

    Raises:
        ConfigError: `weight` does not fit the classes.
    """

    @validated(*WEIGHT_RULES, *IGNORE_INDEX_RULES)
    def __init__(
        self,
        epsilon: Annotated[float, Ge(-1)],
        weight: Factors | Literal["auto", "effective_number"] | None,
        label_smoothing: BelowOne,
        ignore_index: int,
        class_counts: list[int] | None = None,
        num_outputs: int | None = None,
        class_names: list[str] | None = None,
    ) -> None:
        super().__init__(weight, label_smoothing, ignore_index, class_counts, num_outputs, class_names)
        self.epsilon = epsilon

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum: (B,), or (B, C) for shares; leading axes are flattened."""
        if self.epsilon == 0:
            return super().row_terms(output, target)
        terms = compute_class_terms(output, target, self.weight, self.label_smoothing, self.ignore_index)
        # 1 - t in terms of 1 - p[y]; expm1 keeps the digits of 1 - p[y] for p[y] near 1.
        miss = (1 - self.label_smoothing) * -torch.expm1(-terms.nll)
        miss = miss + self.label_smoothing * (1 - 1 / output.shape[-1])
        return terms.weighted(terms.cross_entropy + self.epsilon * terms.weight() * miss)
