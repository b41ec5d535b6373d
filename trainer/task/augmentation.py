"""Random changes of training images: operations on a single image, and mixing with another one (mixup, cutmix).

Pixels that an operation cuts off, turns in or erases become black. All randomness is a function of (seed, epoch,
sample). The partner of a mixed image is any image of the training split rather than one from the same batch, so
accumulation, batches, workers and resuming do not change a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from trainer.sample_rng import SampleRng

Pixels = np.ndarray
"""uint8 (H, W, C)."""

_MIXING_STREAM = 1
"""The stream of a sample's random generator for mixing; operations use the one without a number."""


def augment(pixels: Pixels, amounts: Mapping[str, float], generator: np.random.Generator) -> Pixels:
    """Apply each operation of `OPERATIONS` whose amount is above 0, in the order of that table."""
    for name, operation in OPERATIONS.items():
        if amount := amounts.get(name, 0):
            pixels = operation(pixels, generator, amount)
    return pixels


def crop(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Return a random window of the image's size from the image with a border of `amount` black pixels."""
    border = int(amount)
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)))
    top, left = generator.integers(2 * border, size=2, endpoint=True)
    return padded[top : top + pixels.shape[0], left : left + pixels.shape[1]]


def flip(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Flip left and right with probability `amount`."""
    return pixels[:, ::-1] if generator.random() < amount else pixels


def rotate(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Rotate around the center by up to `amount` degrees in either direction, with bilinear interpolation."""
    from PIL.Image import Resampling

    angle = generator.uniform(-amount, amount)
    return _to_pixels(_to_image(pixels).rotate(angle, Resampling.BILINEAR), pixels)


def brightness(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Multiply all values with a factor from 1 - `amount` to 1 + `amount`, and clip."""
    from PIL import ImageEnhance

    factor = 1 + generator.uniform(-amount, amount)
    return _to_pixels(ImageEnhance.Brightness(_to_image(pixels)).enhance(factor), pixels)


def contrast(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Multiply the distances from the image's mean gray with a factor from 1 - `amount` to 1 + `amount`, and clip."""
    from PIL import ImageEnhance

    factor = 1 + generator.uniform(-amount, amount)
    return _to_pixels(ImageEnhance.Contrast(_to_image(pixels)).enhance(factor), pixels)


def cutout(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Erase a square of side `amount` centered anywhere in the image, so part of the square may be outside.

    Source: DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.
    """
    side = int(amount)
    top, left = (int(generator.integers(size)) - side // 2 for size in pixels.shape[:2])
    erased = pixels.copy()
    erased[max(0, top) : top + side, max(0, left) : left + side] = 0
    return erased


OPERATIONS: dict[str, Callable[[Pixels, np.random.Generator, float], Pixels]] = {
    "crop": crop,
    "flip": flip,
    "rotate": rotate,
    "brightness": brightness,
    "contrast": contrast,
    "cutout": cutout,
}
"""The operations by name, in the order in which `augment` applies them."""


def _to_image(pixels: Pixels) -> Image:
    from PIL.Image import fromarray

    return fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _to_pixels(image: Image, like: Pixels) -> Pixels:
    return np.asarray(image).reshape(like.shape)


class Mixing:
    """Mixup and cutmix.

        mixup   w * x + (1 - w) * x'                                  Zhang et al. 2018, arxiv.org/abs/1710.09412
        cutmix  x, except for a box of the fraction 1 - w from x'     Yun et al. 2019, arxiv.org/abs/1905.04899

    The weight w is Beta(alpha, alpha), drawn for each sample. The box of cutmix has the image's aspect ratio and its
    center anywhere, so part of it may be outside; w then becomes the fraction of the pixels that stayed. The target has
    the share w of the sample's class and 1 - w of the partner's.

    Args:
        amounts: `mixup` and `cutmix`: alpha of each, 0 for off; with both, a fair coin chooses for each sample.
            `mix_prob`, default 1: the probability that a sample is mixed.
    """

    def __init__(self, amounts: Mapping[str, float]) -> None:
        self.mixup = amounts.get("mixup", 0.0)
        self.cutmix = amounts.get("cutmix", 0.0)
        self.probability = amounts.get("mix_prob", 1.0)

    def __bool__(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    def partners(self, rng: SampleRng) -> list[int]:
        """Return the row of the split to mix each sample with; the sample's own row leaves it unchanged."""
        return [self._partner(rng, position)[0] for position in range(len(rng.ids))]

    def mix(self, pixels: Tensor, others: Tensor, rng: SampleRng) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) with `others` of the same shape.

        Returns:
            The mixed images, and the weight of each image itself, (B,).
        """
        mixed, weights = pixels.clone(), torch.ones(len(pixels))
        for position, (image, other) in enumerate(zip(mixed, others, strict=True)):
            partner, generator = self._partner(rng, position)
            if partner == rng.ids[position]:
                continue
            cut = self.cutmix > 0 and (self.mixup == 0 or generator.random() < 0.5)
            alpha = self.cutmix if cut else self.mixup
            weight = generator.beta(alpha, alpha)
            if cut:
                rows, columns = random_box(image.shape[1], image.shape[2], weight, generator)
                image[:, rows, columns] = other[:, rows, columns]
                weight = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / image[0].numel()
            else:
                image.mul_(weight).add_(other, alpha=1 - weight)
            weights[position] = weight
        return mixed, weights

    def _partner(self, rng: SampleRng, position: int) -> tuple[int, np.random.Generator]:
        """Return the row that a sample is mixed with, and the generator for its other random numbers."""
        generator = rng.generator(position, _MIXING_STREAM)
        mixed = generator.random() < self.probability
        return int(generator.integers(rng.num_rows)) if mixed else int(rng.ids[position]), generator


def random_box(height: int, width: int, weight: float, generator: np.random.Generator) -> tuple[slice, slice]:
    """Return rows and columns of a box with the fraction 1 - `weight` of an image, cut off at the image's edges."""
    side = math.sqrt(1 - weight)
    return _random_span(height, side, generator), _random_span(width, side, generator)


def _random_span(size: int, fraction: float, generator: np.random.Generator) -> slice:
    length = int(size * fraction)
    start = int(generator.integers(size)) - length // 2
    return slice(max(0, start), min(size, start + length))


def mixed_target(classes: np.ndarray, others: np.ndarray, weights: Tensor, num_classes: int) -> Tensor:
    """Return targets (B, C), float32, that give `weights` (B,) to `classes` (B,) and the rest to `others` (B,)."""
    target = torch.zeros(len(weights), num_classes)
    target.scatter_add_(1, torch.from_numpy(classes)[:, None], weights[:, None])
    return target.scatter_add_(1, torch.from_numpy(others)[:, None], 1 - weights[:, None])
