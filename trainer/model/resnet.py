"""The residual networks for small images."""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.model.checks import image_faults, size_faults

_BLOCK_LAYERS = 2
_STAGES = 3


class Block(nn.Module):
    """Two convolutions 3 x 3, each with batch normalization, added to what they read.

    Where the block halves the image and doubles the channels, what it reads is fitted to that: by every second pixel
    and zeros for the new channels (`identity`, the paper's option A), or by a convolution 1 x 1 of stride 2 with batch
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
        """Images (B, before, H, W) to (B, after, H', W'), H' being H / stride rounded up, and W' likewise."""
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
    """A convolution, three stages of (depth - 2) / 6 blocks each, the mean over the image, a linear head.

    The second and the third stage halve the image and double the channels: `width`, 2 * width, 4 * width. For 3
    channels, width 16 and 10 outputs the parameters are, with the `identity` shortcut of the paper, 269,722 at
    depth 20, 464,154 at 32, 658,586 at 44 and 853,018 at 56; `projection` adds 2,752.

    Batch normalization takes its statistics over a micro-batch, so a step's result depends on how it is cut into them.

    Source: He et al. 2016, https://arxiv.org/abs/1512.03385, section 4.2; its initialization He et al. 2015,
    https://arxiv.org/abs/1502.01852.

    Args:
        num_outputs: Columns of the output, C; None: the mean of the last stage (B, 4 * width) is the output.
        image_channels: Channels of the images.
        image_size: Their height and width.
        depth: Layers, convolutions and the head: 6n + 2.
        width: Channels of the first stage.
        shortcut: How a block that changes the shape passes on what it reads; see `Block`.

    Raises:
        ConfigError: A value is out of range, or the images are too small.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        depth: int,
        width: int,
        shortcut: Literal["identity", "projection"],
    ) -> None:
        super().__init__()
        # Of 4 x 4 pixels the last stage has one left, and a micro-batch of one sample then no variance.
        small = image_faults(image_size, 5, "Enlarge them, or take model=convnet")
        raise_if_any(*_depth_faults(depth), *size_faults(width=width), *small)
        self.stem = _convolution(image_channels, width, 3, 1)
        self.norm = nn.BatchNorm2d(width)
        blocks_a_stage = (depth - 2) // (_STAGES * _BLOCK_LAYERS)
        widths = [width * 2**stage for stage in range(_STAGES) for _ in range(blocks_a_stage)]
        self.blocks = nn.ModuleList(
            Block(before, after, 1 if before == after else 2, shortcut)
            for before, after in zip([width, *widths], widths, strict=False)
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(widths[-1], num_outputs)
        for part in self.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, nonlinearity="relu")

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, channels, H, W) to outputs (B, C)."""
        images = F.relu(self.norm(self.stem(pixel_values)))
        for block in self.blocks:
            images = block(images)
        output: Tensor = self.head(images.mean(dim=(2, 3)))
        return output


def _convolution(before: int, after: int, kernel: int, stride: int) -> nn.Conv2d:
    # Without a bias: the mean that batch normalization subtracts would take it away again.
    return nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, bias=False)


def _depth_faults(depth: int) -> list[str]:
    period = _STAGES * _BLOCK_LAYERS
    if depth >= period + 2 and depth % period == 2:
        return []
    return [format_error("depth", "must be 6n + 2", "Usual are 20, 32, 44, 56 and 110", value=depth)]
