import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.loss.dice import Dice

every_way = pytest.mark.parametrize("per", ["batch", "sample", "class"])
every_kind = pytest.mark.parametrize("kind", ["class", "multi_hot"])


def logits_and_targets(kind: str, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(29)
    logits = 2 * torch.randn(24, 4, generator=generator, dtype=torch.float64)
    if kind == "class":
        target = torch.randint(4, (24,), generator=generator)
        target[::7] = -100
    else:
        target = torch.randint(2, (24, 4), generator=generator).float()
        target[::7] = -100
        target[1::5, 2] = -100
    return logits.to(dtype), target


def entries(logits, target):
    """(row, column, p, y) of each entry that is not ignored."""
    for i, row in enumerate(logits.tolist()):
        norm = math.fsum(math.exp(x) for x in row)
        for c, x in enumerate(row):
            if target.ndim == 1 and target[i] != -100:
                yield i, c, math.exp(x) / norm, float(target[i] == c)
            if target.ndim == 2 and target[i, c] != -100:
                yield i, c, 1 / (1 + math.exp(-x)), target[i, c].item()


def by_the_formula(logits, target, smooth, per):
    """The definition, coefficient by coefficient."""
    key = {"batch": lambda i, c: 0, "sample": lambda i, c: i, "class": lambda i, c: c}[per]
    sums: dict[int, list[float]] = {}
    rows = set()
    for i, c, p, y in entries(logits, target):
        rows.add(i)
        common, total = sums.get(key(i, c), [0.0, 0.0])
        sums[key(i, c)] = [common + p * y, total + p + y]
    losses = [1 - (2 * common + smooth) / (total + smooth) for common, total in sums.values()]
    return math.fsum(losses) if per == "sample" else len(rows) * math.fsum(losses) / len(losses)


@every_way
@every_kind
@pytest.mark.parametrize("smooth", [1e-3, 1.0])
def test_value_is_the_formulas(smooth, kind, per):
    logits, target = logits_and_targets(kind)
    value = Dice(smooth, per, -100)(logits, target)
    assert value.shape == ()
    assert math.isclose(value.item(), by_the_formula(logits, target, smooth, per), rel_tol=1e-12)


def test_value_of_a_hand_made_example():
    logits = torch.zeros(2, 2)
    target = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    expected = 1 - (2 * 1.5 + 1) / (2 + 3 + 1)
    assert math.isclose(Dice(1.0, "batch", -100)(logits, target).item(), 2 * expected, rel_tol=1e-6)


@every_way
@every_kind
def test_gradient_in_float64(kind, per):
    logits, target = logits_and_targets(kind)
    loss = Dice(1.0, per, -100)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target[:8]), logits[:8].requires_grad_())


@every_way
@every_kind
@settings(max_examples=20)
@given(kept=st.lists(st.booleans(), min_size=24, max_size=24))
def test_ignoring_rows_is_leaving_them_out(kind, per, kept):
    logits, target = logits_and_targets(kind)
    mask = torch.tensor(kept)
    ignoring = target.masked_fill(~mask if kind == "class" else ~mask[:, None], -100)
    loss = Dice(1.0, per, -100)
    assert math.isclose(loss(logits, ignoring), loss(logits[mask], target[mask]), rel_tol=1e-13)
    assert torch.equal(loss.num_targets(ignoring), loss.num_targets(target[mask]))


@every_way
@every_kind
@settings(max_examples=20)
@given(order=st.permutations(range(24)))
def test_the_order_of_the_rows_does_not_matter(kind, per, order):
    logits, target = logits_and_targets(kind)
    loss = Dice(1.0, per, -100)
    assert math.isclose(loss(logits[list(order)], target[list(order)]), loss(logits, target), rel_tol=1e-13)


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rows", [0, 4])
@pytest.mark.parametrize("target", [torch.full((4,), -100), torch.full((4, 5), -100.0)], ids=["class", "multi_hot"])
def test_without_targets_it_is_zero(target, rows, dtype, per):
    logits = torch.randn(rows, 5, dtype=dtype, requires_grad=True)
    loss = Dice(1.0, per, -100)
    value = loss(logits, target[:rows])
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert loss.num_targets(target[:rows]).item() == 0


@every_way
@pytest.mark.parametrize("smooth", [1e-6, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("target", [torch.tensor([0, 1, 2]), torch.zeros(3, 3), torch.ones(3, 3)])
def test_saturated_logits_stay_finite(target, dtype, smooth, per):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [1e4, 0.0, 0.0]], dtype=dtype, requires_grad=True)
    value = Dice(smooth, per, -100)(logits, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    assert torch.isfinite(logits.grad).all()


def test_perfect_predictions_lose_nothing():
    target = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    assert Dice(1.0, "batch", -100)(200 * target - 100, target).item() == pytest.approx(0, abs=1e-6)
    assert Dice(1.0, "class", -100)(200 * torch.eye(3) - 100, torch.arange(3)).item() == pytest.approx(0, abs=1e-6)


def test_a_row_of_labels_is_ignored_when_all_of_it_is():
    target = torch.tensor([[-100.0, 1.0], [-100.0, -100.0], [0.0, 0.0]])
    count = Dice(1.0, "batch", -100).num_targets(target)
    assert count.dtype == torch.int64
    assert count.item() == 2


def test_labels_need_an_ignore_index_that_is_no_label():
    loss = Dice(1.0, "batch", 0)
    loss.check(torch.tensor([0, 4]))
    with pytest.raises(ConfigError, match=r"^ignore_index: would leave out every such label, got 0\. Use a value "):
        loss.check(torch.zeros(2, 5))


@pytest.mark.parametrize("smooth", [0.0, -1.0, math.nan, math.inf])
def test_all_faults_come_together(smooth):
    with pytest.raises(ConfigError) as error:
        Dice(smooth, "row", -100)
    assert error.value.messages == (
        f"smooth: must be finite and above 0, got {smooth!r}.",
        "per: must be one of batch, sample, class, got 'row'.",
    )
