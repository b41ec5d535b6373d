"""A small convolutional network: two convolutions with pooling, then linear layers."""

from collections import OrderedDict
from typing import Annotated, ClassVar

from annotated_types import MinLen
from torch import Tensor, nn

from trainer.constraints import Count, Rule, validated


class ConvNet(nn.Module):
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
        ConfigError: A value is out of range, or the images are too small.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

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
                _convolution(image_channels, first, nn.AvgPool2d(2)),
                _convolution(first, second, nn.MaxPool2d(2)),
                *(_linear(before, after) for before, after in zip(widths, hidden, strict=False)),
            ]
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(hidden[-1], num_outputs)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W)."""
        values = pixel_values
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def _convolution(before: int, after: int, pooling: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
    return nn.Sequential(OrderedDict(convolution=convolution, activation=nn.ReLU(), pooling=pooling))


def _linear(before: int, after: int) -> nn.Sequential:
    # Flattening does not change the (B, D) between linear layers.
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(before, after), activation=nn.ReLU()))
