import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.loss_sums import logits_and_classes, logits_and_labels, value_and_gradient
from trainer.errors import ConfigError
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.focal import Focal

COUNTS = [50, 30, 0, 15, 5]
ALPHA = [0.25, 2.0, 0.5, 0.0, 0.75]
LABEL_ALPHA = [0.25, 1.0, 0.5, 0.0]


def evaluate_class_definition(logits, target, gamma, alpha, label_smoothing):
    """Sum the definition over the rows and classes."""
    total = 0.0
    for row, y in zip(logits.tolist(), target.tolist(), strict=True):
        if y == -100:
            continue
        norm = math.fsum(math.exp(x) for x in row)
        p = [math.exp(x) / norm for x in row]
        smooth_loss = math.fsum(a * -math.log(q) for a, q in zip(alpha, p, strict=True)) / len(p)
        cross_entropy = (1 - label_smoothing) * alpha[y] * -math.log(p[y]) + label_smoothing * smooth_loss
        total += (1 - p[y]) ** gamma * cross_entropy
    return total


def evaluate_label_definition(logits, target, gamma, alpha, label_smoothing):
    """Sum the definition over the entries."""
    total = 0.0
    for row, answers in zip(logits.tolist(), target.tolist(), strict=True):
        for x, y, a in zip(row, answers, alpha, strict=True):
            if y == -100:
                continue
            p = 1 / (1 + math.exp(-x))
            p_t = p if y == 1 else 1 - p
            share = y * (1 - label_smoothing) + label_smoothing / 2
            cross_entropy = -a * share * math.log(p) - (1 - a) * (1 - share) * math.log(1 - p)
            total += (1 - p_t) ** gamma * cross_entropy
    return total


