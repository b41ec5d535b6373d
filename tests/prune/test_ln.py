from itertools import product

import pytest
import torch
from torch.nn.utils import prune

from tests.support.prune_reference import assert_equal, layers, torch_masks, weights_of
from trainer.errors import ConfigError
from trainer.prune.ln import ln


def test_masks_equal_torchs() -> None:
    for n, dim, amount in product((1, 2, 3.5, float("inf")), (0, 1, -1), (0.0, 0.6, 1)):
        masks = ln(weights_of(layers()), amount=amount, n=n, dim=dim)
        assert_equal(masks, torch_masks(prune.ln_structured, amount=amount, n=n, dim=dim))


def test_slices_with_the_smallest_norm_are_pruned() -> None:
    weight = torch.tensor([[3.0, 3.0], [4.0, 0.0], [1.0, 1.0]])

    assert ln({"w": weight}, amount=1, n=2, dim=0)["w"].tolist() == [[True, True], [True, True], [False, False]]
    # The second row has the larger maximum, the first row the larger sum.
    assert ln({"w": weight[:2]}, amount=1, n=1, dim=0)["w"].tolist() == [[True, True], [False, False]]
    assert ln({"w": weight[:2]}, amount=1, n=float("inf"), dim=0)["w"].tolist() == [[False, False], [True, True]]
    assert ln({"w": weight}, amount=0.5, n=2, dim=1)["w"].tolist() == [[True, False]] * 3


def test_values_out_of_range_are_rejected() -> None:
    with pytest.raises(ConfigError, match=r"n: must be .*got 0"):
        ln(weights_of(layers()), amount=0.3, n=0, dim=0)
    with pytest.raises(ConfigError, match=r"dim: there is no such axis in linear\.weight \(8, 6\), got 2"):
        ln(weights_of(layers()), amount=0.3, n=2, dim=2)
    with pytest.raises(ConfigError, match=r"prunes all of stack\.0\.weight, which has 3 slices, got 0\.9"):
        ln(weights_of(layers()), amount=0.9, n=2, dim=1)
