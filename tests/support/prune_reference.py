"""Weights to prune, and what torch's own functions make of them."""

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


def layers(seed: int = 0) -> Layers:
    torch.manual_seed(seed)
    return Layers()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """The weights that are pruned by default."""
    return {f"{name}.weight": model.get_submodule(name).weight.detach() for name in NAMES}  # type: ignore[misc]


NAMES = ("linear", "stack.0", "stack.1")


def masks_of(apply: Callable[..., Any], **arguments: Any) -> dict[str, Tensor]:
    """The masks that a function of torch gives to the layers of a fresh model, one after another."""
    model = layers()
    for name in NAMES:
        apply(model.get_submodule(name), name="weight", **arguments)
    return found_masks(model)


def found_masks(model: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.weight": model.get_buffer(f"{name}.weight_mask") for name in NAMES}


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, mask in expected.items():
        assert found[name].dtype == torch.bool
        assert torch.equal(found[name], mask.bool()), name


def zeros(masks: Mapping[str, Tensor]) -> dict[str, int]:
    return {name: int((~mask).sum()) for name, mask in masks.items()}
