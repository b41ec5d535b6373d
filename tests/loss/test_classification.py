import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import (
    check_ignored_rows_are_left_out,
    check_order_is_free,
    check_parts_add_up,
    logits_and_classes,
    value_and_gradient,
)
from trainer.errors import RowError
from trainer.loss.classification import (
    class_rows,
    class_weights,
    effective_number,
    flatten,
    num_classes_of,
    weight_faults,
)
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.focal import Focal
from trainer.loss.poly import Poly

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.25, 1.0, 0.5, 0.0, 0.75]
SUMS = {
    "cross_entropy": CrossEntropy(None, 0.0, -100, COUNTS),
    "weighted, smoothed cross_entropy": CrossEntropy("effective_number", 0.1, -100, COUNTS),
    "focal": Focal(2.0, None, 0.0, -100, COUNTS),
    "weighted, smoothed focal": Focal(0.5, "auto", 0.1, -100, COUNTS),
    "poly": Poly(1.0, None, 0.0, -100, COUNTS),
    "weighted, smoothed poly": Poly(-1.0, WEIGHTS, 0.1, -100, COUNTS),
    "dice": Dice(1.0, "sample", -100, 5),
}
every_sum = pytest.mark.parametrize("loss", SUMS.values(), ids=SUMS)


@every_sum
@settings(max_examples=20)
@given(split=st.integers(0, 64))
def test_micro_batches_add_up(loss, split):
    check_parts_add_up(loss, *logits_and_classes(), split)


@every_sum
@settings(max_examples=20)
@given(order=st.permutations(range(64)))
def test_the_order_of_the_rows_does_not_matter(loss, order):
    check_order_is_free(loss, *logits_and_classes(), order)


@every_sum
@settings(max_examples=20)
@given(kept=st.lists(st.booleans(), min_size=64, max_size=64))
def test_ignoring_rows_is_leaving_them_out(loss, kept):
    check_ignored_rows_are_left_out(loss, *logits_and_classes(), kept)


@every_sum
@settings(max_examples=20)
@given(shift=st.floats(-100, 100))
def test_only_differences_of_logits_matter(loss, shift):
    logits, target = logits_and_classes()
    assert math.isclose(loss(logits + shift, target), loss(logits, target), rel_tol=1e-11)


@every_sum
@pytest.mark.parametrize("shape", [(64,), (8, 8), (2, 4, 8), (64, 1)])
def test_leading_axes_are_flattened(loss, shape):
    logits, target = logits_and_classes()
    assert torch.equal(loss(logits.reshape(*shape, 5), target.reshape(shape)), loss(logits, target))
    assert torch.equal(loss.num_targets(target.reshape(shape)), loss.num_targets(target))


@every_sum
def test_one_row_without_an_axis(loss):
    logits, target = logits_and_classes()
    assert torch.equal(loss(logits[1], target[1]), loss(logits[1:2], target[1:2]))


@every_sum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(loss, rows, dtype):
    target = torch.full((rows,), -100)
    value, gradient = value_and_gradient(loss, torch.randn(rows, 5, dtype=dtype), target)
    assert value.item() == 0
    assert torch.equal(gradient, torch.zeros(rows, 5, dtype=dtype))
    assert loss.num_targets(target).item() == 0


@every_sum
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_saturated_logits_stay_finite(loss, dtype):
    extremes = torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4], [-1e4, 0.0, 1e4, 0.0, 0.0]], dtype=dtype)
    logits, target = extremes.repeat_interleave(5, 0), torch.arange(5).repeat(2)
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(value)
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()


@every_sum
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_does_not_reach_it(loss, dtype):
    logits, target = logits_and_classes(dtype=dtype)
    expected = loss(logits.float(), target)
    assert torch.equal(loss(logits, target), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss(logits, target), expected)


@every_sum
@pytest.mark.parametrize(
    ("output", "target"), [((4, 5), (4, 1)), ((4, 1, 5), (4,)), ((4, 5), (5,)), ((4, 5), ()), ((), ()), ((4, 5), (1,))]
)
def test_shapes_that_do_not_fit(loss, output, target):
    with pytest.raises(ValueError, match=r"an output \(.*\) and a target \(.*\) do not fit: "):
        loss(torch.zeros(output), torch.zeros(target, dtype=torch.int64))


@every_sum
def test_check_names_the_first_wrong_row(loss):
    loss.check(torch.tensor([0, 4, -100]))
    with pytest.raises(
        RowError, match=r"^target: must be a class in 0 \.\.\. 4, or -100 to be left out, got 5\."
    ) as error:
        loss.check(torch.tensor([0, -100, 5, -1]))
    assert error.value.position == 2


@every_sum
def test_check_refuses_other_types(loss):
    with pytest.raises(RowError, match=r"^target: must be classes \(int64\), got 'torch.int32'"):
        loss.check(torch.tensor([0, 1], dtype=torch.int32))


