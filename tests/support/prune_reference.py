"""A model with weights to prune, and the masks that torch's own functions compute for it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Layers(nn.Module):
    """A linear layer, convolutions, an embedding, a norm, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.linear = nn.Linear(6, 8)
        self.norm = nn.LayerNorm(8)
        self.stack = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Conv1d(4, 6, 2, bias=False))
        self.head = nn.Linear(8, 4)


NAMES = ("linear", "stack.0", "stack.1")
"""The layers that are pruned by default."""


def layers(seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    return Layers()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the layers `NAMES`."""
    return {f"{name}.weight": model.get_submodule(name).weight.detach() for name in NAMES}  # type: ignore[misc]


def torch_masks(prune: Callable[..., Any], seed: int = 0, **arguments: Any) -> dict[str, Tensor]:
    """Return the masks that a function of `torch.nn.utils.prune` computes for a fresh model, layer after layer."""
    model = layers()
    torch.manual_seed(seed)
    for name in NAMES:
        prune(model.get_submodule(name), name="weight", **arguments)
    return masks_in(model)


def masks_in(model: nn.Module) -> dict[str, Tensor]:
    """Return the masks in a model that torch has pruned."""
    return {f"{name}.weight": model.get_buffer(f"{name}.weight_mask") for name in NAMES}


def assert_equal(masks: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert masks.keys() == expected.keys()
    for name, mask in expected.items():
        assert masks[name].dtype == torch.bool
        assert torch.equal(masks[name], mask.bool()), name


def count_zeros(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}
