"""Mixing each training image with another one: mixup and cutmix, keyed by the sample.

With what a sample is mixed, and how much, is a function of (seed, epoch, sample): the other image is any of the
training split and not one that happens to be in the same batch, so neither accumulation nor batches, workers or a
resume change a pixel.

    mixup   l * x + (1 - l) * x'                                 Zhang et al. 2018, https://arxiv.org/abs/1710.09412
    cutmix  x, but for a box of the share 1 - l, out of x'       Yun et al. 2019, https://arxiv.org/abs/1905.04899

l is Beta(alpha, alpha), drawn for each sample. The box of cutmix has the image's proportions and its centre anywhere,
so some of it may lie outside; l becomes the share of the pixels that stayed. The target has the share l of the
sample's class and 1 - l of the other's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from trainer.errors import format_error

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.sample_rng import SampleRng

AMOUNTS = ("mixup", "cutmix", "mix_prob")
"""The amounts of `augment` that are meant here."""

_STREAM = 1


class Mixing:
    """Mixup and cutmix.

    Args:
        amounts: `mixup` and `cutmix`, alpha of each, 0 for off; with both, a fair coin chooses for each sample.
            `mix_prob`, 1 unless given: the probability that a sample is mixed.
    """

    def __init__(self, amounts: Mapping[str, float]) -> None:
        self.mixup = amounts.get("mixup", 0.0)
        self.cutmix = amounts.get("cutmix", 0.0)
        self.probability = amounts.get("mix_prob", 1.0)

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def partners(self, draws: SampleRng) -> list[int]:
        """With which row of the split each sample is mixed; its own number where it stays as it is."""
        return [self._partner(draws, position)[0] for position in range(len(draws.ids))]

    def mix(self, pixels: Tensor, others: Tensor, draws: SampleRng) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) mixed with `others` of the same shape, and the share of each that is its own, (B,)."""
        mixed, shares = pixels.clone(), torch.ones(len(pixels))
        for position, (image, other) in enumerate(zip(mixed, others, strict=True)):
            partner, generator = self._partner(draws, position)
            if partner == draws.ids[position]:
                continue
            cut = self.cutmix > 0 and (self.mixup == 0 or generator.random() < 0.5)
            alpha = self.cutmix if cut else self.mixup
            share = generator.beta(alpha, alpha)
            if cut:
                rows, columns = box(image.shape[1], image.shape[2], share, generator)
                image[:, rows, columns] = other[:, rows, columns]
                share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / image[0].numel()
            else:
                image.mul_(share).add_(other, alpha=1 - share)
            shares[position] = share
        return mixed, shares

    def _partner(self, draws: SampleRng, position: int) -> tuple[int, np.random.Generator]:
        """The row that a sample is mixed with, and the generator of what else is to be drawn for it."""
        generator = draws.generator(position, _STREAM)
        mixed = generator.random() < self.probability
        return int(generator.integers(draws.num_rows)) if mixed else int(draws.ids[position]), generator


def box(height: int, width: int, share: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """Rows and columns of a box of 1 - `share` of an image, its centre anywhere in it, as far as it lies inside."""
    side = math.sqrt(1 - share)
    return _span(height, side, generator), _span(width, side, generator)


def _span(size: int, part: float, generator: np.random.Generator) -> slice:
    length = int(size * part)
    start = int(generator.integers(size)) - length // 2
    return slice(max(0, start), min(size, start + length))


def class_shares(classes: np.ndarray, others: np.ndarray, shares: Tensor, num_classes: int) -> Tensor:
    """Targets (B, C), float32: the share of each sample's class (B,), the rest to the other's class (B,)."""
    target = torch.zeros(len(shares), num_classes)
    target.scatter_add_(1, torch.from_numpy(classes)[:, None], shares[:, None])
    return target.scatter_add_(1, torch.from_numpy(others)[:, None], 1 - shares[:, None])


def mixing_faults(name: str, amount: float) -> list[str]:
    """What is wrong with one of `AMOUNTS`."""
    largest = 1.0 if name == "mix_prob" else math.inf
    if 0 <= amount <= largest and math.isfinite(amount):
        return []
    number = "a number from 0 to 1" if largest == 1 else "a finite number of at least 0"
    return [format_error(f"augment.{name}", f"must be {number}", value=amount)]
