import pytest
import torch
from torch.nn.utils import prune

from tests.support.prune_reference import assert_equal, layers, weights_of, zeros
from trainer.errors import ConfigError
from trainer.prune.random import random


@pytest.mark.parametrize("amount", [0.0, 0.3, 5])
def test_the_masks_are_those_that_torch_draws(amount: float) -> None:
    expected = {}
    model = layers()
    torch.manual_seed(7)
    for name in ("linear", "stack.0", "stack.1"):
        module = model.get_submodule(name)
        prune.random_unstructured(module, "weight", amount)
        expected[f"{name}.weight"] = module.weight_mask

    assert_equal(random(weights_of(layers()), 7, amount=amount), expected)  # type: ignore[arg-type]


def test_the_seed_alone_decides() -> None:
    first = random(weights_of(layers(0)), 3, amount=0.5)
    torch.rand(5)

    assert_equal(random(weights_of(layers(1)), 3, amount=0.5), first)
    assert not torch.equal(random(weights_of(layers(0)), 4, amount=0.5)["linear.weight"], first["linear.weight"])
    assert zeros(first) == {"linear.weight": 24, "stack.0.weight": 68, "stack.1.weight": 24}


def test_no_generator_is_moved() -> None:
    weights = weights_of(layers())
    before = torch.get_rng_state()
    random(weights, 3, amount=0.5)

    assert torch.equal(torch.get_rng_state(), before)


def test_something_stays_of_each_weight() -> None:
    with pytest.raises(ConfigError, match=r"leaves nothing of linear\.weight"):
        random(weights_of(layers()), 0, amount=48)
