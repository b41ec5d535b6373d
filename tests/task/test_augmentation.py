from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from trainer.sample_rng import SampleRng
from trainer.task.augmentation import (
    OPERATIONS,
    Mixing,
    augment,
    brightness,
    contrast,
    crop,
    cutout,
    flip,
    mixed_target,
    random_box,
    rotate,
)

AMOUNTS = {"crop": 2, "flip": 0.5, "rotate": 30.0, "brightness": 0.4, "contrast": 0.4, "cutout": 3}


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random_image(height: int = 7, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return generator(seed).integers(1, 256, size=(height, width, channels), dtype=np.uint8)


@settings(max_examples=40)
@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([1, 3]),
    st.integers(0, 100),
    st.dictionaries(st.sampled_from(sorted(OPERATIONS)), st.sampled_from([0, 1])),
)
def test_augment_keeps_shape_and_input_and_is_deterministic(
    height: int, width: int, channels: int, seed: int, amounts: dict[str, float]
) -> None:
    pixels = random_image(height, width, channels)
    before = pixels.copy()
    pixels.flags.writeable = False
    changed = augment(pixels, amounts, generator(seed))

    assert (changed.shape, changed.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(pixels, before)
    np.testing.assert_array_equal(changed, augment(pixels, amounts, generator(seed)))


def test_zero_amounts_change_nothing() -> None:
    pixels = random_image()

    assert augment(pixels, {}, generator()) is pixels
    assert augment(pixels, dict.fromkeys(AMOUNTS, 0), generator()) is pixels


def test_operations_run_in_fixed_order() -> None:
    pixels, draws = random_image(), generator(3)
    expected = pixels
    for operation, name in ((crop, "crop"), (flip, "flip"), (rotate, "rotate")):
        expected = operation(expected, draws, AMOUNTS[name])
    for operation, name in ((brightness, "brightness"), (contrast, "contrast"), (cutout, "cutout")):
        expected = operation(expected, draws, AMOUNTS[name])

    np.testing.assert_array_equal(augment(pixels, dict(reversed(AMOUNTS.items())), generator(3)), expected)


def test_crop_reaches_every_shift_up_to_the_border() -> None:
    pixels = random_image(3, 4, 1)
    padded = np.zeros((7, 8, 1), dtype=np.uint8)
    padded[2:5, 2:6] = pixels
    windows = {padded[top : top + 3, left : left + 4].tobytes() for top in range(5) for left in range(5)}

    assert {crop(pixels, generator(seed), 2).tobytes() for seed in range(500)} == windows


def test_flip_has_the_given_probability() -> None:
    pixels, draws = random_image(), generator()
    results = [flip(pixels, draws, 0.3) for _ in range(2000)]
    flipped = [np.array_equal(result, pixels[:, ::-1]) for result in results]

    assert all(map(np.array_equal, results, [pixels[:, ::-1] if turned else pixels for turned in flipped]))
    assert np.mean(flipped) == pytest.approx(0.3, abs=0.04)
    assert np.array_equal(flip(pixels, draws, 1.0), pixels[:, ::-1])


def test_rotation_keeps_the_center_and_blackens_the_corners() -> None:
    pixels = np.full((21, 21, 1), 200, dtype=np.uint8)
    turned = rotate(pixels, generator(5), 45.0)

    assert (turned[8:13, 8:13] == 200).all()
    assert turned[0, 0] == 0
    angles = [generator(seed).uniform(-45, 45) for seed in range(200)]
    assert min(angles) < -40 < 40 < max(angles)
    np.testing.assert_array_equal(
        turned[:, :, 0], np.asarray(Image.fromarray(pixels[:, :, 0]).rotate(generator(5).uniform(-45, 45), resample=2))
    )


def test_brightness_and_contrast_equal_pillow() -> None:
    for channels in (1, 3):
        pixels = random_image(9, 9, channels)
        image = Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels)
        for seed in range(5):
            factor = 1 + generator(seed).uniform(-0.5, 0.5)
            brighter = np.asarray(ImageEnhance.Brightness(image).enhance(factor)).reshape(pixels.shape)
            np.testing.assert_array_equal(brightness(pixels, generator(seed), 0.5), brighter)
            stronger = np.asarray(ImageEnhance.Contrast(image).enhance(factor)).reshape(pixels.shape)
            np.testing.assert_array_equal(contrast(pixels, generator(seed), 0.5), stronger)
    shades = np.full((4, 4, 1), 100, dtype=np.uint8)
    means = [brightness(shades, generator(seed), 0.5).mean() for seed in range(300)]
    assert 49 <= min(means) < 55
    assert 145 < max(means) <= 150


def test_cutout_erases_a_square_around_any_pixel() -> None:
    pixels = random_image(6, 6, 3)
    erased = set()
    for seed in range(1000):
        black = (cutout(pixels, generator(seed), 3) == 0).all(axis=2)
        rows, columns = np.flatnonzero(black.any(axis=1)), np.flatnonzero(black.any(axis=0))
        assert black.sum() == len(rows) * len(columns) <= 9
        erased.add((rows[0], rows[-1], columns[0], columns[-1]))

    assert len(erased) == 36
    assert (cutout(pixels, generator(), 100) == 0).all()


def sample_rng(ids: Sequence[int], *, seed: int = 0, epoch: int = 0, num_rows: int = 1000) -> SampleRng:
    return SampleRng(seed, epoch, tuple(ids), training=True, num_rows=num_rows)


