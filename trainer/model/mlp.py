"""A multilayer perceptron on features or pixels."""

from collections import OrderedDict
from typing import ClassVar, Final, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import raise_if_any
from trainer.model.checks import dropout_faults, width_faults

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization that also trains on a single sample, as the last micro-batch of an epoch may be.

    One sample has no variance; its running statistics then take the place of the batch's, and stay as they are.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Values (B, D) to the same shape."""
        if self.training and values.shape[0] == 1:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(values)


class Mlp(nn.Module):
    """Layers of linear, norm, activation and dropout, then a linear head.

    Images are read as their pixels, channel by channel. With `norm=batch` a step's result depends on how it is cut
    into micro-batches; `layer` and `none` do not.

    Source: Rumelhart et al. 1986, "Learning representations by back-propagating errors".

    Args:
        num_outputs: Columns of the output, C; None: the last hidden layer (B, D) is the output.
        num_features: Features of a sample.
        image_channels: Channels of the images.
        image_size: Their height and width.
        hidden: Width of each hidden layer, the last is D.
        activation: The nonlinearity.
        norm: Normalization before the activation.
        dropout: Probability, after each activation.

    Raises:
        ConfigError: A value is out of range.
    """

    inputs: ClassVar[tuple[str, ...]] = ("features", "images")
    levels: ClassVar[tuple[str, ...]] = ("sample",)

    def __init__(
        self,
        num_outputs: int | None,
        num_features: int | None = None,
        image_channels: int | None = None,
        image_size: tuple[int, int] | None = None,
        *,
        hidden: list[int],
        activation: Literal["relu", "gelu", "silu", "tanh"],
        norm: Literal["none", "batch", "layer"],
        dropout: float,
    ) -> None:
        super().__init__()
        raise_if_any(*width_faults(hidden=hidden), *dropout_faults(dropout))
        if image_size is not None:
            assert image_channels is not None
            num_features = image_channels * image_size[0] * image_size[1]
        assert num_features is not None
        widths = [num_features, *hidden]
        self.blocks = nn.ModuleList(
            _layer(before, after, _ACTIVATIONS[activation](), norm, dropout)
            for before, after in zip(widths, hidden, strict=False)
        )
        self.head = nn.Identity() if num_outputs is None else nn.Linear(hidden[-1], num_outputs)

    def forward(self, features: Tensor | None = None, pixel_values: Tensor | None = None) -> Tensor:
        """`features` (B, F) or `pixel_values` (B, channels, H, W) to outputs (B, C)."""
        values = features if pixel_values is None else pixel_values.flatten(1)
        assert values is not None
        for block in self.blocks:
            values = block(values)
        output: Tensor = self.head(values)
        return output


def _layer(before: int, after: int, activation: nn.Module, norm: str, dropout: float) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict(linear=nn.Linear(before, after))
    if norm != "none":
        parts["norm"] = BatchNorm(after) if norm == "batch" else nn.LayerNorm(after)
    parts["activation"] = activation
    parts["dropout"] = nn.Dropout(dropout)
    return nn.Sequential(parts)
