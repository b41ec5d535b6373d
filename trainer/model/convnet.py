"""A small convolutional net: two convolutions with pooling, then linear layers."""

from collections import OrderedDict
from typing import ClassVar

from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.model.checks import image_faults, width_faults


class ConvNet(nn.Module):
    """Convolution 3 x 3, ReLU and pooling 2 x 2, twice: by the mean, then by the maximum; linear layers, a linear head.

    The convolutions keep height and width, each pooling halves them and drops an odd last row or column, so the first
    linear layer reads channels[1] * (H // 4) * (W // 4) values. With channels (16, 32), hidden layers (128, 64) and
    10 outputs this is a usual net for 28 x 28 grey digits, with 214,538 parameters.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", for its kind.

    Args:
        num_outputs: Columns of the output, C; None: the last hidden layer (B, D) is the output.
        image_channels: Channels of the images.
        image_size: Their height and width.
        channels: Channels after the first and after the second convolution.
        hidden: Width of each linear layer before the head, the last is D.

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
        channels: tuple[int, int],
        hidden: list[int],
    ) -> None:
        super().__init__()
        raise_if_any(
            *width_faults(channels=channels, hidden=hidden),
            *image_faults(image_size, 4, "Enlarge them, or take model=mlp"),
        )
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
        """Images (B, channels, H, W) to outputs (B, C)."""
        values = pixel_values
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def _convolution(before: int, after: int, pooling: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=3, padding=1)
    return nn.Sequential(OrderedDict(convolution=convolution, activation=nn.ReLU(), pooling=pooling))


def _linear(before: int, after: int) -> nn.Sequential:
    # Flattening leaves the (B, D) between linear layers as they are.
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(before, after), activation=nn.ReLU()))
