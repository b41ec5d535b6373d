import pytest
from torch.nn.utils import prune

from tests.support.prune_reference import NAMES, assert_equal, count_zeros, layers, masks_in, weights_of
from trainer.errors import ConfigError
from trainer.prune.global_magnitude import global_magnitude


def test_masks_equal_torchs() -> None:
    for amount in (0.0, 0.3, 100):
        model = layers()
        parameters = [(model.get_submodule(name), "weight") for name in NAMES]
        prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)

        assert_equal(global_magnitude(weights_of(layers()), amount=amount), masks_in(model))


def test_total_is_the_amount_and_small_weights_lose_more() -> None:
    weights = weights_of(layers())
    weights["linear.weight"] = weights["linear.weight"] * 0.25
    zeros = count_zeros(global_magnitude(weights, amount=0.3))

    assert sum(zeros.values()) == round(0.3 * (48 + 135 + 48))
    assert zeros["linear.weight"] > 0.4 * 48


def test_a_whole_weight_may_be_pruned_but_not_all_weights() -> None:
    weights = weights_of(layers())
    weights["linear.weight"] = weights["linear.weight"] * 1e-6

    assert count_zeros(global_magnitude(weights, amount=48))["linear.weight"] == 48
    with pytest.raises(ConfigError, match="prunes all of all weights, which has 231 elements"):
        global_magnitude(weights, amount=231)
