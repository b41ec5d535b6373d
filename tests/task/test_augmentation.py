from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from trainer.task.augmentation import (
    OPERATIONS,
    amount_faults,
    augment,
    brightness,
    contrast,
    crop,
    cutout,
    flip,
    rotate,
)

AMOUNTS = {"crop": 2, "flip": 0.5, "rotate": 30.0, "brightness": 0.4, "contrast": 0.4, "cutout": 3}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def image(height: int = 7, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return generator(seed).integers(1, 256, size=(height, width, channels), dtype=np.uint8)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.integers(0, 100),
    st.dictionaries(st.sampled_from(sorted(OPERATIONS)), st.sampled_from([0, 1])),
)
def test_shape_and_type_stay_and_the_image_is_not_touched(
    height: int, width: int, channels: int, seed: int, amounts: dict[str, float]
) -> None:
    pixels = image(height, width, channels)
    before = pixels.copy()
    pixels.flags.writeable = False
    changed = augment(pixels, amounts, generator(seed))

    assert (changed.shape, changed.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(changed, augment(pixels, amounts, generator(seed)))


def test_nothing_is_done_without_amounts() -> None:
    pixels = image()

    assert augment(pixels, {}, generator()) is pixels
    assert augment(pixels, dict.fromkeys(AMOUNTS, 0), generator()) is pixels


def test_operations_run_in_their_order() -> None:
    pixels, draws = image(), generator(3)
    expected = pixels
    for operation, name in ((crop, "crop"), (flip, "flip"), (rotate, "rotate")):
        expected = operation(expected, draws, AMOUNTS[name])
    for operation, name in ((brightness, "brightness"), (contrast, "contrast"), (cutout, "cutout")):
        expected = operation(expected, draws, AMOUNTS[name])

    np.testing.assert_array_equal(augment(pixels, dict(reversed(AMOUNTS.items())), generator(3)), expected)


def test_a_crop_is_every_shift_of_the_image_by_up_to_the_border() -> None:
    pixels = image(3, 4, 1)
    padded = np.zeros((7, 8, 1), dtype=np.uint8)
    padded[2:5, 2:6] = pixels
    windows = {padded[top : top + 3, left : left + 4].tobytes() for top in range(5) for left in range(5)}

    assert {crop(pixels, generator(seed), 2).tobytes() for seed in range(500)} == windows


def test_an_image_is_flipped_as_often_as_asked() -> None:
    pixels, draws = image(), generator()
    results = [flip(pixels, draws, 0.3) for _ in range(2000)]
    flipped = [np.array_equal(result, pixels[:, ::-1]) for result in results]

    assert all(map(np.array_equal, results, [pixels[:, ::-1] if turned else pixels for turned in flipped]))
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.04)
    assert np.array_equal(flip(pixels, draws, 1.0), pixels[:, ::-1])


def test_a_rotation_keeps_the_middle_and_blackens_the_corners() -> None:
    pixels = np.full((21, 21, 1), 200, dtype=np.uint8)
    turned = rotate(pixels, generator(5), 45.0)

    assert (turned[8:13, 8:13] == 200).all()
    assert turned[0, 0] == 0
    angles = [generator(seed).uniform(-45, 45) for seed in range(200)]
    assert min(angles) < -40 < 40 < max(angles)
    np.testing.assert_array_equal(
        turned[:, :, 0], np.asarray(Image.fromarray(pixels[:, :, 0]).rotate(generator(5).uniform(-45, 45), resample=2))
    )


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("operation", "kind"), [(brightness, ImageEnhance.Brightness), (contrast, ImageEnhance.Contrast)]
)
def test_factors_are_within_the_amount(
    operation: Callable[[np.ndarray, np.random.Generator, float], np.ndarray], kind: type, channels: int
) -> None:
    pixels = image(9, 9, channels)
    flat = pixels[:, :, 0] if channels == 1 else pixels
    for seed in range(5):
        factor = 1 + generator(seed).uniform(-0.5, 0.5)
        expected = np.asarray(kind(Image.fromarray(flat)).enhance(factor)).reshape(pixels.shape)
        np.testing.assert_array_equal(operation(pixels, generator(seed), 0.5), expected)
    shades = np.full((4, 4, 1), 100, dtype=np.uint8)
    means = [brightness(shades, generator(seed), 0.5).mean() for seed in range(300)]
    assert 49 <= min(means) < 55
    assert 145 < max(means) <= 150


def test_cutout_erases_a_square_around_any_pixel() -> None:
    pixels = image(6, 6, 3)
    erased = set()
    for seed in range(1000):
        black = (cutout(pixels, generator(seed), 3) == 0).all(axis=2)
        rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
        assert black.sum() == len(rows) * len(columns) <= 9
        erased.add((rows[0], rows[-1], columns[0], columns[-1]))

    assert len(erased) == 36
    assert (cutout(pixels, generator(), 100) == 0).all()


def test_amounts_that_cannot_be() -> None:
    assert amount_faults(AMOUNTS) == amount_faults(dict.fromkeys(AMOUNTS, 0)) == amount_faults({}) == []
    assert amount_faults({"crop": 1.5, "flip": 1.1, "rotate": -1, "cutout": -1, "filp": 0.5}) == [
        "augment.crop: must be a whole number of at least 0, got 1.5.",
        "augment.flip: must be a number from 0 to 1, got 1.1.",
        "augment.rotate: must be a number from 0 to 180, got -1.",
        "augment.cutout: must be a whole number of at least 0, got -1.",
        "augment.filp: is no operation. Did you mean flip.",
    ]
    assert len(amount_faults({"crop": float("nan"), "cutout": float("inf")})) == 2
