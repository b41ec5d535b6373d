"""Residual networks for small images."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.constraints import Count, Rule, validated

_BLOCK_LAYERS = 2
_STAGES = 3


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions, each with batch normalization, and a shortcut connection.

    If the block halves the image and doubles the channels, so does the shortcut: it takes every second pixel and zeros
    for the new channels (`identity`, the paper's option A), or applies a 1 x 1 convolution of stride 2 with batch
    normalization (`projection`, option B).
    """

    def __init__(self, before: int, after: int, stride: int, shortcut: Literal["identity", "projection"]) -> None:
        super().__init__()
        self.stride = stride
        self.new_channels = after - before
        self.convolution1 = _convolution(before, after, 3, stride)
        self.norm1 = nn.BatchNorm2d(after)
        self.convolution2 = _convolution(after, after, 3, 1)
        self.norm2 = nn.BatchNorm2d(after)
        self.projection: nn.Sequential | None = None
        if shortcut == "projection" and stride > 1:
            self.projection = nn.Sequential(_convolution(before, after, 1, stride), nn.BatchNorm2d(after))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        added = self.norm2(self.convolution2(F.relu(self.norm1(self.convolution1(images)))))
        return F.relu(added + self._shortcut(images))

    def _shortcut(self, images: Tensor) -> Tensor:
        if self.stride == 1:
            return images
        if self.projection is not None:
            projected: Tensor = self.projection(images)
            return projected
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ResNet(nn.Module):
    """A convolution, three stages of (depth - 2) / 6 blocks each, the mean over the image, and a linear head.

    The second and third stages halve the image and double the channels: `width`, 2 * width, 4 * width. With 3
    channels, width 16, 10 outputs and the paper's `identity` shortcut, there are 269,722 parameters at depth 20,
    464,154 at 32, 658,586 at 44 and 853,018 at 56; `projection` adds 2,752.

    Batch normalization computes statistics per micro-batch, so the result of a step depends on how it is split.

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2; initialization after He et al. 2015,
    https://arxiv.org/abs/1502.01852.

    Args:
        num_outputs: Number of outputs, C; None returns the mean of the last stage (B, 4 * width).
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        depth: Number of layers (convolutions and the head), 6n + 2.
        width: Number of channels of the first stage.
        shortcut: The shortcut of blocks that change the shape; see `ResidualBlock`.

    Raises:
        ConfigError: The images are too small.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("images",)

    @validated(
        Rule(
            "depth >= 8 and depth % 6 == 2",
            key="depth",
            problem="must be 6n + 2",
            remedy="Common depths are 20, 32, 44, 56 and 110",
        ),
        # The last stage of 4 x 4 pixels has a single one, so a micro-batch of one sample would have no variance.
        Rule(
            "min(image_size) >= 5",
            key="image_size",
            problem="must be at least 5 x 5 pixels",
            remedy="Enlarge the images, or use model=convnet",
        ),
    )
    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        depth: int,
        width: Count,
        shortcut: Literal["identity", "projection"],
    ) -> None:
        super().__init__()
        self.stem = _convolution(image_channels, width, 3, 1)
        self.norm = nn.BatchNorm2d(width)
        blocks_per_stage = (depth - 2) // (_STAGES * _BLOCK_LAYERS)
        widths = [width * 2**stage for stage in range(_STAGES) for _ in range(blocks_per_stage)]
        self.blocks = nn.ModuleList(
            ResidualBlock(before, after, 1 if before == after else 2, shortcut)
            for before, after in zip([width, *widths], widths, strict=False)
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(widths[-1], num_outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W)."""
        images = F.relu(self.norm(self.stem(pixel_values)))
        for block in self.blocks:
            images = block(images)
        output: Tensor = self.head(images.mean(dim=(2, 3)))
        return output


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    # No bias: batch normalization subtracts the mean and would cancel it.
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)
