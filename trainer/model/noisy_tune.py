"""NoisyTune: a little noise on pretrained weights before they are fine-tuned."""

from __future__ import annotations

from math import isfinite

import torch
from torch import nn

from trainer.errors import ConfigError, format_error


@torch.no_grad()
def noisy_tune(model: nn.Module, strength: float, generator: torch.Generator) -> None:
    """Adds uniform noise to each parameter W, in proportion to how much W varies: W + U(-s/2, s/2) * std(W).

    U draws for each element, s is the strength, std the unbiased standard deviation of the elements of W. So what is
    constant stays as it is: new norms and biases, unused embeddings. A parameter that has several names (tied weights)
    gets its noise once; buffers get none.

    Source: Wu et al. 2022, "NoisyTune: a little noise can help you finetune pretrained language models better",
    https://arxiv.org/abs/2202.12024; they recommend strengths of 0.1 to 0.15.

    Args:
        model: Changed in place, on any device.
        strength: Width of the noise in standard deviations, at least 0.
        generator: On the CPU; nothing else is drawn from, so devices make no difference.

    Raises:
        ConfigError: The strength is out of range.
    """
    if not (isfinite(strength) and strength >= 0):
        raise ConfigError(format_error("noisy_tune", "must be finite and at least 0", value=strength))
    if strength == 0:
        return
    for parameter in model.parameters():
        # Rounding may give equal elements a standard deviation, and a single one has none.
        if not parameter.is_floating_point() or parameter.numel() < 2 or (parameter == parameter.flatten()[0]).all():
            continue
        # In float32 at least: the noise is small beside the weights.
        dtype = torch.promote_types(parameter.dtype, torch.float32)
        weights = parameter.to(dtype)
        draws = torch.rand(parameter.shape, generator=generator, dtype=dtype).to(parameter.device)
        parameter.copy_(weights + (draws - 0.5) * strength * weights.std())
