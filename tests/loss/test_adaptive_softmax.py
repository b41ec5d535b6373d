import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.loss_sums import check_order_is_free, check_parts_add_up
from trainer.errors import ConfigError, RowError
from trainer.loss.adaptive_softmax import AdaptiveSoftmax

COUNTS = [3, 50, 0, 7, 50, 1, 9, 30, 2, 4]
CLASSES_BY_COUNT = [1, 4, 7, 6, 3, 9, 0, 8, 5, 2]
"""The classes in descending order of their counts; ties: the lower number first."""


def make_loss(cutoffs: list[int] | None = None, head_bias: bool = True) -> AdaptiveSoftmax:
    torch.manual_seed(1)
    cutoffs = [2, 5] if cutoffs is None else cutoffs
    return AdaptiveSoftmax(8, cutoffs, 2.0, head_bias, -100, 10, COUNTS).double()


def features_and_targets(rows: int = 20, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(10, (rows,), generator=generator)
    target[::6] = -100
    return torch.randn(rows, 8, generator=generator, dtype=torch.float64).to(dtype), target


@pytest.mark.parametrize(("cutoffs", "head_bias"), [([2, 5], False), ([1], True), ([9], True), ([3, 4, 5], True)])
def test_value_and_gradients_match_torch_with_sorted_classes(cutoffs, head_bias):
    loss = make_loss(cutoffs, head_bias)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(8, 10, cutoffs, 2.0, head_bias).double()
    theirs.load_state_dict(loss.softmax.state_dict())
    output, target = features_and_targets()
    kept = target != -100
    permuted = torch.tensor([CLASSES_BY_COUNT.index(y) for y in target[kept].tolist()])

    value = loss(output, target)
    expected = theirs(output[kept], permuted).loss * kept.sum()
    value.backward()
    expected.backward()

    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected.item(), rel_tol=1e-13)
    for ours, other in zip(loss.parameters(), theirs.parameters(), strict=True):
        # Torch gives a cluster without targets no gradient at all.
        expected = torch.zeros_like(ours) if other.grad is None else other.grad
        assert torch.allclose(ours.grad, expected, rtol=1e-11, atol=1e-13)
    assert torch.allclose(loss.scores(output)[:, CLASSES_BY_COUNT], theirs.log_prob(output), rtol=1e-13)


def test_scores_are_log_probabilities_that_match_the_loss():
    loss = make_loss([2, 5])
    output, target = features_and_targets()
    kept = target != -100
    scores = loss.scores(output)
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(20, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(loss(output, target), -scores[kept, target[kept]].sum(), rtol=1e-12)


def test_gradients():
    loss = make_loss()
    output, target = features_and_targets(rows=9)
    names, parameters = zip(*loss.named_parameters(), strict=True)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in parameters]

    def value(features: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, dict(zip(names, values, strict=True)), (features, target))

    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *parameters))


@settings(max_examples=30)
@given(order=st.permutations(range(20)), split=st.integers(0, 20))
def test_loss_is_a_sum_over_targets(order, split):
    loss = make_loss()
    output, target = features_and_targets()
    check_order_is_free(loss, output, target, order)
    check_parts_add_up(loss, output[order], target[order], split)
    assert loss.num_targets(target) == 16


def test_leading_axes_are_flattened():
    loss = make_loss()
    output, target = features_and_targets()
    shaped = output.view(5, 4, 8)
    torch.testing.assert_close(loss(shaped, target.view(5, 4)), loss(output, target))
    torch.testing.assert_close(loss.scores(shaped), loss.scores(output).view(5, 4, 10))
    assert torch.allclose(loss.scores(output[0]), loss.scores(output)[0])


@pytest.mark.parametrize("rows", [0, 4])
def test_loss_without_targets_is_zero(rows):
    loss = make_loss()
    output = torch.randn(rows, 8, dtype=torch.float64, requires_grad=True)
    target = torch.full((rows,), -100)
    value = loss(output, target)
    value.backward()
    assert value.item() == 0
    assert loss.num_targets(target).item() == 0
    assert torch.equal(output.grad, torch.zeros_like(output))
    assert all(torch.equal(parameter.grad, torch.zeros_like(parameter)) for parameter in loss.parameters())
    assert loss.scores(output).shape == (rows, 10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_features_stay_finite(dtype):
    loss = make_loss().float()
    output = torch.tensor([[1e4, -1e4] * 4] * 11, dtype=dtype, requires_grad=True)
    target = torch.tensor([*range(10), -100])
    value = loss(output, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(output.float(), target))
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()
    assert torch.isfinite(loss.scores(output)).all()
    assert torch.equal(output.grad[10], torch.zeros(8, dtype=dtype))


def test_default_cutoffs():
    for num_classes, cutoffs in [(2, [1]), (7, [1]), (8, [1, 2]), (100, [5, 25]), (1000, [50, 250])]:
        loss = AdaptiveSoftmax(128, None, 4.0, False, -100, num_classes)
        assert loss.softmax.cutoffs == [*cutoffs, num_classes]
        assert torch.equal(loss.rank, torch.arange(num_classes))


def test_state_is_the_parameters():
    loss = make_loss()
    assert loss.state_dict().keys() == dict(loss.named_parameters()).keys()
    assert loss.in_features == 8
    assert loss.rank[CLASSES_BY_COUNT].tolist() == list(range(10))
    assert loss.to("meta").rank.device.type == "meta"


def test_wrong_arguments_raise():
    for change, keys in [
        ({"cutoffs": []}, ["cutoffs"]),
        ({"cutoffs": [0, 3]}, ["cutoffs"]),
        ({"cutoffs": [3, 10]}, ["cutoffs"]),
        ({"cutoffs": [5, 3]}, ["cutoffs"]),
        ({"cutoffs": [3, 3]}, ["cutoffs"]),
        ({"div_value": 0.5}, ["div_value"]),
        ({"div_value": math.nan}, ["div_value"]),
        ({"in_features": 0, "cutoffs": [0]}, ["in_features", "cutoffs"]),
        ({"in_features": 63, "cutoffs": [1, 2, 3]}, ["div_value"]),
        ({"in_features": 15, "cutoffs": None, "num_outputs": 100}, ["div_value"]),
        ({"ignore_index": 1}, ["ignore_index"]),
        ({"num_outputs": None}, ["_target_"]),
        ({"num_outputs": 1}, ["_target_"]),
    ]:
        arguments = {
            "in_features": 64,
            "cutoffs": [1, 2, 3],
            "div_value": 4.0,
            "head_bias": False,
            "ignore_index": -100,
        }
        with pytest.raises(ConfigError) as error:
            AdaptiveSoftmax(**arguments | {"num_outputs": 10} | change)
        assert [message.split(":")[0] for message in error.value.messages] == keys


def test_wrong_outputs_and_targets_are_reported():
    for output, target in [((4, 5), (4, 1)), ((4, 5), (3,)), ((4, 6), (4,)), ((8,), (8,)), ((2, 3), (2,))]:
        with pytest.raises(ValueError, match=rf"\({output[0]},"):
            make_loss()(torch.zeros(output), torch.zeros(target, dtype=torch.int64))
    with pytest.raises(RowError, match=r"^target: must be a class in 0 \.\.\. 9, .*, got 10"):
        make_loss().check(torch.tensor([0, -100, 10]))
