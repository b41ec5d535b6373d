import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.loss_sums import logits_and_classes, logits_and_labels, value_and_gradient
from trainer.errors import ConfigError
from trainer.loss.dice import Dice

every_scope = pytest.mark.parametrize("per", ["batch", "sample", "class"])
EXAMPLES = {"class": logits_and_classes, "multi_hot": lambda: logits_and_labels(rows=64)}


def entries(logits, target):
    """Yield (row, column, p, y) of each entry that is not ignored."""
    for i, row in enumerate(logits.tolist()):
        norm = math.fsum(math.exp(x) for x in row)
        for c, x in enumerate(row):
            if target.ndim == 1 and target[i] != -100:
                yield i, c, math.exp(x) / norm, float(target[i] == c)
            if target.ndim == 2 and target[i, c] != -100:
                yield i, c, 1 / (1 + math.exp(-x)), target[i, c].item()


def evaluate_definition(logits, target, smooth, per):
    """Combine the coefficients of the definition."""
    key = {"batch": lambda i, c: 0, "sample": lambda i, c: i, "class": lambda i, c: c}[per]
    sums: dict[int, list[float]] = {}
    rows = set()
    for i, c, p, y in entries(logits, target):
        rows.add(i)
        common, total = sums.get(key(i, c), [0.0, 0.0])
        sums[key(i, c)] = [common + p * y, total + p + y]
    losses = [1 - (2 * common + smooth) / (total + smooth) for common, total in sums.values()]
    return math.fsum(losses) if per == "sample" else len(rows) * math.fsum(losses) / len(losses)


@every_scope
def test_value_matches_the_definition(per):
    for example in EXAMPLES.values():
        for smooth in (1e-3, 1.0):
            logits, target = example()
            value = Dice(smooth, per, -100)(logits, target)
            assert value.shape == ()
            assert math.isclose(value.item(), evaluate_definition(logits, target, smooth, per), rel_tol=1e-12)


def test_a_known_value():
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = 1 - (2 * 1.5 + 1) / (2 + 3 + 1)
    assert math.isclose(Dice(1.0, "batch", -100)(torch.zeros(2, 2), target).item(), 2 * expected, rel_tol=1e-6)


@every_scope
def test_gradient(per):
    for example in EXAMPLES.values():
        logits, target = example()
        loss = Dice(1.0, per, -100)
        assert torch.autograd.gradcheck(
            lambda scores, loss=loss, target=target: loss(scores, target[:8]), logits[:8].requires_grad_()
        )


@every_scope
@settings(max_examples=10)
@given(kept=st.lists(st.booleans(), min_size=64, max_size=64), order=st.permutations(range(64)))
def test_ignored_rows_and_order_do_not_matter(per, kept, order):
    for example in EXAMPLES.values():
        logits, target = example()
        mask = torch.tensor(kept)
        ignoring = target.masked_fill(~mask if target.ndim == 1 else ~mask[:, None], -100)
        loss = Dice(1.0, per, -100)
        assert math.isclose(loss(logits, ignoring), loss(logits[mask], target[mask]), rel_tol=1e-12)
        assert torch.equal(loss.num_targets(ignoring), loss.num_targets(target[mask]))
        assert math.isclose(loss(logits[list(order)], target[list(order)]), loss(logits, target), rel_tol=1e-12)


@every_scope
def test_loss_without_targets_is_zero(per):
    for target in (torch.full((4,), -100), torch.full((4, 5), -100.0)):
        for rows in (0, 4):
            logits = torch.randn(rows, 5, dtype=torch.bfloat16)
            loss = Dice(1.0, per, -100)
            value, gradient = value_and_gradient(loss, logits, target[:rows])
            assert value.item() == 0
            assert torch.equal(gradient, torch.zeros_like(logits))
            assert loss.num_targets(target[:rows]).item() == 0


@every_scope
def test_saturated_logits_stay_finite(per):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 0.0, 0.0]], dtype=dtype)
        for target in (torch.tensor([0, 1, 2]), torch.zeros(3, 3), torch.ones(3, 3)):
            value, gradient = value_and_gradient(Dice(1e-6, per, -100), logits, target)
            assert value.dtype == torch.float32
            assert torch.isfinite(value)
            assert torch.isfinite(gradient).all()


def test_perfect_predictions_have_no_loss():
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert Dice(1.0, "batch", -100)(200 * target - 100, target).item() == pytest.approx(0, abs=1e-6)
    assert Dice(1.0, "class", -100)(200 * torch.eye(3) - 100, torch.arange(3)).item() == pytest.approx(0, abs=1e-6)


def test_a_row_of_labels_is_ignored_if_all_its_entries_are():
    count = Dice(1.0, "batch", -100).num_targets(torch.tensor([[-100.0, 1.0], [-100.0, -100.0], [0.0, 0.0]]))
    assert count.dtype == torch.int64
    assert count.item() == 2


def test_wrong_arguments_are_reported_together():
    for smooth in (0.0, math.nan, math.inf):
        with pytest.raises(ConfigError) as error:
            Dice(smooth, "row", 0)
        assert [message.split(":")[0] for message in error.value.messages] == ["smooth", "per", "ignore_index"]
