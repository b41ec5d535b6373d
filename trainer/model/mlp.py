"""A multilayer perceptron on features or pixels."""

from collections import OrderedDict
from typing import Annotated, ClassVar, Final, Literal

import torch.nn.functional as F
from annotated_types import MinLen
from torch import Tensor, nn

from trainer.constraints import BelowOne, Count, validated

_ACTIVATIONS: Final[dict[str, type[nn.Module]]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class BatchNorm(nn.BatchNorm1d):
    """Batch normalization that can also train on a micro-batch of one sample, as at the end of an epoch.

    One sample has no variance, so it is normalized by the running statistics, which do not change.

    Source: Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Normalize values (B, D)."""
        if self.training and values.shape[0] == 1:
            return F.batch_norm(values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(values)


class Mlp(nn.Module):
    """Layers of linear, normalization, activation and dropout, then a linear head.

    Images are flattened to their pixels, channel by channel. With `norm=batch` the result of a step depends on how it
    is split into micro-batches; with `layer` and `none` it does not.

    Source: Rumelhart et al. 1986, "Learning representations by back-propagating errors".

    Args:
        num_outputs: Number of outputs, C; None returns the last hidden layer (B, D).
        num_features: Number of features of a sample.
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        hidden: Width of each hidden layer; the last one is D.
        activation: Activation function.
        norm: Normalization before each activation.
        dropout: Dropout probability after each activation.
    """

    inputs: ClassVar[tuple[str, ...]] = ("features", "images")
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("features", "images")

    @validated()
    def __init__(
        self,
        num_outputs: int | None,
        num_features: int | None = None,
        image_channels: int | None = None,
        image_size: tuple[int, int] | None = None,
        *,
        hidden: Annotated[list[Count], MinLen(1)],
        activation: Literal["relu", "gelu", "silu", "tanh"],
        norm: Literal["none", "batch", "layer"],
        dropout: BelowOne,
    ) -> None:
        super().__init__()
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
        """Return outputs (B, C) of `features` (B, F) or `pixel_values` (B, channels, H, W)."""
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