class TestClasses:
    def test_value_matches_the_definition(self):
        logits, target = logits_and_classes()
        for gamma, alpha, label_smoothing in [(0.0, ALPHA, 0.1), (0.5, None, 0.0), (2.0, ALPHA, 0.1), (5.0, 3.0, 0.1)]:
            value = Focal(gamma, alpha, label_smoothing, -100, COUNTS)(logits, target)
            factors = alpha if isinstance(alpha, list) else [alpha or 1.0] * 5
            expected = evaluate_class_definition(logits, target, gamma, factors, label_smoothing)
            assert value.shape == ()
            assert math.isclose(value.item(), expected, rel_tol=1e-12)

    @pytest.mark.parametrize("alpha", [None, "auto", "effective_number", ALPHA])
    def test_gamma_near_zero_is_near_cross_entropy(self, alpha):
        logits, target = logits_and_classes()
        expected = value_and_gradient(CrossEntropy(alpha, 0.1, -100, COUNTS), logits, target)
        for gamma in (0.0, 1e-13):
            value, gradient = value_and_gradient(Focal(gamma, alpha, 0.1, -100, COUNTS), logits, target)
            assert math.isclose(value.item(), expected[0].item(), rel_tol=1e-11)
            torch.testing.assert_close(gradient, expected[1], rtol=0, atol=1e-10)

    def test_gradient(self):
        logits, target = logits_and_classes(rows=9)
        for gamma, alpha, label_smoothing in [(0.0, None, 0.1), (0.5, "auto", 0.0), (2.0, ALPHA, 0.1)]:
            loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS)
            assert torch.autograd.gradcheck(lambda scores, loss=loss: loss(scores, target), logits.requires_grad_())

    def test_saturated_logits_stay_finite_for_small_gamma(self):
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            logits = torch.tensor([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0], [1e4, 0.0, 0.0]], dtype=dtype)
            for gamma in (0.01, 1.0):
                loss = Focal(gamma, None, 0.1, -100)
                value, gradient = value_and_gradient(loss, logits, torch.tensor([0, 1, -100]))
                assert value.dtype == torch.float32
                assert torch.isfinite(value)
                assert torch.isfinite(gradient).all()
                assert not gradient[2].any()

    def test_confident_rows_keep_their_digits_in_float32(self):
        # 1 - p is 1e-4 here: 1 - exp(log p) would be a multiple of 6e-8, with an error of up to 3 in 10,000.
        logits, target = torch.tensor([[9.0, 0.0], [9.1, 0.0], [9.2, 0.0]]), torch.tensor([0, 0, 0])
        value = Focal(1.0, None, 0.0, -100)(logits, target)
        nll = F.nll_loss(logits.log_softmax(1), target, reduction="none").double()
        assert math.isclose(value.item(), (-torch.expm1(-nll) * nll).sum().item(), rel_tol=1e-6)

    @settings(max_examples=30)
    @given(gamma=st.floats(0, 8), more=st.floats(0, 4))
    def test_a_larger_gamma_never_gives_a_larger_loss(self, gamma, more):
        logits, target = logits_and_classes()
        smaller, larger = (Focal(g, None, 0.1, -100)(logits, target) for g in (gamma, gamma + more))
        assert larger <= smaller * (1 + 1e-12)

    @pytest.mark.parametrize(
        ("gamma", "alpha", "label_smoothing"), [(0.0, None, 0.1), (0.5, 0.5, 0.0), (2.0, ALPHA, 0.1)]
    )
    def test_loss_of_shares_is_the_mean_over_the_classes(self, gamma, alpha, label_smoothing):
        logits = logits_and_classes(rows=12)[0]
        shares = torch.rand(logits.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(1)
        loss = Focal(gamma, alpha, label_smoothing, -100, COUNTS, train_target="shares")
        rows = zip(logits, shares, strict=True)
        expected = sum(share * loss(row[None], torch.tensor([y])) for row, each in rows for y, share in enumerate(each))
        loss.check(shares)
        assert math.isclose(loss(logits, shares).item(), expected.item(), rel_tol=1e-12)
        assert torch.autograd.gradcheck(lambda scores: loss(scores, shares), logits.requires_grad_())
        assert loss.num_targets(shares).item() == 12

    def test_shares_of_one_class_match_that_class_in_float32(self):
        logits, target = logits_and_classes(dtype=torch.float32)
        target = target.clamp_min(0)
        loss = Focal(0.5, None, 0.1, -100, COUNTS, train_target="shares")
        shares = value_and_gradient(loss, logits, F.one_hot(target, 5).float())
        torch.testing.assert_close(shares, value_and_gradient(loss, logits, target), rtol=1e-5, atol=1e-6)


class TestLabels:
    def test_value_matches_the_definition(self):
        logits, target = logits_and_labels()
        for gamma, alpha, label_smoothing in [(0.0, 0.75, 0.1), (0.5, None, 0.0), (2.0, LABEL_ALPHA, 0.1)]:
            value = Focal(gamma, alpha, label_smoothing, -100, num_outputs=4)(logits, target)
            factors = alpha if isinstance(alpha, list) else [alpha or 0.25] * 4
            expected = evaluate_label_definition(logits, target, gamma, factors, label_smoothing)
            assert value.shape == ()
            assert math.isclose(value.item(), expected, rel_tol=1e-11)

    def test_a_known_value(self):
        logits = torch.tensor([[0.3992, 0.2232, 0.6435], [0.3800, 0.3044, 0.3241]])
        target = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
        loss = Focal(2.0, None, 0.0, -100)
        assert loss.num_targets(target).item() == 6
        assert round((loss(logits, target) / 6).item(), 4) == 0.0908

    def test_gamma_zero_with_even_alpha_is_half_of_binary_cross_entropy(self):
        logits, target = logits_and_labels()
        target = target.clamp_min(0).double()
        expected = 0.5 * F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
        assert math.isclose(Focal(0.0, 0.5, 0.0, -100)(logits, target).item(), expected.item(), rel_tol=1e-14)

    def test_a_label_is_one_of_two_classes(self):
        logits, target = logits_and_labels()
        for gamma, label_smoothing in [(0.0, 0.1), (0.5, 0.0), (2.0, 0.1)]:
            labels, classes = logits.clone().requires_grad_(), logits.clone().requires_grad_()
            value = Focal(gamma, 0.25, label_smoothing, -100)(labels, target)
            two = torch.stack([torch.zeros_like(classes), classes], dim=2)
            expected = Focal(gamma, [0.75, 0.25], label_smoothing, -100, num_outputs=2)(two, target.long())
            value.backward()
            expected.backward()
            assert math.isclose(value.item(), expected.item(), rel_tol=1e-13)
            torch.testing.assert_close(labels.grad, classes.grad, rtol=1e-11, atol=1e-13)

    def test_gradient(self):
        logits, target = logits_and_labels(rows=6)
        for gamma, label_smoothing in [(0.0, 0.1), (0.5, 0.0), (2.0, 0.1)]:
            loss = Focal(gamma, LABEL_ALPHA, label_smoothing, -100, num_outputs=4)
            assert torch.autograd.gradcheck(lambda scores, loss=loss: loss(scores, target), logits.requires_grad_())

    def test_auto_is_the_fraction_of_negatives(self):
        alpha = Focal(2.0, "auto", 0.0, -100, [50, 25, 0, 100, 1], 5, 100).label_alpha
        assert alpha.tolist() == pytest.approx([0.5, 0.75, 0.5, 0.5, 0.99])

    def test_auto_needs_the_number_of_training_samples(self):
        loss = Focal(2.0, "auto", 0.0, -100, COUNTS)
        loss.check(torch.tensor([0, 4]))
        with pytest.raises(ConfigError, match=r"^loss.alpha: balancing labels needs a task that counts its training "):
            loss.check(torch.zeros(2, 5))

    def test_alpha_is_at_most_one(self):
        for alpha in (1.5, [1.5] * 5):
            loss = Focal(2.0, alpha, 0.0, -100, COUNTS)
            loss.check(torch.tensor([0, 4]))
            with pytest.raises(ConfigError, match=r"^loss.alpha: must be between 0 and 1 for labels, got "):
                loss.check(torch.zeros(2, 5))

    def test_number_of_alphas_must_match_the_labels(self):
        with pytest.raises(ValueError, match="5 values of alpha for an output of 4 labels"):
            Focal(2.0, ALPHA, 0.0, -100, COUNTS)(torch.zeros(3, 4), torch.zeros(3, 4))


def test_alpha_moves_with_the_module():
    for alpha in (0.5, ALPHA, "auto"):
        loss = Focal(2.0, alpha, 0.0, -100, COUNTS, 5, 100).to("meta")
        assert loss.alpha.device.type == loss.label_alpha.device.type == "meta"


def test_wrong_arguments_raise():
    for change, key in [
        ({"gamma": -0.5}, "gamma"),
        ({"gamma": math.inf}, "gamma"),
        ({"alpha": -0.5}, "alpha"),
        ({"alpha": math.nan}, "alpha"),
        ({"alpha": [1.0, -0.5]}, "alpha"),
        ({"alpha": [0.0, 0.0]}, "alpha"),
        ({"alpha": [1.0]}, "alpha"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"ignore_index": 1}, "ignore_index"),
    ]:
        arguments = {"gamma": 2.0, "alpha": None, "label_smoothing": 0.0, "ignore_index": -100, "class_counts": [3, 4]}
        with pytest.raises(ConfigError, match=rf"^{key}: "):
            Focal(**arguments | change)
