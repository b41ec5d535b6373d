"""An image model of transformers, from a folder or the hub, with a linear head."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn

from trainer.constraints import HubPath, validated
from trainer.errors import format_error, raise_if_any
from trainer.layout import Document
from trainer.model.pretrained_loading import (
    AutoClass,
    architecture_of,
    check_input,
    config_of,
    linear_head,
    make_model,
    read_config,
    width_of,
)

if TYPE_CHECKING:
    # Takes seconds; a model of ours does not need the library.
    from transformers import PreTrainedConfig


class PretrainedImage(nn.Module):
    """Any image model of transformers that returns hidden states (ViT, ResNet and others), with a linear head.

    Source: Wolf et al. 2020, "Transformers: state-of-the-art natural language processing",
    https://arxiv.org/abs/1910.03771.

    Args:
        num_outputs: Number of outputs, C; None returns the D pooled features.
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.
        architecture: The attribute `architecture` of an earlier model, from a checkpoint. The model is rebuilt from it
            instead of `path` and `config`, with random weights that the checkpoint's weights replace.
        path: A folder with `config.json` and weights, or a name on the hub.
        config: Changes of the model's config.
        pooling: How the vectors of an image become one: `mean` or `max` over the tokens of a ViT or the positions of a
            feature map, or `cls` for the first token of models with a class token.
        attention: Attention implementation; None for the default of transformers.
        pretrained: Load the weights too; otherwise they are random.

    Attributes:
        architecture: JSON from which the module can be rebuilt: `{"class": ..., "config": ...}`.

    Raises:
        ConfigError: There is no such model, weights are missing, or the model does not fit the images.
    """

    inputs: ClassVar[tuple[str, ...]] = ("images",)
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("images",)
    headed: ClassVar[AutoClass] = "AutoModelForImageClassification"
    """The class of transformers whose head may compute the same outputs; see `pretrained_folder.save`."""

    @validated()
    def __init__(
        self,
        num_outputs: int | None,
        image_channels: int,
        image_size: tuple[int, int],
        architecture: Document | None = None,
        *,
        path: HubPath,
        config: Document,
        pooling: Literal["cls", "mean", "max"],
        attention: Literal["sdpa", "eager"] | None,
        pretrained: bool,
    ) -> None:
        super().__init__()
        own = read_config(path, config) if architecture is None else config_of(architecture)[1]
        _check_fit(own, image_channels, image_size, pooling)
        self.pooling = pooling
        weights = path if pretrained and architecture is None else None
        self.base: Any = make_model("AutoModel", own, weights, attention)
        check_input(self.base, "pixel_values")
        self.config = self.base.config
        self.head = linear_head(width_of(self.config), num_outputs, config)
        self.architecture = architecture or architecture_of("AutoModel", self.config)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return outputs (B, C) of images (B, channels, H, W), in float32 or autocast's dtype."""
        hidden: Tensor = self.base(pixel_values=pixel_values).last_hidden_state
        if hidden.ndim == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        if self.pooling == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = hidden.mean(dim=1) if self.pooling == "mean" else hidden.amax(dim=1)
        output: Tensor = self.head(pooled)
        return output


def _check_fit(config: PreTrainedConfig, image_channels: int, image_size: tuple[int, int], pooling: str) -> None:
    problems = []
    channels = getattr(config, "num_channels", None)
    if channels is not None and channels != image_channels:
        problem = f"the model takes images of {channels} channels, the task's images have {image_channels}"
        problems.append(format_error("path", problem, f"Set task.channels={channels}"))
    size = getattr(config, "image_size", None)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        if (height, width) != tuple(image_size):
            task_size = " x ".join(map(str, image_size))
            problem = f"the model takes images of {height} x {width} pixels, the task's images have {task_size}"
            problems.append(format_error("path", problem, f"Set task.size=[{height},{width}]"))
    if pooling == "cls" and not hasattr(config, "hidden_size"):
        problem = f"a {config.model_type} has no class token"
        problems.append(format_error("pooling", problem, "Set it to mean or max", value=pooling))
    raise_if_any(*problems)
