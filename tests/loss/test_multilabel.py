import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import (
    check_ignored_rows_are_left_out,
    check_order_is_free,
    check_parts_add_up,
    value_and_gradient,
)
from trainer.errors import RowError
from trainer.loss.asymmetric import Asymmetric
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.focal import Focal
from trainer.loss.multilabel import (
    ignore_index_faults,
    label_entries,
    positive_shares,
    positive_weights,
    smoothed,
)

FACTS = ([50, 30, 0, 15], 4, 100)
SUMS = {
    "binary_cross_entropy": BinaryCrossEntropy(None, 0.0, -100, *FACTS),
    "weighted, smoothed binary_cross_entropy": BinaryCrossEntropy("auto", 0.1, -100, *FACTS),
    "focal": Focal(2.0, None, 0.0, -100, *FACTS),
    "weighted, smoothed focal": Focal(0.5, "auto", 0.1, -100, *FACTS),
    "asymmetric": Asymmetric(4.0, 1.0, 0.05, -100, 4),
    "asymmetric with small powers": Asymmetric(0.1, 0.1, 0.0, -100, 4),
    "dice": Dice(1.0, "sample", -100, 4),
}
every_sum = pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)
entries = pytest.mark.parametrize("loss", list(SUMS.values())[:-1], ids=list(SUMS)[:-1])


def logits_and_targets(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(17)
    logits = 4 * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (32, 4), generator=generator).float()
    target[::7] = -100
    target[1::5, 2] = -100
    return logits.to(dtype), target


@every_sum
@settings(max_examples=20)
@given(split=st.integers(0, 32))
def test_micro_batches_add_up(loss, split):
    check_parts_add_up(loss, *logits_and_targets(), split)


@every_sum
@settings(max_examples=20)
@given(order=st.permutations(range(32)))
def test_the_order_of_the_rows_does_not_matter(loss, order):
    check_order_is_free(loss, *logits_and_targets(), order)


@every_sum
@settings(max_examples=20)
@given(kept=st.lists(st.booleans(), min_size=32, max_size=32))
def test_ignoring_rows_is_leaving_them_out(loss, kept):
    check_ignored_rows_are_left_out(loss, *logits_and_targets(), kept)


@entries
@settings(max_examples=20)
@given(place=st.tuples(st.integers(0, 31), st.integers(0, 3)))
def test_an_ignored_entry_is_its_own_term(loss, place):
    logits, target = logits_and_targets()
    target = target.clamp_min(0)
    without = target.clone()
    without[place] = -100
    only = torch.full_like(target, -100)
    only[place] = target[place]
    assert math.isclose(loss(logits, without) + loss(logits, only), loss(logits, target), rel_tol=1e-13)
    assert loss.num_targets(target).item() == 128
    assert loss.num_targets(without).item() == 127
    assert loss.num_targets(only).item() == 1


@every_sum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(loss, rows, dtype):
    target = torch.full((rows, 4), -100.0)
    value, gradient = value_and_gradient(loss, torch.randn(rows, 4, dtype=dtype), target)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros(rows, 4, dtype=dtype))
    assert loss.num_targets(target).item() == 0


@every_sum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits_stay_finite(loss, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 100.0], [-100.0, 90.0, -90.0, 20.0]], dtype=dtype).repeat(3, 1)
    target = torch.tensor([0.0, 1.0, -100.0]).repeat_interleave(2)[:, None].repeat(1, 4)
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(value)
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()
    assert not gradient[4:].any()


@every_sum
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_does_not_reach_it(loss, dtype):
    logits, target = logits_and_targets(dtype)
    expected = loss(logits.float(), target)
    assert torch.equal(loss(logits, target), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, target), expected)


@every_sum
@pytest.mark.parametrize(
    ("output", "target"), [((3, 4), (3,)), ((3, 4), (3, 1)), ((3, 4), (1, 4)), ((3,), (3,)), ((3, 1), (3,))]
)
def test_shapes_that_do_not_fit(loss, output, target):
    with pytest.raises(ValueError, match=r"an output \(.*\) and a target \(.*\) do not fit: both must be \(B, C\)"):
        loss(torch.zeros(output), torch.zeros(target))


@every_sum
def test_check_names_the_first_wrong_row(loss):
    target = torch.tensor([[0.0, 1.0, -100.0, 1.0], [0.0, 1.0, 0.5, 1.0], [2.0, 0.0, 0.0, 0.0]])
    loss.check(target[:1])
    with pytest.raises(RowError, match=r"^target: must be 0, 1, or -100 to be left out, got 0\.5\.") as error:
        loss.check(target)
    assert error.value.position == 1


@every_sum
@pytest.mark.parametrize("shape", [(3,), (3, 5)])
def test_check_refuses_other_shapes(loss, shape):
    with pytest.raises(RowError, match=r"^target: must be 0 or 1 for each label, float \(B, 4\), got 'float32 "):
        loss.check(torch.zeros(shape))


@every_sum
def test_nothing_is_kept_in_a_checkpoint(loss):
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


def test_entries_are_compared_in_the_type_of_the_logits():
    logits, target = logits_and_targets()
    found = label_entries(logits, target, -100)
    assert found.logits is logits
    assert found.target.dtype == torch.float64
    assert torch.equal(found.ignored, target == -100)
    assert torch.equal(found.target, target.clamp_min(0).double())
    assert label_entries(logits.half(), target, -100).target.dtype == torch.float32


def test_smoothing_is_shared_by_yes_and_no():
    assert smoothed(torch.tensor([0.0, 1.0]).double(), 0.1).tolist() == pytest.approx([0.05, 0.95], rel=1e-15)


@given(positives=st.lists(st.integers(1, 999), min_size=1, max_size=20))
def test_balanced_answers_have_the_same_total(positives):
    shares = positive_shares(positives, 1000, effective=False)
    for count, weight, share in zip(positives, positive_weights(positives, 1000), shares, strict=True):
        assert math.isclose(count * weight, 1000 - count, rel_tol=1e-12)
        assert math.isclose(count * share, (1000 - count) * (1 - share), rel_tol=1e-12, abs_tol=1e-9)


def test_effective_shares():
    first, second = positive_shares([1, 500], 1000, effective=True)
    many = (1 - 0.999**999) / 0.001
    assert math.isclose(first, many / (1 + many), rel_tol=1e-12)
    assert math.isclose(second, 0.5, rel_tol=1e-12)


def test_a_label_with_one_answer_only_is_not_balanced():
    assert positive_weights([0, 10, 12], 10) == [1, 1, 1]
    assert positive_shares([0, 10, 12], 10, effective=False) == [0.5, 0.5, 0.5]
    assert positive_shares([0, 10], 10, effective=True) == [0.5, 0.5]


def test_a_label_is_no_ignore_index():
    assert ignore_index_faults(-100) == ignore_index_faults(2) == []
    assert ignore_index_faults(1) == [
        "ignore_index: would leave out every such label, got 1. Use a value that no label has, -100 for one."
    ]
