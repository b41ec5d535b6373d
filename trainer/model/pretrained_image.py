"""An image model of transformers, from its folder or the hub, with a linear head."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from trainer.errors import format_error, raise_if_any
from trainer.model.pretrained_config import read_config
from trainer.model.pretrained_fit import width_of
from trainer.model.pretrained_loading import (
    Kind,
    architecture_of,
    checkpoint_gradients,
    config_of,
    linear_head,
    make_model,
    refuse_unread,
)


class PretrainedImage(nn.Module):
    """Images to outputs, by any image model of transformers that gives hidden states (ViT, ResNet and others).

    Source: Wolf et al. 2020, "Transformers: state-of-the-art natural language processing",
    https://arxiv.org/abs/1910.03771.

    Args:
        num_outputs: Columns of the output, C; None: the D pooled features are the output.
        image_channels: Channels of the images.
        image_size: Height and width of the images in pixels.
        architecture: The attribute of that name of a model that was made before, such as a checkpoint holds. The model
            is made of it, without `path` and `config`, with random weights that the checkpoint's are to replace.
        path: A folder with `config.json` and weights, or a name on the hub.
        config: Changes of the keys of the model's own config.
        pooling: How the vectors of an image become one: `mean` or `max` over all of them (of the tokens of a ViT, or of
            the places of a feature map), or `cls`, the first one, of models with such a token.
        attention: Its implementation; None: the one that transformers prefers.
        gradient_checkpointing: Keep no activations inside the blocks: less memory, a third more time.
        pretrained: Whether the weights are read, too; otherwise they are random.

    Attributes:
        architecture: JSON that makes the module again: `{"class": ..., "config": ...}`.

    Raises:
        ConfigError: There is no such model, its weights are not all there, or it does not fit the images.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    headed: ClassVar[Kind] = "AutoModelForImageClassification"
    """The class of transformers whose head may be this one; see `pretrained_folder.save`."""

    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        architecture: dict[str, Any] | None = None,
        *,
        path: str,
        config: dict[str, Any],
        pooling: Literal["cls", "mean", "max"],
        attention: Literal["sdpa", "eager"] | None,
        gradient_checkpointing: bool,
        pretrained: bool,
    ) -> None:
        super().__init__()
        own = read_config(path, config) if architecture is None else config_of(architecture)[1]
        _check_fit(own, image_channels, image_size, pooling)
        self.pooling = pooling
        weights = path if pretrained and architecture is None else None
        self.base: Any = make_model("AutoModel", own, weights, attention)
        refuse_unread(self.base, "pixel_values")
        self.config = self.base.config
        self.head = linear_head(width_of(self.config), num_outputs, self.config)
        self.architecture = architecture or architecture_of("AutoModel", self.config)
        if gradient_checkpointing:
            checkpoint_gradients(self.base)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, channels, H, W) to outputs (B, C), in float32 or autocast's type."""
        hidden: Tensor = self.base(pixel_values=pixel_values).last_hidden_state
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = hidden.mean(dim=1) if self.pooling == "mean" else hidden.amax(dim=1)
        output: Tensor = self.head(pooled)
        return output


def _check_fit(config: Any, image_channels: int, image_size: tuple[int, int], pooling: str) -> None:
    faults = []
    channels = getattr(config, "num_channels", None)
    if channels is not None and channels != image_channels:
        problem = f"the model reads images of {channels} channels, the task's have {image_channels}"
        faults.append(format_error("path", problem, f"Set task.channels={channels}"))
    size = getattr(config, "image_size", None)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if (height, width) != tuple(image_size):
            theirs = " x ".join(map(str, image_size))
            problem = f"the model reads images of {height} x {width} pixels, the task's have {theirs}"
            faults.append(format_error("path", problem, f"Set task.size=[{height},{width}]"))
    if pooling == "cls" and not hasattr(config, "hidden_size"):
        remedy = "Set it to mean or max"
        faults.append(
            format_error(
                "pooling", f"a {config.model_type} has no token that stands for the image", remedy, value=pooling
            )
        )
    raise_if_any(*faults)
