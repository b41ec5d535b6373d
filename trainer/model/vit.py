"""A vision transformer for small images."""

from math import gcd
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.model.attention import Block, stack_faults
from trainer.model.checks import size_faults


class ViT(nn.Module):
    """Squares of patch x patch pixels as the tokens of a pre-norm transformer, pooled, with a linear head.

    An image has (H / patch) * (W / patch) tokens, each with a learnt position, row by row; with `cls` pooling a learnt
    token stands before them and becomes the image's vector, with `mean` pooling there is none, and the vector is the
    tokens' mean, after the last norm.

    Source: Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929; mean pooling in place of the class token there in
    appendix D.3 and in Beyer et al. 2022, https://arxiv.org/abs/2205.01580.

    Args:
        num_outputs: Columns of the output, C; None: the pooled vector (B, D) is the output.
        image_channels: Channels of the images.
        image_size: Their height and width.
        patch: Side of a patch in pixels; divides height and width.
        dim: Width of the tokens, D.
        depth: Number of blocks.
        heads: Attention heads; divides `dim`.
        hidden: Width of the feed-forward layers.
        dropout: Probability, on embeddings and on what each block adds.
        pooling: How the tokens of an image become one vector.

    Raises:
        ConfigError: A value is out of range, or `patch` does not divide the images.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        patch: int,
        dim: int,
        depth: int,
        heads: int,
        hidden: int,
        dropout: float,
        pooling: Literal["cls", "mean"],
    ) -> None:
        super().__init__()
        stack = stack_faults(dim=dim, depth=depth, heads=heads, hidden=hidden, dropout=dropout)
        raise_if_any(*size_faults(patch=patch), *_patch_faults(image_size, patch), *stack)
        height, width = image_size
        tokens = (height // patch) * (width // patch) + (pooling == "cls")
        self.patch_embedding = nn.Conv2d(image_channels, dim, kernel_size=patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(dim)) if pooling == "cls" else None
        self.position_embedding = nn.Embedding(tokens, dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads, hidden, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Identity() if num_outputs is None else nn.Linear(dim, num_outputs)
        nn.init.normal_(self.position_embedding.weight, std=0.02)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, channels, H, W) to outputs (B, C)."""
        tokens = self.patch_embedding(pixel_values).flatten(2).transpose(1, 2)
        if self.class_token is not None:
            tokens = torch.cat([self.class_token.expand(tokens.shape[0], 1, -1), tokens], dim=1)
        tokens = self.dropout(tokens + self.position_embedding.weight)
        for block in self.blocks:
            tokens = block(tokens)
        tokens = self.norm(tokens)
        output: Tensor = self.head(tokens.mean(dim=1) if self.class_token is None else tokens[:, 0])
        return output


def _patch_faults(image_size: tuple[int, int], patch: int) -> list[str]:
    height, width = image_size
    if patch < 1 or not (height % patch or width % patch):
        return []
    shared = gcd(height, width)
    remedy = f"These do: {', '.join(str(side) for side in range(1, shared + 1) if shared % side == 0)}"
    problem = f"must divide height and width of the images ({height} x {width})"
    return [format_error("patch", problem, remedy, value=patch)]
