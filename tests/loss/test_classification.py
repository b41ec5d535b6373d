"""The shared parts of the losses over classes, and the properties that all of these losses have."""

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
    logits_and_classes,
    value_and_gradient,
)
from trainer.errors import ConfigError, RowError
from trainer.loss import classification
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy
from trainer.loss.classification import (
    compute_class_terms,
    compute_nll,
    effective_number,
    find_weight_problems,
    infer_num_classes,
    make_class_weights,
)
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.focal import Focal
from trainer.loss.poly import Poly

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.25, 1.0, 0.5, 0.0, 0.75]
LOSSES = {
    "cross_entropy": CrossEntropy(None, 0.0, -100, COUNTS),
    "weighted, smoothed cross_entropy": CrossEntropy("effective_number", 0.1, -100, COUNTS),
    "focal": Focal(2.0, None, 0.0, -100, COUNTS),
    "weighted, smoothed focal": Focal(0.5, "auto", 0.1, -100, COUNTS),
    "weighted, smoothed poly": Poly(-1.0, WEIGHTS, 0.1, -100, COUNTS),
    "dice": Dice(1.0, "sample", -100, 5),
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@every_loss
@settings(max_examples=10)
@given(
    split=st.integers(0, 64),
    order=st.permutations(range(64)),
    kept=st.lists(st.booleans(), min_size=64, max_size=64),
    shift=st.floats(-100, 100),
)
def test_loss_is_a_sum_over_rows(loss, split, order, kept, shift):
    logits, target = logits_and_classes()
    check_parts_add_up(loss, logits, target, split)
    check_order_is_free(loss, logits, target, order)
    check_ignored_rows_are_left_out(loss, logits, target, kept)
    assert math.isclose(loss(logits + shift, target), loss(logits, target), rel_tol=1e-11)


@every_loss
def test_leading_axes_are_flattened(loss):
    logits, target = logits_and_classes()
    for shape in ((8, 8), (2, 4, 8), (64, 1)):
        assert torch.equal(loss(logits.reshape(*shape, 5), target.reshape(shape)), loss(logits, target))
        assert torch.equal(loss.num_targets(target.reshape(shape)), loss.num_targets(target))
    assert torch.equal(loss(logits[1], target[1]), loss(logits[1:2], target[1:2]))


@every_loss
def test_loss_without_targets_is_zero(loss):
    for rows in (0, 4):
        check_no_target_is_zero(loss, torch.randn(rows, 5), torch.full((rows,), -100))


@every_loss
def test_every_precision_computes_finite_values_in_float32(loss):
    _check_autocast(loss)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        _check_saturated(loss, dtype)


def _check_saturated(loss, dtype):
    extremes = torch.tensor([[1e4, -1e4, 0.0, 1e4, -1e4], [-1e4, 0.0, 1e4, 0.0, 0.0]], dtype=dtype)
    logits, target = extremes.repeat_interleave(5, 0), torch.arange(5).repeat(2)
    value, gradient = value_and_gradient(loss, logits, target)
    assert value.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.isfinite(value)
    assert gradient.dtype == dtype
    assert torch.isfinite(gradient).all()


def _check_autocast(loss):
    logits, target = logits_and_classes(dtype=torch.bfloat16)
    expected = loss(logits.float(), target)
    torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(logits, target), expected, rtol=1e-6, atol=0)


@every_loss
def test_wrong_shapes_and_targets_are_reported_and_nothing_is_saved(loss):
    for output, target in [((4, 5), (4, 1)), ((4, 1, 5), (4,)), ((4, 5), (5,)), ((4, 5), ()), ((), ()), ((4, 5), (1,))]:
        with pytest.raises(ValueError, match=r"an output \(.*\) and a target \(.*\) do not fit: "):
            loss(torch.zeros(output), torch.zeros(target, dtype=torch.int64))

    loss.check(torch.tensor([0, 4, -100]))
    with pytest.raises(RowError, match=r"^target: must be a class in 0 \.\.\. 4, .*, got 5\.") as error:
        loss.check(torch.tensor([0, -100, 5, -1]))
    assert error.value.position == 2
    with pytest.raises(RowError, match=r"^target: must be classes \(int64\), got 'torch.int32'"):
        loss.check(torch.tensor([0, 1], dtype=torch.int32))

    assert loss.state_dict() == {}
    assert list(loss.parameters()) == []


