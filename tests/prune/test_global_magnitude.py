import pytest
from torch.nn.utils import prune

from tests.support.prune_reference import NAMES, assert_equal, found_masks, layers, weights_of, zeros
from trainer.errors import ConfigError
from trainer.prune.global_magnitude import global_magnitude


@pytest.mark.parametrize("amount", [0.0, 0.3, 0.9, 100])
def test_the_masks_are_torchs(amount: float) -> None:
    model = layers()
    parameters = [(model.get_submodule(name), "weight") for name in NAMES]
    prune.global_unstructured(parameters, pruning_method=prune.L1Unstructured, amount=amount)

    assert_equal(global_magnitude(weights_of(layers()), amount=amount), found_masks(model))


def test_the_total_is_kept_and_small_weights_lose_more() -> None:
    weights = weights_of(layers())
    weights["linear.weight"] = weights["linear.weight"] * 0.25
    found = zeros(global_magnitude(weights, amount=0.3))

    assert sum(found.values()) == round(0.3 * (48 + 135 + 48))
    assert found["linear.weight"] > 0.4 * 48


def test_a_whole_weight_may_go_but_not_all() -> None:
    weights = weights_of(layers())
    weights["linear.weight"] = weights["linear.weight"] * 1e-6

    assert zeros(global_magnitude(weights, amount=48))["linear.weight"] == 48
    with pytest.raises(ConfigError, match="leaves nothing of all weights, which has 231 elements"):
        global_magnitude(weights, amount=231)
