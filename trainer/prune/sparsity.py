"""How many zeros a model has, and how small it gets when it is compressed."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from trainer.checkpoint.tensors import encode


@dataclass(frozen=True)
class Layer:
    """The zeros of one weight.

    Attributes:
        name: The parameter.
        shape: Its shape.
        zeros: How many of its elements are 0.
        size: How many there are.
    """

    name: str
    shape: tuple[int, ...]
    zeros: int
    size: int

    @property
    def share(self) -> float:
        """Of zeros."""
        return self.zeros / self.size if self.size else 0.0


def sparsity(model: nn.Module, names: Collection[str]) -> list[Layer]:
    """The zeros of the parameters `names` of a model, in its order."""
    return [
        Layer(name, tuple(parameter.shape), int((parameter == 0).sum()), parameter.numel())
        for name, parameter in model.named_parameters()
        if name in names
    ]


def total(layers: Collection[Layer]) -> Layer:
    """All of them as one."""
    zeros, size = sum(layer.zeros for layer in layers), sum(layer.size for layer in layers)
    return Layer("total", (), zeros, size)


def described(layers: Collection[Layer]) -> dict[str, Any]:
    """The `layers` and their `total` as JSON has them."""
    rows = [{**asdict(layer), "shape": list(layer.shape), "share": layer.share} for layer in (*layers, total(layers))]
    return {"layers": rows[:-1], "total": rows[-1]}


@torch.no_grad()
def compressed_bytes(model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's weights as a safetensors file: as they are, and compressed by zlib at its default level."""
    compressor = zlib.compressobj()
    plain = compressed = 0
    for part in encode(model.state_dict()):
        plain += memoryview(part).nbytes
        compressed += len(compressor.compress(part))
    return plain, compressed + len(compressor.flush())
