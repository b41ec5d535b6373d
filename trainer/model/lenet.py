"""LeNet-5."""

from typing import Final, Literal

from torch import nn

from trainer.constraints import Rule, validated
from trainer.model.layers import ImageBlocks, convolution_block, linear_block

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
_CHANNELS: Final = (6, 16)
_HIDDEN: Final = (120, 84)


class LeNet(ImageBlocks):
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
                convolution_block(
                    nn.Conv2d(image_channels, _CHANNELS[0], 5, padding=2), make_activation(), nn.AvgPool2d(2)
                ),
                convolution_block(nn.Conv2d(*_CHANNELS, 5), make_activation(), nn.AvgPool2d(2)),
                *(linear_block(widths[index], widths[index + 1], make_activation()) for index in (0, 1)),
            ]
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(_HIDDEN[-1], num_outputs)
