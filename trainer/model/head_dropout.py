"""Dropout in front of the head of a model, with one mask or several."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError, format_error
from trainer.protocols import EndsWithHead, Inputs

_OFF = "model.head_dropout=0 model.multi_sample_dropout=1"


class HeadDropout:
    """Drops features in front of a head while it is trained; with several masks, they have an axis of their own.

    A pre-hook of the head: parameters keep their names, and evaluation and exported graphs do not change.

    Source: Inoue 2019, "Multi-sample dropout for accelerated training and better generalization",
    https://arxiv.org/abs/1905.09788. The losses of the masks are averaged, not their outputs.

    Args:
        p: Dropout probability, in [0, 1).
        samples: Number of masks, K. With several, the head gets (K, ..., D) instead of (..., D).
    """

    def __init__(self, p: float, samples: int) -> None:
        self.p = p
        self.samples = samples

    def __call__(self, head: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not head.training:
            return None
        features, *rest = inputs
        if self.samples > 1:
            features = features.expand(self.samples, *features.shape)
        return F.dropout(features, self.p), *rest


def add_head_dropout(model: nn.Module, p: float, samples: int, inputs: Inputs) -> None:
    """Add dropout in front of the linear layer `head` of a model that declares that it ends with it.

    Args:
        model: Changed in place.
        p: Dropout probability, in [0, 1).
        samples: Number of masks.
        inputs: The inputs of the model.

    Raises:
        ConfigError: The model has no such head, or does not declare it.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            format_error("head_dropout", "the model does not end with a linear head", f"Set {_OFF}", value=p)
        )
    if not isinstance(model, EndsWithHead) or inputs not in model.ends_with_head:
        problem = f"{type(model).__name__} does not declare that its layer head makes its outputs"
        remedy = f"Write ends_with_head = ({inputs!r},) into the class if they are, or set {_OFF}"
        raise ConfigError(format_error("head_dropout", problem, remedy, value=p))
    head.register_forward_pre_hook(HeadDropout(p, samples))
