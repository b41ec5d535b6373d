"""The shared parts of the losses over several labels, and the properties that all of these losses have."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import (
    check_ignored_rows_are_left_out,
    check_no_target_is_zero,
    check_order_is_free,
    check_parts_add_up,
    logits_and_labels,
    value_and_gradient,
)
from trainer.errors import RowError
from trainer.loss.asymmetric import Asymmetric
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.focal import Focal
from trainer.loss.multilabel import balance_alpha, balance_pos_weight, prepare_labels, smooth_labels

CONTEXT = ([50, 30, 0, 15], 4, 100)
LOSSES = {
    "binary_cross_entropy": BinaryCrossEntropy(None, 0.0, -100, *CONTEXT),
    "weighted, smoothed binary_cross_entropy": BinaryCrossEntropy("auto", 0.1, -100, *CONTEXT),
    "focal": Focal(2.0, None, 0.0, -100, *CONTEXT),
    "weighted, smoothed focal": Focal(0.5, "auto", 0.1, -100, *CONTEXT),
    "asymmetric": Asymmetric(4.0, 1.0, 0.05, -100, 4),
    "asymmetric with small powers": Asymmetric(0.1, 0.1, 0.0, -100, 4),
    "dice": Dice(1.0, "sample", -100, 4),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
every_sum_over_entries = pytest.mark.parametrize("loss", list(LOSSES.values())[:-1], ids=list(LOSSES)[:-1])


@every_loss
@settings(max_examples=10)
@given(
    split=st.integers(0, 32),
    order=st.permutations(range(32)),
    kept=st.lists(st.booleans(), min_size=32, max_size=32),
)
def test_loss_is_a_sum_over_rows(loss, split, order, kept):
    check_parts_add_up(loss, *logits_and_labels(), split)
    check_order_is_free(loss, *logits_and_labels(), order)
    check_ignored_rows_are_left_out(loss, *logits_and_labels(), kept)


@every_sum_over_entries
def test_an_ignored_entry_is_a_term_of_the_sum(loss):
    logits, target = logits_and_labels()
    target = target.clamp_min(0)
    for place in ((0, 0), (17, 3)):
        without, only = target.clone(), torch.full_like(target, -100)
        without[place] = -100
        only[place] = target[place]
        assert math.isclose(loss(logits, without) + loss(logits, only), loss(logits, target), rel_tol=1e-13)
        assert [loss.num_targets(labels).item() for labels in (target, without, only)] == [128, 127, 1]


@every_loss
def test_loss_without_targets_is_zero(loss):
    for rows in (0, 4):
        check_no_target_is_zero(loss, torch.randn(rows, 4), torch.full((rows, 4), -100.0))


@every_loss
def test_every_precision_computes_finite_values_in_float32(loss):
    _check_autocast(loss)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        _check_saturated(loss, dtype)


def _check_saturated(loss, dtype):
    logits = torch.tensor([[1e4, -1e4, 0.0, 100.0], [-100.0, 90.0, -90.0, 20.0]], dtype=dtype).repeat(3, 1)
    target = torch.tensor([0.0, 1.0, -100.0]).repeat_interleave(2)[:, None].repeat(1, 4)
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(value)
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()
    assert not gradient[4:].any()


def _check_autocast(loss):
    logits, target = logits_and_labels(torch.bfloat16)
    expected = loss(logits.float(), target)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=0)


@every_loss
def test_wrong_shapes_and_targets_are_reported_and_nothing_is_saved(loss):
    for output, target in [((3, 4), (3,)), ((3, 4), (3, 1)), ((3, 4), (1, 4)), ((3,), (3,)), ((3, 1), (3,))]:
        with pytest.raises(ValueError, match=r"an output \(.*\) and a target \(.*\) do not fit: both must be \(B, C\)"):
            loss(torch.zeros(output), torch.zeros(target))

    target = torch.tensor([[0.0, 1.0, -100.0, 1.0], [0.0, 1.0, 0.5, 1.0], [2.0, 0.0, 0.0, 0.0]])
    loss.check(target[:1])
    with pytest.raises(RowError, match=r"^target: must be 0, 1, .*, got 0\.5\.") as error:
        loss.check(target)
    assert error.value.position == 1
    for shape in ((3,), (3, 5)):
        with pytest.raises(RowError, match=r"^target: must be .*float \(B, 4\), got 'float32 "):
            loss.check(torch.zeros(shape))

    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


def test_entries_have_the_type_of_the_logits():
    logits, target = logits_and_labels()
    entries = prepare_labels(logits, target, -100)
    assert entries.logits is logits
    assert entries.target.dtype == torch.float64
    assert torch.equal(entries.ignored, target == -100)
    assert torch.equal(entries.target, target.clamp_min(0).double())
    assert prepare_labels(logits.half(), target, -100).target.dtype == torch.float32


def test_smoothing_is_shared_by_yes_and_no():
    assert smooth_labels(torch.tensor([0.0, 1.0]).double(), 0.1).tolist() == pytest.approx([0.05, 0.95], rel=1e-15)


@given(positives=st.lists(st.integers(1, 999), min_size=1, max_size=20))
def test_balanced_answers_have_the_same_total(positives):
    shares = balance_alpha(positives, 1000, effective=False)
    for count, weight, share in zip(positives, balance_pos_weight(positives, 1000), shares, strict=True):
        assert math.isclose(count * weight, 1000 - count, rel_tol=1e-12)
        assert math.isclose(count * share, (1000 - count) * (1 - share), rel_tol=1e-12, abs_tol=1e-9)


def test_effective_shares():
    first, second = balance_alpha([1, 500], 1000, effective=True)
    many = (1 - 0.999**999) / 0.001
    assert math.isclose(first, many / (1 + many), rel_tol=1e-12)
    assert math.isclose(second, 0.5, rel_tol=1e-12)


def test_a_label_with_only_one_answer_is_not_balanced():
    assert balance_pos_weight([0, 10, 12], 10) == [1, 1, 1]
    assert balance_alpha([0, 10, 12], 10, effective=False) == [0.5, 0.5, 0.5]
    assert balance_alpha([0, 10], 10, effective=True) == [0.5, 0.5]
