"""Random changes of an image that leave its class; what is cut off, turned in or erased becomes black."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from trainer.errors import did_you_mean, format_error
from trainer.task.mixing import AMOUNTS, mixing_faults

if TYPE_CHECKING:
    from PIL.Image import Image

Pixels = np.ndarray
"""uint8 (H, W, C)."""


def augment(pixels: Pixels, amounts: Mapping[str, float], generator: np.random.Generator) -> Pixels:
    """The image after each operation of `OPERATIONS` whose amount is above 0, in their order."""
    for name, (operation, _, _) in OPERATIONS.items():
        if amount := amounts.get(name, 0):
            pixels = operation(pixels, generator, amount)
    return pixels


def amount_faults(amounts: Mapping[str, float]) -> list[str]:
    """What is wrong with the amounts of operations and of mixing, one message each."""
    faults = []
    for name, amount in amounts.items():
        if name in AMOUNTS:
            faults += mixing_faults(name, amount)
            continue
        if name not in OPERATIONS:
            faults.append(
                format_error(f"augment.{name}", "is no operation", did_you_mean(name, [*OPERATIONS, *AMOUNTS]))
            )
            continue
        _, kind, largest = OPERATIONS[name]
        if not 0 <= amount <= largest or (kind is int and not float(amount).is_integer()):
            number = "a whole number of at least 0" if kind is int else f"a number from 0 to {largest:g}"
            faults.append(format_error(f"augment.{name}", f"must be {number}", value=amount))
    return faults


def crop(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """A window of the image's size out of the image with `amount` black pixels around it."""
    border = int(amount)
    padded = np.pad(pixels, ((border, border), (border, border), (0, 0)))
    top, left = generator.integers(2 * border, size=2, endpoint=True)
    return padded[top : top + pixels.shape[0], left : left + pixels.shape[1]]


def flip(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Left and right change places, with the probability `amount`."""
    return pixels[:, ::-1] if generator.random() < amount else pixels


def rotate(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """Turned around its centre by up to `amount` degrees either way, interpolated."""
    from PIL.Image import Resampling

    angle = generator.uniform(-amount, amount)
    return _like(_image(pixels).rotate(angle, Resampling.BILINEAR), pixels)


def brightness(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """All values times a factor from 1 - `amount` to 1 + `amount`, clipped."""
    from PIL import ImageEnhance

    return _like(ImageEnhance.Brightness(_image(pixels)).enhance(1 + generator.uniform(-amount, amount)), pixels)


def contrast(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """All values' distances from the image's mean grey times a factor from 1 - `amount` to 1 + `amount`, clipped."""
    from PIL import ImageEnhance

    return _like(ImageEnhance.Contrast(_image(pixels)).enhance(1 + generator.uniform(-amount, amount)), pixels)


def cutout(pixels: Pixels, generator: np.random.Generator, amount: float) -> Pixels:
    """A black square of side `amount`, its centre anywhere in the image, so that some of it may lie outside.

    Source: DeVries and Taylor 2017, https://arxiv.org/abs/1708.04552.
    """
    side = int(amount)
    top, left = (int(generator.integers(size)) - side // 2 for size in pixels.shape[:2])
    erased = pixels.copy()
    erased[max(0, top) : top + side, max(0, left) : left + side] = 0
    return erased


OPERATIONS: dict[str, tuple[Callable[[Pixels, np.random.Generator, float], Pixels], type, float]] = {
    "crop": (crop, int, np.inf),
    "flip": (flip, float, 1.0),
    "rotate": (rotate, float, 180.0),
    "brightness": (brightness, float, 1.0),
    "contrast": (contrast, float, 1.0),
    "cutout": (cutout, int, np.inf),
}
"""The operations by name, in their order, with the kind and the largest of their amounts."""


def _image(pixels: Pixels) -> Image:
    from PIL.Image import fromarray

    return fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


def _like(image: Image, pixels: Pixels) -> Pixels:
    return np.asarray(image).reshape(pixels.shape)
