"""Cosine embedding loss of pairs."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import ConfigError, format_error
from trainer.loss.classification import at_least_float32
from trainer.loss.regression import count
from trainer.targets import check_similarity


class CosineEmbedding(nn.Module):
    """Pulls the vectors of similar pairs together and pushes those of dissimilar pairs apart.

    A pair of the similarity 1 has 1 - cos(x, y), the cosine loss (Barz & Denzler 2019,
    https://arxiv.org/abs/1901.09054); one of the similarity -1 has max(0, cos(x, y) - margin). They are summed over the
    pairs: torch's `cosine_embedding_loss`. The cosine with a vector of zeros is 0. The divisor of a step counts pairs.

    Args:
        margin: The cosine down to which dissimilar pairs are pushed apart, in [-1, 1].

    Raises:
        ConfigError: `margin` is out of range.
    """

    targets: ClassVar[tuple[str, ...]] = ("similarity",)

    def __init__(self, margin: float) -> None:
        super().__init__()
        if not -1 <= margin <= 1:
            raise ConfigError(format_error("margin", "must be between -1 and 1", value=margin))
        self.margin = margin

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` is floating (B,) of -1 and 1."""
        check_similarity(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the pairs: shape (), float32 (float64 for float64 vectors).

        Args:
            output: Vectors (2 * B, D); rows 2 * i and 2 * i + 1 are pair i.
            target: Similarities (B,), -1 or 1.

        Raises:
            ValueError: There are not two vectors for each pair.
        """
        if output.ndim != 2 or target.ndim != 1 or len(output) != 2 * len(target):
            shapes = f"the output is {tuple(output.shape)}, the target {tuple(target.shape)}"
            raise ValueError(f"the output must have two rows for each entry of the target: {shapes}")
        first, second = at_least_float32(output).view(len(target), 2, output.shape[1]).unbind(dim=1)
        return F.cosine_embedding_loss(first, second, target, margin=self.margin, reduction="sum")

    def num_targets(self, target: Tensor) -> Tensor:
        """How many pairs `target` (B,) has: int64, shape ()."""
        return count(target, len(target))
