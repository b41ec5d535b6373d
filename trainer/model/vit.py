"""A vision transformer for small images."""

from math import gcd
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.constraints import BelowOne, Count, validated
from trainer.errors import format_error, raise_if_any
from trainer.model.layers import HEADS_DIVIDE_DIM, TransformerBlock


class ViT(nn.Module):
    """A pre-norm transformer over patches of patch x patch pixels, with pooling and a linear head.

    An image has (H / patch) * (W / patch) tokens in row-major order, each with a learned position embedding. With `cls`
    pooling, a learned token is prepended and becomes the image's vector after the final norm; with `mean` pooling, the
    mean of the tokens does.

    Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; mean pooling instead of the class token in
    appendix D.3 and in Beyer et al. 2022, https://arxiv.org/abs/2205.01580.

    Args:
        num_outputs: Number of outputs, C; None returns the pooled vector (B, D).
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        patch: Side of a patch in pixels; divides the height and width of the images.
        dim: Width of the tokens, D.
        depth: Number of blocks.
        heads: Number of attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Dropout probability on embeddings and in blocks.
        pooling: How the tokens of an image become one vector.

    Raises:
        ConfigError: `patch` does not divide the image size.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("images",)

    @validated(HEADS_DIVIDE_DIM)
    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        patch: Count,
        dim: Count,
        depth: Count,
        heads: Count,
        hidden: Count,
        dropout: BelowOne,
        pooling: Literal["cls", "mean"],
    ) -> None:
        super().__init__()
        _check_patch(image_size, patch)
        height, width = image_size
        tokens = (height // patch) * (width // patch) + (pooling == "cls")
        self.patch_embedding = nn.Conv2d(image_channels, dim, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(dim)) if pooling == "cls" else None
        self.position_embedding = nn.Embedding(tokens, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(dim, num_outputs)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W)."""
        tokens = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        tokens = self.dropout(tokens + self.position_embedding.weight)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        output: Tensor = self.head(tokens.mean(dim=1) if self.class_token is None else tokens[:, 0])
        return output


def _check_patch(image_size: tuple[int, int], patch: int) -> None:
    height, width = image_size
    if height % patch or width % patch:
        common = gcd(height, width)
        divisors = ", ".join(str(side) for side in range(1, common + 1) if common % side == 0)
        problem = f"must divide the height and width of the images ({height} x {width})"
        raise_if_any(format_error("patch", problem, f"Use one of {divisors}", value=patch))