def flat(values: Sequence[float], size: int = 8) -> torch.Tensor:
    """Images of one shade each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, size, size).clone()


def test_partner_depends_on_the_sample_and_comes_from_the_whole_split() -> None:
    mixing = Mixing({"mixup": 1.0})
    together = mixing.partners(sample_rng(range(400)))

    assert mixing.partners(sample_rng([7, 3])) == [together[7], together[3]]
    assert (
        mixing.partners(sample_rng(range(400), epoch=1)) != together != mixing.partners(sample_rng(range(400), seed=1))
    )
    # Uniform over 1000 rows: 400 draws reach both ends and rarely meet.
    assert min(together) < 20
    assert max(together) > 980
    assert len(set(together)) > 300


def test_mixing_and_augmentation_draw_independently() -> None:
    # Otherwise an image would be flipped exactly if it is mixed.
    drawn = sample_rng(range(400))
    partners = Mixing({"mixup": 1.0, "mix_prob": 0.5}).partners(drawn)
    mixed = np.array(partners) != np.arange(400)
    flipped = np.array([drawn.generator(position).random() < 0.5 for position in range(400)])

    assert np.mean(mixed == flipped) == pytest.approx(0.5, abs=0.1)


def test_mixup_is_the_weighted_sum_with_a_beta_weight() -> None:
    ids = range(3000)
    own, other = flat([1.0] * 3000, size=1), flat([-1.0] * 3000, size=1)
    for alpha in (0.2, 1.0, 4.0):
        mixed, shares = Mixing({"mixup": alpha}).mix(own, other, sample_rng(ids))

        torch.testing.assert_close(mixed.flatten(), 2 * shares - 1, rtol=0, atol=1e-6)
        # Mean and variance of Beta(a, a): 1/2 and 1 / (4 * (2 * a + 1)).
        assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_cutmix_pastes_one_box_and_weighs_by_area() -> None:
    own, other = flat([1.0] * 300, size=16), flat([0.0] * 300, size=16)
    mixed, shares = Mixing({"cutmix": 1.0}).mix(own, other, sample_rng(range(300)))

    assert ((mixed == 0) | (mixed == 1)).all()
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares, rtol=0, atol=1e-6)
    for image in mixed[:, 0]:
        pasted = image == 0
        assert pasted.sum() == pasted.any(dim=0).sum() * pasted.any(dim=1).sum()
    assert shares.min() < 0.2
    assert shares.max() > 0.99


def test_box_has_the_images_aspect_ratio_and_any_center() -> None:
    generator, centres, areas = np.random.default_rng(0), set(), set()
    for _ in range(2000):
        rows, columns = random_box(12, 8, 0.75, generator)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 0 <= rows.start <= rows.stop <= 12
        assert 0 <= columns.start <= columns.stop <= 8
        areas.add((height, width))
        centres.add((rows.start, columns.start, height, width))
    # Half of each side: 6 x 4, less where it is cut off at an edge.
    assert max(areas) == (6, 4)
    assert len(centres) == 12 * 8


def test_images_that_are_not_mixed_stay_bitwise_equal() -> None:
    pixels = torch.randn(50, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    others = pixels.flip(0)
    never, sometimes = Mixing({"mixup": 1.0, "mix_prob": 0.0}), Mixing({"mixup": 1.0, "mix_prob": 0.4})

    mixed, shares = never.mix(pixels, others, sample_rng(range(50)))
    assert torch.equal(mixed, pixels)
    assert torch.equal(shares, torch.ones(50))
    assert never.partners(sample_rng(range(50))) == list(range(50))
    mixed, shares = sometimes.mix(pixels, others, sample_rng(range(50)))
    kept = shares == 1
    assert torch.equal(mixed[kept], pixels[kept])
    assert not torch.equal(mixed, pixels)
    partners = sometimes.partners(sample_rng(range(2000)))
    assert np.mean([partner != own for own, partner in enumerate(partners)]) == pytest.approx(0.4, abs=0.04)


def test_with_both_each_gets_half_of_the_samples() -> None:
    own, other = flat([1.0] * 1000, size=16), flat([0.0] * 1000, size=16)
    mixed, shares = Mixing({"mixup": 1.0, "cutmix": 1.0}).mix(own, other, sample_rng(range(1000)))
    cut = ((mixed == 0) | (mixed == 1)).all(dim=3).all(dim=2).all(dim=1) & (shares < 1)

    assert cut.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_mixing_with_an_equal_image_changes_nothing() -> None:
    pixels = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for amounts in ({"mixup": 0.4}, {"cutmix": 1.0}):
        mixed, _ = Mixing(amounts).mix(pixels, pixels, sample_rng(range(20)))
        torch.testing.assert_close(mixed, pixels, rtol=0, atol=1e-6)


def test_mixed_target_weighs_the_classes() -> None:
    shares = mixed_target(np.array([0, 2, 1]), np.array([1, 2, 0]), torch.tensor([0.75, 0.25, 1.0]), 3)

    assert shares.tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_mixing_is_off_without_amounts() -> None:
    assert not Mixing({})
    assert not Mixing({"mixup": 0.0, "cutmix": 0, "mix_prob": 1.0})
    assert Mixing({"cutmix": 0.5})
