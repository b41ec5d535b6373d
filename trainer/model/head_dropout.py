"""Dropout in front of the head of a model, with one mask or several."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError, format_error


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


def add_head_dropout(model: nn.Module, p: float, samples: int, example: dict[str, Tensor]) -> None:
    """Add dropout in front of the linear layer `head` of a model.

    Args:
        model: Changed in place.
        p: Dropout probability, in [0, 1).
        samples: Number of masks.
        example: Inputs of the model, on its device, to check that its outputs come from this head.

    Raises:
        ConfigError: The model has no such head.
    """
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise _no_head(p)
    hook = HeadDropout(p, samples)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        own: Tensor = model(**example)
        handle = head.register_forward_pre_hook(HeadDropout(p, 2))
        head.train()
        doubled: Tensor = model(**example)
        handle.remove()
    for module, training in modes.items():
        module.training = training
    if doubled.shape != (2, *own.shape):
        raise _no_head(p)
    head.register_forward_pre_hook(hook)


def _no_head(p: float) -> ConfigError:
    problem = "the model does not end with a linear head of its own"
    remedy = "Set model.head_dropout=0 and model.multi_sample_dropout=1"
    return ConfigError(format_error("head_dropout", problem, remedy, value=p))
