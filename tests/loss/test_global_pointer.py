import cmath
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.loss_sums import check_order_is_free, check_parts_add_up, value_and_gradient
from trainer import testing
from trainer.builders.memory import LiveTensors
from trainer.errors import ConfigError, RowError
from trainer.loss.global_pointer import GlobalPointer, rotate, span_terms

CLASSES = 3


def make(seed: int = 0, head_size: int = 4) -> GlobalPointer:
    torch.manual_seed(seed)
    return GlobalPointer(head_size, CLASSES).double()


def batch(rows: int = 5, width: int = 6, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return features and targets: nested spans, two classes of one span, rows without spans, and padding."""
    generator = torch.Generator().manual_seed(3)
    output = 2 * torch.randn(rows, width, 8, generator=generator, dtype=torch.float64)
    target = torch.full((rows, width, 2), -1)
    target[0, 1] = torch.tensor([4 * CLASSES + 0, 2 * CLASSES + 1])
    target[0, 2, 0] = 2 * CLASSES + 2
    target[1, 0] = torch.tensor([3 * CLASSES + 0, 3 * CLASSES + 1])
    target[1, 3, 0] = 3 * CLASSES + 0
    target[::2, 0] = -100
    target[3:, 4:] = -100
    return output.to(dtype), target


def score_by_formula(loss: GlobalPointer, features: Tensor, index: int, first: int, last: int) -> float:
    """Return the score of a span from complex numbers: multiplying with exp(i angle) turns a pair of features."""
    size = loss.head_size
    query, key = features[first, :size], features[last, size:]
    total = 0.0
    for pair in range(size // 2):
        angle = 10_000 ** (-2 * pair / size)
        one = complex(query[pair], query[pair + size // 2]) * cmath.rect(1, first * angle)
        other = complex(key[pair], key[pair + size // 2]) * cmath.rect(1, last * angle)
        total += (one * other.conjugate()).real
    weight, bias = loss.boundaries.weight.detach(), loss.boundaries.bias.detach()
    starts = weight[index] @ features[first] + bias[index]
    ends = weight[CLASSES + index] @ features[last] + bias[CLASSES + index]
    return total / math.sqrt(size) + starts.item() + ends.item()


def loss_by_formula(scores: Tensor, target: Tensor) -> float:
    """Return the loss of one sample from the scores of all its spans, class by class."""
    places = [place for place, row in enumerate(target.tolist()) if row[0] != -100]
    spans = {(first, *divmod(code, CLASSES)) for first, row in enumerate(target.tolist()) for code in row if code >= 0}
    total = 0.0
    for index in range(CLASSES):
        pairs = list(itertools.combinations_with_replacement(places, 2))
        others = [scores[index, i, j].item() for i, j in pairs if (i, j, index) not in spans]
        own = [-scores[index, i, j].item() for i, j in pairs if (i, j, index) in spans]
        total += sum(math.log(1 + sum(map(math.exp, each))) for each in (others, own))
    return total


def test_scores_are_those_of_the_formula() -> None:
    loss, (output, _) = make(), batch(rows=2)
    scores = loss.scores(output)
    assert scores.shape == (2, CLASSES, 6, 6)
    for row, index, first, last in itertools.product(range(2), range(CLASSES), range(6), range(6)):
        expected = score_by_formula(loss, output[row], index, first, last) if first <= last else 0.0
        assert scores[row, index, first, last].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_equal_scores_start_near_the_minimum_of_the_loss() -> None:
    loss, target = GlobalPointer(4, 1).double(), torch.full((1, 90, 1), -1)
    target[0, 10, 0] = 12
    scores = loss.scores(torch.zeros(1, 90, 8, dtype=torch.float64))
    shift = torch.zeros((), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(span_terms(scores + shift, target).sum(), shift)
    (from_zero,) = torch.autograd.grad(span_terms(0 * scores + shift, target).sum(), shift)
    assert abs(slope) < 0.02 < 0.4 < abs(from_zero)


def test_a_backward_pass_needs_one_tensor_of_the_size_of_the_scores() -> None:
    loss = make().float()
    output, target = torch.randn(2, 200, 8, requires_grad=True), torch.full((2, 200, 1), -1)
    with LiveTensors(loss.parameters) as live:
        value = loss(output, target)
        del target
        stored = live.count()
    value.backward()
    assert 1 <= stored / (4 * 2 * CLASSES * 200**2) < 1.2


def test_products_depend_on_the_distance_of_the_tokens() -> None:
    vectors = torch.randn(2, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).expand(2, 9, 8)
    query, key = rotate(vectors)
    products = query @ key.T
    for distance in range(-8, 9):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=0, atol=1e-12)
    assert products[0].unique().numel() == 9


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_value_is_the_sum_over_all_spans(seed: int, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 5))
    may_bound = data.draw(st.lists(st.booleans(), min_size=width, max_size=width))
    target = torch.where(torch.tensor(may_bound)[:, None], -1, -100).repeat(1, 2)
    places = [place for place, bound in enumerate(may_bound) if bound]
    for first in places:
        lasts = st.sampled_from([place for place in places if place >= first])
        own = data.draw(st.sets(st.tuples(lasts, st.integers(0, CLASSES - 1)), max_size=2))
        for slot, (last, index) in enumerate(sorted(own)):
            target[first, slot] = last * CLASSES + index
    generator = torch.Generator().manual_seed(seed)
    scores = 3 * torch.randn(1, CLASSES, width, width, generator=generator, dtype=torch.float64)
    expected = loss_by_formula(scores[0], target)
    assert span_terms(scores, target[None]).sum().item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_gradients() -> None:
    loss, (output, target) = make(), batch()
    names, weights = zip(*loss.named_parameters(), strict=True)

    def value(features: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(loss, dict(zip(names, values, strict=True)), (features, target))

    leaves = [weight.detach().clone().requires_grad_() for weight in weights]
    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *leaves))


@settings(max_examples=20)
@given(order=st.permutations(range(5)), split=st.integers(0, 5))
def test_loss_is_a_sum_over_samples(order: list[int], split: int) -> None:
    loss, (output, target) = make(), batch()
    check_order_is_free(loss, output, target, order)
    check_parts_add_up(loss, output, target, split)


def test_padding_and_empty_slots_change_nothing() -> None:
    loss, (output, target) = make(), batch()
    value, gradient = value_and_gradient(loss, output, target)
    wider = torch.full((5, 9, 3), -100)
    wider[:, :6, :2], wider[:, :6, 2] = target, target.clamp(max=-1)[..., 0]
    padded = torch.cat([output, torch.randn(5, 3, 8, dtype=torch.float64)], dim=1)
    same, wide_gradient = value_and_gradient(loss, padded, wider)
    torch.testing.assert_close(same, value, rtol=1e-13, atol=0)
    torch.testing.assert_close(wide_gradient[:, :6], gradient, rtol=1e-12, atol=1e-14)
    assert not wide_gradient[:, 6:].any()


def test_a_sample_without_tokens_has_no_loss() -> None:
    loss = make().float()
    value, gradient = value_and_gradient(loss, torch.randn(1, 3, 8), torch.full((1, 3, 1), -100))
    assert value == 0
    assert not gradient.any()
    assert all(weight.grad is not None and not weight.grad.any() for weight in loss.parameters())


def test_terms_are_samples_times_classes() -> None:
    loss, (output, target) = make(), batch()
    assert loss.row_terms(output, target).shape == (5, CLASSES)
    assert loss.num_targets(target).item() == 5 * CLASSES


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_large_scores_have_finite_losses_in_float32(dtype: torch.dtype) -> None:
    output, target = batch(dtype=dtype)
    value, gradient = value_and_gradient(make().float(), output * 1e2, target)
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_it_passes_the_checks_of_losses() -> None:
    output, target = batch(rows=4)
    testing.check_loss(make(), output.float(), target)


def test_arguments_and_shapes_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"^head_size: must be even, got 3"):
        GlobalPointer(3, CLASSES)
    with pytest.raises(ConfigError, match=r"^_target_: needs a task that knows its classes"):
        GlobalPointer(4)
    output, target = batch()
    with pytest.raises(ValueError, match=r"must be \(B, T, 8\) and \(B, T, M\)"):
        make()(output[..., :6], target)
    make().check(target)


@pytest.mark.parametrize("code", [-2, 6 * CLASSES, 0])
def test_targets_that_are_no_spans_are_refused(code: int) -> None:
    _, target = batch()
    target[1, 1, 0] = code  # 0 is the class 0 up to the token 0, which is before the token 1
    with pytest.raises(RowError, match=r"^target: must be a last token of the row times 3 classes plus a class"):
        make().check(target)
    with pytest.raises(RowError, match=r"int64 \(B, T, M\)"):
        make().check(target[0])
