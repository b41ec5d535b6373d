from collections.abc import Sequence

import numpy as np
import pytest
import torch

from trainer.sample_rng import SampleRng
from trainer.task.mixing import Mixing, box, class_shares, mixing_faults


def draws(ids: Sequence[int], *, seed: int = 0, epoch: int = 0, num_rows: int = 1000) -> SampleRng:
    return SampleRng(seed, epoch, tuple(ids), training=True, num_rows=num_rows)


def flat(values: Sequence[float], size: int = 8) -> torch.Tensor:
    """Images of one shade each."""
    return torch.tensor(values)[:, None, None, None].expand(-1, 1, size, size).clone()


def test_a_partner_is_the_samples_own_in_any_batch_and_comes_from_the_whole_split() -> None:
    mixing = Mixing({"mixup": 1.0})
    together = mixing.partners(draws(range(400)))

    assert mixing.partners(draws([7, 3])) == [together[7], together[3]]
    assert mixing.partners(draws(range(400), epoch=1)) != together != mixing.partners(draws(range(400), seed=1))
    # Uniform over 1000 rows: 400 draws reach both ends and rarely meet.
    assert min(together) < 20
    assert max(together) > 980
    assert len(set(together)) > 300


def test_what_is_drawn_to_mix_is_not_what_is_drawn_to_augment() -> None:
    """Else an image were flipped exactly where it is mixed."""
    drawn = draws(range(400))
    partners = Mixing({"mixup": 1.0, "mix_prob": 0.5}).partners(drawn)
    mixed = np.array(partners) != np.arange(400)
    flipped = np.array([drawn.generator(position).random() < 0.5 for position in range(400)])

    assert np.mean(mixed == flipped) == pytest.approx(0.5, abs=0.1)


def test_mixup_is_the_weighted_sum_and_its_share_is_beta() -> None:
    ids = range(3000)
    own, other = flat([1.0] * 3000, size=1), flat([-1.0] * 3000, size=1)
    for alpha in (0.2, 1.0, 4.0):
        mixed, shares = Mixing({"mixup": alpha}).mix(own, other, draws(ids))

        torch.testing.assert_close(mixed.flatten(), 2 * shares - 1, rtol=0, atol=1e-6)
        # Mean and variance of Beta(a, a): 1/2 and 1 / (4 * (2 * a + 1)).
        assert shares.mean().item() == pytest.approx(0.5, abs=0.02)
        assert shares.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_cutmix_pastes_one_box_and_the_share_is_what_is_left() -> None:
    own, other = flat([1.0] * 300, size=16), flat([0.0] * 300, size=16)
    mixed, shares = Mixing({"cutmix": 1.0}).mix(own, other, draws(range(300)))

    assert ((mixed == 0) | (mixed == 1)).all()
    torch.testing.assert_close(mixed.mean(dim=(1, 2, 3)), shares, rtol=0, atol=1e-6)
    for image in mixed[:, 0]:
        pasted = image == 0
        assert pasted.sum() == pasted.any(dim=0).sum() * pasted.any(dim=1).sum()
    assert shares.min() < 0.2
    assert shares.max() > 0.99


def test_a_box_inside_has_the_images_proportions_and_its_centre_is_anywhere() -> None:
    generator, centres, areas = np.random.default_rng(0), set(), set()
    for _ in range(2000):
        rows, columns = box(12, 8, 0.75, generator)
        height, width = rows.stop - rows.start, columns.stop - columns.start
        assert 0 <= rows.start <= rows.stop <= 12
        assert 0 <= columns.start <= columns.stop <= 8
        areas.add((height, width))
        centres.add((rows.start, columns.start, height, width))
    # Half of each side: 6 x 4, less where it is cut off at an edge.
    assert max(areas) == (6, 4)
    assert len(centres) == 12 * 8


def test_what_is_not_mixed_stays_to_the_bit() -> None:
    pixels = torch.randn(50, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    others = pixels.flip(0)
    never, sometimes = Mixing({"mixup": 1.0, "mix_prob": 0.0}), Mixing({"mixup": 1.0, "mix_prob": 0.4})

    mixed, shares = never.mix(pixels, others, draws(range(50)))
    assert torch.equal(mixed, pixels)
    assert torch.equal(shares, torch.ones(50))
    assert never.partners(draws(range(50))) == list(range(50))
    mixed, shares = sometimes.mix(pixels, others, draws(range(50)))
    kept = shares == 1
    assert torch.equal(mixed[kept], pixels[kept])
    assert not torch.equal(mixed, pixels)
    partners = sometimes.partners(draws(range(2000)))
    assert np.mean([partner != own for own, partner in enumerate(partners)]) == pytest.approx(0.4, abs=0.04)


def test_with_both_half_of_the_samples_get_each() -> None:
    own, other = flat([1.0] * 1000, size=16), flat([0.0] * 1000, size=16)
    mixed, shares = Mixing({"mixup": 1.0, "cutmix": 1.0}).mix(own, other, draws(range(1000)))
    cut = ((mixed == 0) | (mixed == 1)).all(dim=3).all(dim=2).all(dim=1) & (shares < 1)

    assert cut.float().mean().item() == pytest.approx(0.5, abs=0.05)


def test_mixing_with_an_equal_image_changes_nothing() -> None:
    pixels = torch.randn(20, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    for amounts in ({"mixup": 0.4}, {"cutmix": 1.0}):
        mixed, _ = Mixing(amounts).mix(pixels, pixels, draws(range(20)))
        torch.testing.assert_close(mixed, pixels, rtol=0, atol=1e-6)


def test_the_shares_of_the_classes() -> None:
    shares = class_shares(np.array([0, 2, 1]), np.array([1, 2, 0]), torch.tensor([0.75, 0.25, 1.0]), 3)

    assert shares.tolist() == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_off_is_off() -> None:
    assert not Mixing({})
    assert not Mixing({"mixup": 0.0, "cutmix": 0, "mix_prob": 1.0})
    assert Mixing({"cutmix": 0.5})


def test_amounts_that_cannot_be() -> None:
    assert mixing_faults("mixup", 32.0) == mixing_faults("cutmix", 0) == mixing_faults("mix_prob", 1.0) == []
    assert mixing_faults("mixup", -1.0) == ["augment.mixup: must be a finite number of at least 0, got -1.0."]
    assert mixing_faults("cutmix", float("inf")) == ["augment.cutmix: must be a finite number of at least 0, got inf."]
    assert mixing_faults("mix_prob", 1.5) == ["augment.mix_prob: must be a number from 0 to 1, got 1.5."]
    assert len(mixing_faults("mixup", float("nan"))) == 1
