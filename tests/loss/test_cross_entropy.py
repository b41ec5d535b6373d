import math

import pytest
import torch
from torch.nn import functional as F

from tests.support.loss_sums import logits_and_classes
from trainer.errors import ConfigError, RowError
from trainer.loss.cross_entropy import CrossEntropy

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(dtype, weight, label_smoothing):
    logits, target = logits_and_classes(dtype=dtype)
    loss = CrossEntropy(weight, label_smoothing, -100, COUNTS)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    value = loss(ours, target)
    expected = F.cross_entropy(
        theirs,
        target,
        None if weight is None else torch.tensor(weight, dtype=dtype),
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    value.backward()
    expected.backward()

    assert value.shape == ()
    assert value.dtype == dtype
    digits = torch.finfo(dtype).eps
    assert math.isclose(value.item(), expected.item(), rel_tol=4 * digits)
    assert torch.allclose(ours.grad, theirs.grad, rtol=8 * digits, atol=4 * digits)


def test_sum_over_number_of_targets_is_torchs_mean():
    logits, target = logits_and_classes(dtype=torch.float32)
    loss = CrossEntropy(None, 0.1, -100)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert torch.allclose(loss(logits, target) / loss.num_targets(target), expected, rtol=1e-6, atol=0)


def test_number_of_targets_leaves_the_ignored_out():
    count = CrossEntropy(None, 0.0, 7).num_targets(torch.tensor([7, 0, 1, 7, -100]))
    assert count.shape == ()
    assert count.dtype == torch.int64
    assert count.item() == 3


def test_a_class_may_be_the_ignored_one():
    logits, target = logits_and_classes(dtype=torch.float64)
    padding = target.masked_fill(target == -100, 0)
    expected = F.cross_entropy(logits, padding, ignore_index=0, reduction="sum")
    assert math.isclose(CrossEntropy(None, 0.0, 0)(logits, padding).item(), expected.item(), rel_tol=1e-14)


def test_gradient_in_float64():
    logits, target = logits_and_classes(rows=9, dtype=torch.float64)
    loss = CrossEntropy("auto", 0.1, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


def test_weights_follow_the_module():
    assert CrossEntropy("auto", 0.0, -100, COUNTS).to("meta").weight.device.type == "meta"


@pytest.mark.parametrize("label_smoothing", [-0.1, 1.0, math.nan])
def test_label_smoothing_out_of_range(label_smoothing):
    with pytest.raises(ConfigError, match=r"^label_smoothing: must be at least 0 and below 1, got "):
        CrossEntropy(None, label_smoothing, -100)


@pytest.mark.parametrize("value", [-0.5, math.nan, math.inf])
def test_weight_out_of_range(value):
    with pytest.raises(ConfigError, match=r"^weight: every value must be finite and not negative, got "):
        CrossEntropy([1.0, value], 0.0, -100, [3, 4])


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as error:
        CrossEntropy([1.0, -1.0], 2.0, -100, [3, 4, 5])
    assert [message.split(":")[0] for message in error.value.messages] == ["weight", "weight", "label_smoothing"]


def shares_of(rows: int = 64, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The shares of two classes in each row, (B, 5); in some rows of one alone."""
    generator = torch.Generator().manual_seed(11)
    first, second = torch.randint(5, (2, rows), generator=generator)
    share = torch.rand(rows, generator=generator, dtype=torch.float64).masked_fill(torch.arange(rows) % 5 == 0, 1.0)
    zeros = torch.zeros(rows, 5, dtype=torch.float64)
    both = zeros.scatter_add(1, first[:, None], share[:, None]).scatter_add(1, second[:, None], 1 - share[:, None])
    return both.to(dtype)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weight", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shares_are_torchs_probabilities(dtype, weight, label_smoothing):
    logits, shares = logits_and_classes(dtype=dtype)[0], shares_of(dtype=dtype)
    loss = CrossEntropy(weight, label_smoothing, -100, COUNTS)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()

    value = loss(ours, shares)
    factors = None if weight is None else torch.tensor(weight, dtype=dtype)
    expected = F.cross_entropy(theirs, shares, factors, reduction="sum", label_smoothing=label_smoothing)
    value.backward()
    expected.backward()

    digits = torch.finfo(dtype).eps
    assert value.dtype == dtype
    assert math.isclose(value.item(), expected.item(), rel_tol=8 * digits)
    assert torch.allclose(ours.grad, theirs.grad, rtol=16 * digits, atol=8 * digits)
    mean = F.cross_entropy(theirs, shares, factors, label_smoothing=label_smoothing)
    assert math.isclose((value / loss.num_targets(shares)).item(), mean.item(), rel_tol=8 * digits)


def test_shares_are_counted_by_rows_and_checked():
    loss = CrossEntropy(None, 0.0, -100, [3, 4])

    assert loss.num_targets(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])).item() == 3
    loss.check(torch.tensor([[0.3, 0.7]]))
    for wrong in ([[0.5, 0.6]], [[1.5, -0.5]], [[math.nan, 1.0]], [[0.5, 0.25, 0.25]]):
        with pytest.raises(RowError, match=r"shares|share of each class"):
            loss.check(torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"an output \(1, 3\) and shares \(1, 2\) do not fit"):
        loss(torch.zeros(1, 3), torch.tensor([[0.5, 0.5]]))
