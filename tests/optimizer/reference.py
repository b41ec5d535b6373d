"""The parameters and gradients that the optimizers are compared on."""

import torch
from torch import nn


def named_parameters() -> list[tuple[str, nn.Parameter]]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"weight": (3, 4), "table": (5, 2), "bias": (3,)}
    return [
        (name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)))
        for name, shape in shapes.items()
    ]


def gradients(step: int, parameter: torch.Tensor) -> torch.Tensor:
    return torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) + step).reshape(parameter.shape)
