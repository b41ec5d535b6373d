"""A small convolutional network: two convolutions with pooling, then linear layers."""

from typing import Annotated

from annotated_types import MinLen
from torch import nn

from trainer.constraints import Count, Rule, validated
from trainer.model.layers import ImageBlocks, convolution_block, linear_block


class ConvNet(ImageBlocks):
    """Two 3 x 3 convolutions with ReLU and 2 x 2 pooling (mean, then maximum), linear layers, and a linear head.

    The convolutions keep height and width; each pooling halves them and drops an odd last row or column, so the first
    linear layer reads channels[1] * (H // 4) * (W // 4) values. With channels (16, 32), hidden layers (128, 64) and
    10 outputs this is a typical network for 28 x 28 grayscale digits, with 214,538 parameters.

    Source: the architecture follows LeCun et al. 1998, "Gradient-based learning applied to document recognition".

    Args:
        num_outputs: Number of outputs, C; None returns the last hidden layer (B, D).
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        channels: Number of channels after the first and after the second convolution.
        hidden: Width of each linear layer before the head; the last one is D.

    Raises:
        ConfigError: The images are too small.
    """

    @validated(
        Rule(
            "min(image_size) >= 4",
            key="image_size",
            problem="must be at least 4 x 4 pixels",
            remedy="Enlarge the images, or use model=mlp",
        )
    )
    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        channels: tuple[Count, Count],
        hidden: Annotated[list[Count], MinLen(1)],
    ) -> None:
        super().__init__()
        first, second = channels
        height, width = image_size
        widths = [second * (height // 4) * (width // 4), *hidden]
        self.blocks = nn.ModuleList(
            [
                convolution_block(nn.Conv2d(image_channels, first, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
                convolution_block(nn.Conv2d(first, second, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                *(linear_block(before, after, nn.ReLU()) for before, after in zip(widths, hidden, strict=False)),
            ]
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(hidden[-1], num_outputs)
