"""LeNet-5."""

from collections import OrderedDict
from typing import ClassVar, Final, Literal

from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.model.checks import image_faults

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_CHANNELS: Final = (6, 16)
_HIDDEN: Final = (120, 84)
_SMALLEST: Final = 12  # pixels: less than that leaves nothing for the second 5 x 5 convolution


class LeNet(nn.Module):
    """Two convolutions 5 x 5 with pooling 2 x 2 (C1 and S2, C3 and S4), two linear layers (C5, F6), a linear head.

    Images are padded by 2 pixels on each side, as the paper's 28 x 28 digits are to 32 x 32; C5 reads all that S4
    leaves of them. With 28 x 28 grey images and 10 outputs there are 61,706 parameters. It differs from the paper as is
    usual since: S2 and S4 average without a coefficient and an activation of their own, C3 sees all channels of S2,
    tanh is not scaled, and the head is linear in place of distances to fixed patterns.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B.

    Args:
        num_outputs: Columns of the output, C; None: the 84 values of F6 are the output.
        image_channels: Channels of the images.
        image_size: Their height and width.
        activation: The nonlinearity after C1, C3, C5 and F6; `tanh` is the paper's.

    Raises:
        ConfigError: The images are too small.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        activation: Literal["tanh", "relu"],
    ) -> None:
        super().__init__()
        raise_if_any(*image_faults(image_size, _SMALLEST, "Enlarge them, or take model=convnet"))
        nonlinearity = _ACTIVATIONS[activation]
        height, width = ((side // 2 - 4) // 2 for side in image_size)
        widths = (_CHANNELS[1] * height * width, *_HIDDEN)
        self.blocks = nn.ModuleList(
            [
                _convolution(image_channels, _CHANNELS[0], 2, nonlinearity()),
                _convolution(*_CHANNELS, 0, nonlinearity()),
                *(_linear(widths[place], widths[place + 1], nonlinearity()) for place in (0, 1)),
            ]
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(_HIDDEN[-1], num_outputs)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, channels, H, W) to outputs (B, C)."""
        values = pixel_values
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def _convolution(before: int, after: int, padding: int, activation: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=5, padding=padding)
    return nn.Sequential(OrderedDict(convolution=convolution, activation=activation, pooling=nn.AvgPool2d(2)))


def _linear(before: int, after: int, activation: nn.Module) -> nn.Sequential:
    # Flattening leaves the (B, D) between linear layers as they are.
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(before, after), activation=activation))