class TestTerms:
    def test_ignored_rows_are_zero(self):
        logits, target = logits_and_classes()
        terms = compute_class_terms(logits, target, torch.tensor(WEIGHTS), 0.1, -100)
        for term in (terms.nll, terms.weight(), terms.cross_entropy):
            assert term.shape == (64,)
            assert not term[::7].any()
        assert torch.equal(terms.weight()[1:7], torch.tensor(WEIGHTS)[target[1:7]].double())

    def test_number_of_weights_must_match_the_classes(self):
        loss = CrossEntropy(WEIGHTS, 0.0, -100, COUNTS)
        with pytest.raises(ValueError, match="5 class weights for an output of 4 classes"):
            loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]))


class TestNll:
    @pytest.mark.parametrize("weight", [None, torch.tensor([0.5, 2.0, 1.0, 0.0, 3.5])])
    def test_values_and_gradients_match_log_softmax(self, monkeypatch, weight):
        logits, target = logits_and_classes(rows=9)
        target = target.clamp_min(0)
        upstream = torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        theirs = logits.clone().requires_grad_()
        log_p = theirs.log_softmax(1)
        v = torch.ones(5) if weight is None else weight
        expected = -log_p[torch.arange(9), target], -(log_p * v.double()).sum(1)
        torch.autograd.backward(expected, list(upstream))
        for chunk_elements in (1, 10, 2**20):
            monkeypatch.setattr(classification, "_CHUNK_ELEMENTS", chunk_elements)
            ours = logits.clone().requires_grad_()
            terms = compute_nll(ours, target, weight, -100, smoothing=True)
            torch.autograd.backward(terms, list(upstream))
            torch.testing.assert_close(terms, expected, rtol=1e-14, atol=1e-14)
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-13, atol=1e-14)

    @pytest.mark.parametrize("smoothing", [False, True])
    def test_gradient(self, smoothing):
        logits, target = logits_and_classes(rows=9)
        assert (target == -100).any()

        def compute(scores):
            terms = compute_nll(scores, target, torch.tensor(WEIGHTS), -100, smoothing=smoothing)
            assert (terms[1] is not None) == smoothing
            return [term for term in terms if term is not None]

        assert torch.autograd.gradcheck(compute, logits.requires_grad_())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_only_the_gradient_is_rounded_to_half_precision(self, dtype):
        logits, target = logits_and_classes(dtype=dtype)
        half, single = logits.clone().requires_grad_(), logits.float().requires_grad_()
        ours, theirs = (
            compute_nll(scores, target.clamp_min(0), torch.tensor(WEIGHTS), -100, smoothing=True)
            for scores in (half, single)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
        assert ours[0].dtype == torch.float32
        sum(term.sum() for term in ours).backward()
        sum(term.sum() for term in theirs).backward()
        assert half.grad.dtype == dtype
        torch.testing.assert_close(half.grad, single.grad.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)

    def test_strides_do_not_matter(self):
        logits, target = logits_and_classes(rows=9)
        rows, columns = logits.clone().requires_grad_(), logits.t().contiguous().requires_grad_()
        for scores in (rows, columns.t()):
            nll, smooth_nll = compute_nll(scores, target.clamp_min(0), torch.tensor(WEIGHTS), -100, smoothing=True)
            (nll.sum() + smooth_nll.square().sum()).backward()
        torch.testing.assert_close(columns.grad.t(), rows.grad, rtol=1e-13, atol=1e-13)

    def test_large_scores_keep_their_digits_in_float32(self):
        # The log-sum-exp of this row, 10,000.127, has an error of 1e-3 in float32; the two terms must stay separate.
        logits = torch.tensor([[1e4, 1e4 - 2]], requires_grad=True)
        nll, _ = compute_nll(logits, torch.tensor([0]), None, -100, smoothing=False)
        nll.sum().backward()
        assert math.isclose(nll.item(), math.log1p(math.exp(-2)), rel_tol=1e-6)
        assert math.isclose(logits.grad[0, 1].item(), 1 / (1 + math.exp(2)), rel_tol=1e-6)


class TestWeights:
    @pytest.mark.parametrize("rule", ["auto", "effective_number"])
    @given(counts=st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
    def test_mean_over_the_training_targets_is_one(self, rule, counts):
        weights = make_class_weights(rule, counts)
        assert weights.dtype == torch.float32
        total = sum(count * weight for count, weight in zip(counts, weights.tolist(), strict=True))
        assert math.isclose(total, sum(counts), rel_tol=1e-6)
        assert all(weight == 1 for count, weight in zip(counts, weights.tolist(), strict=True) if count == 0)
        seen = [pair for pair in sorted(zip(counts, weights.tolist(), strict=True)) if pair[0]]
        assert [weight for _, weight in seen] == sorted((weight for _, weight in seen), reverse=True)

    def test_auto_is_the_inverse_frequency(self):
        assert make_class_weights("auto", [6, 2, 4]).tolist() == pytest.approx([2 / 3, 2, 1])
        assert make_class_weights(None, [1, 2]) is None

    def test_effective_number_matches_the_paper(self):
        counts, beta = [5000, 50, 0, 1], 0.999
        raw = [(1 - beta) / (1 - beta**count) if count else 0 for count in counts]
        mass = sum(count * weight for count, weight in zip(counts, raw, strict=True))
        expected = [5051 * weight / mass for weight in raw]
        expected[2] = 1
        assert make_class_weights("effective_number", counts).tolist() == pytest.approx(expected, rel=1e-6)
        assert [effective_number(n) for n in (0, 1, 2, 10**9)] == pytest.approx([0, 1, 1.999, 1000], rel=1e-12)

    def test_weights_that_do_not_fit_the_classes_are_reported(self):
        assert find_weight_problems("weight", None, None, None) == []
        assert find_weight_problems("weight", [1.0, 2.0], None, 2) == []
        for weights in ([1.0], [1.0, 1.0, 1.0]):
            (problem,) = find_weight_problems("alpha", weights, [1, 2], 2)
            assert problem.startswith("alpha: must have one value for each of the 2 classes, got ")
        for weights, num_classes in (("auto", 2), ("effective_number", 2), ([1.0, 1.0], None)):
            (problem,) = find_weight_problems("alpha", weights, None, num_classes)
            assert problem.startswith("alpha: class weights need a task that counts its classes, got ")

    def test_number_of_classes(self):
        assert [infer_num_classes(*known) for known in (([1, 2], None), (None, 3), (None, None))] == [2, 3, None]


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda weight, **facts: CrossEntropy(weight, 0.1, -100, **facts), "weight"),
        (lambda weight, **facts: Poly(1.0, weight, 0.1, -100, **facts), "weight"),
        (lambda alpha, **facts: Focal(2.0, alpha, 0.1, -100, **facts), "alpha"),
        (lambda weight, **facts: BinaryCrossEntropy(weight, 0.1, -100, **facts), "pos_weight"),
    ],
)
def test_weights_by_name_equal_weights_in_order(make, key):
    facts = {"class_counts": [3, 4, 5], "class_names": ["a", "b", "1"]}
    by_name, in_order = make({"b": 2, 1: 3.5, "a": 1}, **facts), make([1, 2, 3.5], **facts)
    assert torch.equal(getattr(by_name, key), getattr(in_order, key))

    for wrong, problems in [
        ({"a": 1, "c": 2, "b": 1}, [f"{key}.c: is not a class.", f"{key}: has no value for 1, got"]),
        ({"a": 1, "b": -2, 1: 1}, [f"{key}.b: must be at least 0"]),
        ({"a": 0, "b": 0, 1: 0}, [f"{key}: must have a value greater than 0"]),
    ]:
        with pytest.raises(ConfigError) as error:
            make(wrong, **facts)
        messages = error.value.messages
        assert all(got.startswith(text) for got, text in zip(messages, problems, strict=True)), messages
    with pytest.raises(ConfigError, match=f"{key}: the classes of this task have no names"):
        make({"a": 1}, num_outputs=2)


def test_message_about_a_short_list_states_the_order():
    with pytest.raises(ConfigError, match=r"of the 3 classes, got \[1, 2\]\. Their order is c, a, b; or give them"):
        CrossEntropy([1, 2], 0.0, -100, num_outputs=3, class_names=["c", "a", "b"])


def test_factors_above_1_are_accepted_for_classes():
    loss = Focal(2.0, [0.5, 4.0], 0.0, -100, class_counts=[9, 1])
    loss.check(torch.tensor([0, 1]))
    assert loss(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(4 * 0.25 * math.log(2))
