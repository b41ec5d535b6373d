"""Cosine embedding loss of pairs."""

from __future__ import annotations

from typing import Annotated, ClassVar

from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import validated
from trainer.loss.classification import promote_to_float32
from trainer.loss.regression import count_tensor
from trainer.targets import check_similarity


class CosineEmbedding(nn.Module):
    """Increases the cosine similarity of similar pairs and decreases it for dissimilar pairs.

    The loss of a pair with similarity 1 is 1 - cos(x, y), the cosine loss (Barz & Denzler 2019,
    https://arxiv.org/abs/1901.09054); the loss of a pair with similarity -1 is max(0, cos(x, y) - margin). They are
    summed over the pairs: torch's `cosine_embedding_loss`. The cosine with a zero vector is 0. `num_targets`, the
    divisor of a step, counts pairs.

    Args:
        margin: Cosine below which dissimilar pairs add nothing, in [-1, 1].
    """

    targets: ClassVar[tuple[str, ...]] = ("similarity",)

    @validated()
    def __init__(self, margin: Annotated[float, Interval(ge=-1, le=1)]) -> None:
        super().__init__()
        self.margin = margin

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` is floating-point (B,) of -1 and 1."""
        check_similarity(target)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the pairs: shape (), float32 (float64 for float64 vectors).

        Args:
            output: Vectors (2 * B, D); rows 2 * i and 2 * i + 1 are pair i.
            target: Similarities (B,), -1 or 1.

        Raises:
            ValueError: The output does not have two vectors for each pair.
        """
        if output.ndim != 2 or target.ndim != 1 or len(output) != 2 * len(target):
            shapes = f"the output is {tuple(output.shape)}, the target {tuple(target.shape)}"
            raise ValueError(f"the output must have two rows for each entry of the target: {shapes}")
        first, second = promote_to_float32(output).view(len(target), 2, output.shape[1]).unbind(dim=1)
        return F.cosine_embedding_loss(first, second, target, margin=self.margin, reduction="sum")

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the pairs of `target` (B,): int64, shape ()."""
        return count_tensor(target, len(target))
