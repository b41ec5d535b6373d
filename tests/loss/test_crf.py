import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.support.loss_sums import (
    check_ignored_rows_are_left_out,
    check_no_target_is_zero,
    check_order_is_free,
    check_parts_add_up,
    value_and_gradient,
)
from trainer import testing
from trainer.errors import ConfigError, RowError
from trainer.loss.crf import Crf
from trainer.tags import TagTransitions

BIO = ["O", "B-X", "I-X"]


def make(seed: int | None = 0, **changes: Any) -> Crf:
    """Return a CRF over three tags with random weights, or with its first ones."""
    loss = Crf(**({"constraints": False, "ignore_index": -100, "num_outputs": 3} | changes)).double()
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        for weight in loss.parameters():
            weight.data = 2 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
    return loss


def sequences(rows: int = 6, width: int = 4, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return scores and tags of sequences; some positions are ignored, also between two words."""
    generator = torch.Generator().manual_seed(3)
    output = 2 * torch.randn(rows, width, 3, generator=generator, dtype=torch.float64)
    target = torch.randint(3, (rows, width), generator=generator)
    target[1::3, -2:] = -100
    target[2::3, 1] = -100
    return output.to(dtype), target


def nll_by_brute_force(loss: Crf, scores: Tensor, tags: list[int]) -> Tensor:
    """Return the negative log-likelihood of a sequence of W tags from the scores (W, C) of all C ** W sequences."""

    def score(each: tuple[int, ...]) -> Tensor:
        words = torch.stack([scores[place, tag] for place, tag in enumerate(each)]).sum()
        pairs = [loss.between[pair] for pair in itertools.pairwise(each)]
        return loss.start[each[0]] + words + sum(pairs, torch.zeros(())) + loss.end[each[-1]]

    everything = torch.stack([score(each) for each in itertools.product(range(3), repeat=len(tags))])
    return everything.logsumexp(dim=0) - score(tuple(tags))


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), tags=st.lists(st.integers(-1, 2), min_size=1, max_size=5))
def test_value_and_gradients_equal_the_sum_over_all_sequences(seed: int, tags: list[int]) -> None:
    loss, theirs = make(seed), make(seed)
    target = torch.tensor([tags]).masked_fill(torch.tensor([tags]) < 0, -100)
    output = 3 * torch.randn(1, len(tags), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    kept = target[0] >= 0

    value, gradient = value_and_gradient(loss, output, target)
    own = output[0].clone().requires_grad_()
    expected = nll_by_brute_force(theirs, own[kept], target[0][kept].tolist()) if kept.any() else (0.0 * own).sum()
    expected.backward()

    assert math.isclose(value, expected.detach(), rel_tol=1e-12, abs_tol=1e-12)
    torch.testing.assert_close(gradient[0], own.grad, rtol=1e-10, atol=1e-12)
    for ours, other in zip(loss.parameters(), theirs.parameters(), strict=True):
        expected_gradient = torch.zeros_like(ours) if other.grad is None else other.grad
        torch.testing.assert_close(ours.grad, expected_gradient, rtol=1e-10, atol=1e-12)


def test_without_transitions_it_is_the_cross_entropy() -> None:
    output, target = sequences()
    expected = F.cross_entropy(output.flatten(0, 1), target.flatten(), reduction="sum")
    assert math.isclose(make(None)(output, target).detach(), expected, rel_tol=1e-13)


def test_gradients() -> None:
    loss = make()
    output, target = sequences(rows=4)
    names, weights = zip(*loss.named_parameters(), strict=True)

    def value(scores: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(loss, dict(zip(names, values, strict=True)), (scores, target))

    weights = [weight.detach().clone().requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *weights))


@settings(max_examples=20)
@given(order=st.permutations(range(6)), split=st.integers(0, 6), kept=st.lists(st.booleans(), min_size=6, max_size=6))
def test_loss_is_a_sum_over_sequences(order: list[int], split: int, kept: list[bool]) -> None:
    loss = make()
    output, target = sequences()
    check_order_is_free(loss, output, target, order)
    check_parts_add_up(loss, output, target, split)
    check_ignored_rows_are_left_out(loss, output, target, kept)


def test_row_terms_are_the_losses_of_the_rows() -> None:
    loss = make()
    output, target = sequences()
    rows = torch.stack([loss(output[row : row + 1], target[row : row + 1]) for row in range(len(target))])
    torch.testing.assert_close(loss.row_terms(output, target), rows, rtol=1e-13, atol=0)


def test_no_target_is_zero() -> None:
    check_no_target_is_zero(make().float(), torch.randn(2, 3, 3), torch.full((2, 3), -100))
    assert make()(torch.zeros(2, 0, 3, dtype=torch.float64), torch.zeros(2, 0, dtype=torch.int64)).item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_scores_have_finite_losses_in_float32(dtype: torch.dtype) -> None:
    output, target = sequences(dtype=dtype)
    value, gradient = value_and_gradient(make().float(), 1000 * output, target)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_it_keeps_the_contract_of_a_loss() -> None:
    testing.check_loss(make().float(), *sequences(dtype=torch.float32))


def test_constraints_forbid_transitions_in_the_search_only() -> None:
    free, constrained = make(class_names=BIO), make(constraints=True, class_names=BIO)
    output, target = sequences()
    assert torch.equal(free(output, target), constrained(output, target))
    allowed, low = free.tag_transitions(), constrained.tag_transitions()
    assert torch.equal(allowed.between, free.between.float())
    changed = [(name, *place) for name in TagTransitions._fields for place in _places(allowed, low, name)]
    assert changed == [("start", 2), ("between", 0, 2)]


def _places(ours: TagTransitions, theirs: TagTransitions, name: str) -> list[list[int]]:
    return (getattr(theirs, name) < getattr(ours, name) - 1e5).nonzero().tolist()


@pytest.mark.parametrize("names", [None, ["NOUN", "VERB", "X"], ["O", "I-X", "I-Y"]])
def test_constraints_need_a_scheme(names: list[str] | None) -> None:
    with pytest.raises(ConfigError, match=r"constraints: needs tags of the scheme .*loss\.constraints=false"):
        make(constraints=True, class_names=names)


def test_errors() -> None:
    with pytest.raises(ConfigError, match="at least two"):
        make(num_outputs=None)
    with pytest.raises(ValueError, match=r"an output \(4, 3\) and targets \(4,\) do not fit"):
        make()(torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(RowError, match="must be a class in 0"):
        make().check(torch.tensor([[0, 3]]))
