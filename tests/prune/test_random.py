import pytest
import torch
from torch.nn.utils import prune

from tests.support.prune_reference import assert_equal, count_zeros, layers, torch_masks, weights_of
from trainer.errors import ConfigError
from trainer.prune.random import random


def test_masks_equal_torchs() -> None:
    for amount in (0.0, 0.3, 5):
        expected = torch_masks(prune.random_unstructured, seed=7, amount=amount)
        assert_equal(random(weights_of(layers()), 7, amount=amount), expected)


def test_masks_depend_only_on_the_seed() -> None:
    first = random(weights_of(layers(0)), 3, amount=0.5)
    torch.rand(5)

    assert_equal(random(weights_of(layers(1)), 3, amount=0.5), first)
    assert not torch.equal(random(weights_of(layers(0)), 4, amount=0.5)["linear.weight"], first["linear.weight"])
    assert count_zeros(first) == {"linear.weight": 24, "stack.0.weight": 68, "stack.1.weight": 24}


def test_global_generator_is_left_unchanged() -> None:
    weights = weights_of(layers())
    before = torch.get_rng_state()
    random(weights, 3, amount=0.5)

    assert torch.equal(torch.get_rng_state(), before)


def test_something_of_each_weight_must_be_left() -> None:
    with pytest.raises(ConfigError, match=r"prunes all of linear\.weight"):
        random(weights_of(layers()), 0, amount=48)
