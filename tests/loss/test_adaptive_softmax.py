import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.errors import ConfigError, RowError
from trainer.loss.adaptive_softmax import AdaptiveSoftmax

COUNTS = [3, 50, 0, 7, 50, 1, 9, 30, 2, 4]
RISING_RANK = [1, 4, 7, 6, 3, 9, 0, 8, 5, 2]
"""The classes in falling order of their counts, of equal ones the lower number first."""


def loss_of(cutoffs: list[int] | None = None, head_bias: bool = True) -> AdaptiveSoftmax:
    torch.manual_seed(1)
    cutoffs = [2, 5] if cutoffs is None else cutoffs
    return AdaptiveSoftmax(8, cutoffs, 2.0, head_bias, -100, 10, COUNTS).double()


def features_and_targets(rows: int = 20, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(10, (rows,), generator=generator)
    target[::6] = -100
    return torch.randn(rows, 8, generator=generator, dtype=torch.float64).to(dtype), target


@pytest.mark.parametrize("head_bias", [False, True])
@pytest.mark.parametrize("cutoffs", [[2, 5], [1], [9], [3, 4, 5]])
def test_value_and_gradients_are_torchs_of_the_permuted_targets(cutoffs, head_bias):
    loss = loss_of(cutoffs, head_bias)
    theirs = nn.AdaptiveLogSoftmaxWithLoss(8, 10, cutoffs, 2.0, head_bias).double()
    theirs.load_state_dict(loss.softmax.state_dict())
    output, target = features_and_targets()
    kept = target != -100
    permuted = torch.tensor([RISING_RANK.index(y) for y in target[kept].tolist()])

    value = loss(output, target)
    expected = theirs(output[kept], permuted).loss * kept.sum()
    value.backward()
    expected.backward()

    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected.item(), rel_tol=1e-13)
    for ours, other in zip(loss.parameters(), theirs.parameters(), strict=True):
        # Torch gives a cluster without targets no gradient at all.
        wanted = torch.zeros_like(ours) if other.grad is None else other.grad
        assert torch.allclose(ours.grad, wanted, rtol=1e-11, atol=1e-13)
    assert torch.allclose(loss.scores(output)[:, RISING_RANK], theirs.log_prob(output), rtol=1e-13)


@pytest.mark.parametrize("cutoffs", [[2, 5], [1], [9], [3, 4, 5]])
def test_scores_are_log_probabilities_and_the_loss_is_the_targets(cutoffs):
    loss = loss_of(cutoffs)
    output, target = features_and_targets()
    kept = target != -100
    scores = loss.scores(output)
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(20, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(loss(output, target), -scores[kept, target[kept]].sum(), rtol=1e-12)


def test_gradient_in_float64():
    loss = loss_of()
    output, target = features_and_targets(rows=9)
    names, parameters = zip(*loss.named_parameters(), strict=True)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in parameters]

    def value(features: torch.Tensor, *given: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, dict(zip(names, given, strict=True)), (features, target))

    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *parameters))


@given(order=st.permutations(range(20)), split=st.integers(0, 20))
def test_it_is_a_sum_over_the_targets(order, split):
    loss = loss_of()
    output, target = features_and_targets()
    moved, wanted = output[order], target[order]
    parts = loss(moved[:split], wanted[:split]) + loss(moved[split:], wanted[split:])
    assert math.isclose(parts.item(), loss(output, target).item(), rel_tol=1e-12)
    assert loss.num_targets(wanted[:split]) + loss.num_targets(wanted[split:]) == loss.num_targets(target) == 16


def test_leading_axes_are_flattened():
    loss = loss_of()
    output, target = features_and_targets()
    shaped, wanted = output.view(5, 4, 8), target.view(5, 4)
    assert torch.equal(loss(shaped, wanted), loss(output, target))
    assert torch.equal(loss.scores(shaped), loss.scores(output).view(5, 4, 10))
    assert torch.allclose(loss.scores(output[0]), loss.scores(output)[0])


@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(rows):
    loss = loss_of()
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
    loss = loss_of().float()
    output = torch.tensor([[1e4, -1e4] * 4] * 11, dtype=dtype, requires_grad=True)
    target = torch.tensor([*range(10), -100])
    value = loss(output, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(output.float(), target))
    assert torch.isfinite(value)
    assert torch.isfinite(output.grad).all()
    assert torch.isfinite(loss.scores(output)).all()
    assert torch.equal(output.grad[10], torch.zeros(8, dtype=dtype))


@pytest.mark.parametrize(
    ("num_classes", "cutoffs"), [(2, [1]), (7, [1]), (8, [1, 2]), (100, [5, 25]), (1000, [50, 250])]
)
def test_cutoffs_of_their_own(num_classes, cutoffs):
    loss = AdaptiveSoftmax(128, None, 4.0, False, -100, num_classes)
    assert loss.softmax.cutoffs == [*cutoffs, num_classes]
    assert torch.equal(loss.rank, torch.arange(num_classes))


def test_its_state_is_its_parameters():
    loss = loss_of()
    assert loss.state_dict().keys() == dict(loss.named_parameters()).keys()
    assert loss.in_features == 8
    assert loss.rank[RISING_RANK].tolist() == list(range(10))
    assert loss.to("meta").rank.device.type == "meta"


@pytest.mark.parametrize("cutoffs", [[], [0, 3], [3, 10], [5, 3], [3, 3]])
def test_cutoffs_out_of_range(cutoffs):
    with pytest.raises(ConfigError, match=r"^cutoffs: must be rising numbers of classes, each between 1 and 9, got "):
        loss_of(cutoffs)


@pytest.mark.parametrize("div_value", [0.5, math.nan])
def test_div_value_out_of_range(div_value):
    with pytest.raises(ConfigError, match=r"^div_value: must be at least 1, got "):
        AdaptiveSoftmax(8, None, div_value, False, -100, 10)


def test_several_faults_are_named_together():
    with pytest.raises(ConfigError) as caught:
        AdaptiveSoftmax(0, [0], 4.0, False, -100, 10)
    assert [message.split(":")[0] for message in caught.value.messages] == ["in_features", "cutoffs"]


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"^div_value: leaves the last of 3 clusters no feature of 63, got 4\.0"):
        AdaptiveSoftmax(63, [1, 2, 3], 4.0, False, -100, 10)
    AdaptiveSoftmax(64, [1, 2, 3], 4.0, False, -100, 10)
    with pytest.raises(ConfigError, match=r"^_target_: needs a task that knows its classes"):
        AdaptiveSoftmax(8, None, 4.0, False, -100)
    with pytest.raises(ValueError, match="has not 8 features"):
        loss_of()(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(RowError, match=r"^target: must be a class in 0 \.\.\. 9, or -100 to be left out, got 10"):
        loss_of().check(torch.tensor([0, -100, 10]))
