"""LeNet-5."""

from collections import OrderedDict
from typing import ClassVar, Final, Literal

from torch import Tensor, nn

from trainer.constraints import Rule, validated

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_CHANNELS: Final = (6, 16)
_HIDDEN: Final = (120, 84)


class LeNet(nn.Module):
    """Two 5 x 5 convolutions with 2 x 2 pooling (C1 and S2, C3 and S4), two linear layers (C5, F6), and a linear head.

    Images are padded by 2 pixels on each side, as the paper pads 28 x 28 digits to 32 x 32; C5 reads all values of S4.
    With 28 x 28 grayscale images and 10 outputs there are 61,706 parameters. As in most later implementations, S2 and
    S4 average without coefficients and activations, C3 reads all channels of S2, tanh is not scaled, and the head is
    linear instead of a distance to fixed patterns.

    Source: LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B.

    Args:
        num_outputs: Number of outputs, C; None returns the 84 values of F6.
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        activation: Activation function after C1, C3, C5 and F6; the paper uses `tanh`.

    Raises:
        ConfigError: The images are too small.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    @validated(
        # With fewer pixels the second convolution has no output.
        Rule(
            "min(image_size) >= 12",
            key="image_size",
            problem="must be at least 12 x 12 pixels",
            remedy="Enlarge the images, or use model=convnet",
        )
    )
    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        *,
        activation: Literal["tanh", "relu"],
    ) -> None:
        super().__init__()
        make_activation = _ACTIVATIONS[activation]
        height, width = ((side // 2 - 4) // 2 for side in image_size)
        widths = (_CHANNELS[1] * height * width, *_HIDDEN)
        self.blocks = nn.ModuleList(
            [
                _convolution(image_channels, _CHANNELS[0], 2, make_activation()),
                _convolution(*_CHANNELS, 0, make_activation()),
                *(_linear(widths[index], widths[index + 1], make_activation()) for index in (0, 1)),
            ]
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(_HIDDEN[-1], num_outputs)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W)."""
        values = pixel_values
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def _convolution(before: int, after: int, padding: int, activation: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, kernel_size=5, padding=padding)
    return nn.Sequential(OrderedDict(convolution=convolution, activation=activation, pooling=nn.AvgPool2d(2)))


def _linear(before: int, after: int, activation: nn.Module) -> nn.Sequential:
    # Flattening does not change the (B, D) between linear layers.
    return nn.Sequential(OrderedDict(flatten=nn.Flatten(), linear=nn.Linear(before, after), activation=activation))