@every_sum
def test_nothing_is_kept_in_a_checkpoint(loss):
    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


@pytest.mark.parametrize("loss", [CrossEntropy, Poly])
def test_weights_of_another_number_of_classes(loss):
    loss = loss(*([1.0] if loss is Poly else []), WEIGHTS, 0.0, -100, COUNTS)
    with pytest.raises(ValueError, match="5 class weights for an output of 4 classes"):
        loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]))


def test_rows_that_are_ignored_are_zero_everywhere():
    logits, target = logits_and_classes()
    rows = class_rows(logits, target, torch.tensor(WEIGHTS), 0.1, -100)
    assert [field.shape for field in rows[:3]] == [(64,)] * 3
    for field in rows[:3]:
        assert not field[::7].any()
    assert torch.equal(rows.weight[1:7], torch.tensor(WEIGHTS)[target[1:7]].double())


def test_flatten_copies_nothing():
    logits, target = torch.zeros(2, 3, 5), torch.zeros(2, 3, dtype=torch.int64)
    flat = flatten(logits, target)
    assert [tensor.shape for tensor in flat] == [(6, 5), (6,)]
    assert [tensor.data_ptr() for tensor in flat] == [logits.data_ptr(), target.data_ptr()]


@pytest.mark.parametrize("rule", ["auto", "effective_number"])
@given(counts=st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_weights_from_counts_have_mean_one_over_the_training_targets(rule, counts):
    weights = class_weights(rule, counts)
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    total = sum(count * weight for count, weight in zip(counts, weights.tolist(), strict=True))
    assert math.isclose(total, sum(counts), rel_tol=1e-6)


@pytest.mark.parametrize("rule", ["auto", "effective_number"])
@given(counts=st.lists(st.integers(1, 100_000), min_size=1, max_size=50))
def test_rarer_classes_weigh_no_less(rule, counts):
    pairs = sorted(zip(counts, class_weights(rule, counts).tolist(), strict=True))
    weights = [weight for _, weight in pairs]
    assert weights == sorted(weights, reverse=True)


def test_auto_is_the_inverse_frequency():
    assert class_weights("auto", [6, 2, 4]).tolist() == pytest.approx([2 / 3, 2, 1])


def test_effective_number_is_the_papers():
    counts, beta = [5000, 50, 0, 1], 0.999
    raw = [(1 - beta) / (1 - beta**count) if count else 0 for count in counts]
    mass = sum(count * weight for count, weight in zip(counts, raw, strict=True))
    expected = [5051 * weight / mass for weight in raw]
    expected[2] = 1
    assert class_weights("effective_number", counts).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("count", "number"), [(0, 0), (1, 1), (2, 1.999), (10**9, 1000)])
def test_effective_numbers(count, number):
    assert math.isclose(effective_number(count), number, rel_tol=1e-12)


@pytest.mark.parametrize("rule", ["auto", "effective_number"])
def test_a_class_that_never_occurs_has_the_weight_one(rule):
    weights = class_weights(rule, [6, 0, 2])
    assert weights[1] == 1
    assert torch.equal(weights[[0, 2]], class_weights(rule, [6, 2]))


def test_none_is_no_weights():
    assert class_weights(None, [1, 2]) is None
    assert weight_faults("weight", None, None, None, largest=1.0) == []


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], []])
def test_one_weight_a_class(weights):
    (fault,) = weight_faults("alpha", weights, [1, 2], 2, largest=1.0)
    assert fault == f"alpha: needs one value for each of the 2 classes, got {weights}."


def test_a_list_of_weights_needs_no_counts():
    assert weight_faults("weight", [1.0, 2.0], None, 2, largest=math.inf) == []
    assert CrossEntropy([1.0, 2.0], 0.0, -100, num_outputs=2).weight.tolist() == [1, 2]


@pytest.mark.parametrize(("weights", "num_classes"), [("auto", 2), ("effective_number", 2), ([1.0, 1.0], None)])
def test_weights_need_counted_classes(weights, num_classes):
    (fault,) = weight_faults("alpha", weights, None, num_classes, largest=1.0)
    assert fault == (f"alpha: class weights need a task whose classes are counted, got {weights!r}. Use alpha=null.")


def test_an_unknown_rule():
    (fault,) = weight_faults("weight", "inverse", [1, 2], 2, largest=1.0)
    assert fault == "weight: must be one of auto, effective_number, got 'inverse'."


@pytest.mark.parametrize(
    ("class_counts", "num_outputs", "known"), [([1, 2], None, 2), (None, 3, 3), (None, None, None)]
)
def test_number_of_classes(class_counts, num_outputs, known):
    assert num_classes_of(class_counts, num_outputs) == known
