import pytest
import torch
from torch.nn.utils import prune

from tests.support.prune_reference import assert_equal, count_zeros, layers, torch_masks, weights_of
from trainer.errors import ConfigError
from trainer.prune.l1 import l1


def test_masks_equal_torchs() -> None:
    for amount in (0.0, 0.3, 0.97, 0, 1, 17):
        assert_equal(l1(weights_of(layers()), amount=amount), torch_masks(prune.l1_unstructured, amount=amount))


def test_pruned_elements_are_smaller_than_kept_elements() -> None:
    weights = weights_of(layers())
    masks = l1(weights, amount=0.4)

    assert count_zeros(masks) == {"linear.weight": 19, "stack.0.weight": 54, "stack.1.weight": 19}
    for name, mask in masks.items():
        assert weights[name][~mask].abs().max() < weights[name][mask].abs().min()


def test_integer_amount_is_a_count_and_zeros_are_pruned_first() -> None:
    weight = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])

    assert l1({"w": weight}, amount=1)["w"].sum() == 3
    assert l1({"w": weight}, amount=0.5)["w"].tolist() == [[True, False], [True, False]]
    assert weight.tolist() == [[3.0, 0.0], [-1.0, 0.0]]


def test_amounts_out_of_range_are_rejected() -> None:
    for amount in (-0.1, 1.0, 1.5, -1, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="amount: must be "):
            l1(weights_of(layers()), amount=amount)


def test_every_weight_of_which_nothing_is_left_is_named() -> None:
    with pytest.raises(ConfigError) as caught:
        l1(weights_of(layers()), amount=48)
    assert [message.split(", got")[0] for message in caught.value.messages] == [
        "amount: prunes all of linear.weight, which has 48 elements",
        "amount: prunes all of stack.1.weight, which has 48 elements",
    ]
