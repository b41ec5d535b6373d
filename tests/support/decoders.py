"""A small decoder and its inputs."""

from typing import Any

import torch
from torch import Tensor

from trainer.model.decoder import Decoder

FACTS: dict[str, Any] = {"vocab_size": 50, "num_outputs": 50, "max_length": 64, "output_level": "token"}
SHAPE: dict[str, Any] = {"dim": 32, "depth": 3, "heads": 4, "hidden": 48, "dropout": 0.0, "pooling": "last"}
CLASSES: dict[str, Any] = {"num_outputs": 5, "output_level": "sample"}


def decoder(**changes: Any) -> Decoder:
    """Return a decoder with larger weights than the initial ones, so that positions and attention matter."""
    torch.manual_seed(0)
    model = Decoder(**(FACTS | SHAPE | {"tie_embeddings": True} | changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def tokens(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(seed))
