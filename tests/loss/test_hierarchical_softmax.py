import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.errors import ConfigError, RowError
from trainer.loss.hierarchical_softmax import HierarchicalSoftmax
from trainer.loss.huffman import huffman_tree, paths_and_codes

COUNTS = [45, 13, 12, 16, 9, 5, 0]


def loss_of(
    counts: list[int] | None = COUNTS, num_outputs: int | None = None, features: int = 4
) -> HierarchicalSoftmax:
    torch.manual_seed(1)
    loss = HierarchicalSoftmax(features, -100, num_outputs, counts).double()
    nn.init.normal_(loss.weight)
    nn.init.normal_(loss.bias)
    return loss


def features_and_targets(rows: int = 20, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    target = torch.randint(7, (rows,), generator=generator)
    target[::6] = -100
    return torch.randn(rows, 4, generator=generator, dtype=torch.float64).to(dtype), target


def log_probability(loss: HierarchicalSoftmax, row: list[float], target: int) -> float:
    """The definition: one decision after the other along the path."""
    paths, codes = paths_and_codes(huffman_tree(COUNTS))
    total = 0.0
    for node, bit in zip(paths[target].tolist(), codes[target].tolist(), strict=True):
        if bit >= 0:
            weight, bias = loss.weight[node].tolist(), loss.bias[node].item()
            score = math.fsum(a * b for a, b in zip(weight, row, strict=True)) + bias
            total -= math.log1p(math.exp(score if bit else -score))
    return total


def test_value_is_the_definitions():
    loss = loss_of()
    output, target = features_and_targets()
    rows = zip(output.tolist(), target.tolist(), strict=True)
    expected = math.fsum(-log_probability(loss, row, y) for row, y in rows if y != -100)
    value = loss(output, target)
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_scores_are_the_definitions():
    loss = loss_of()
    output, _ = features_and_targets(rows=3)
    expected = torch.tensor([[log_probability(loss, row, y) for y in range(7)] for row in output.tolist()])
    assert torch.allclose(loss.scores(output), expected.double(), rtol=0, atol=1e-6)


@given(
    counts=st.lists(st.integers(0, 1000), min_size=2, max_size=80),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_log_probabilities_and_the_loss_is_the_targets(counts, scale, seed):
    loss = loss_of(counts)
    generator = torch.Generator().manual_seed(seed)
    output = scale * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(len(counts), (6,), generator=generator)
    scores = loss.scores(output)
    assert scores.shape == (6, len(counts))
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(loss(output, target), -scores[torch.arange(6), target].sum(), rtol=1e-12)


def test_gradients_in_float64():
    loss = loss_of()
    output, target = features_and_targets(rows=9)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in loss.parameters()]

    def value(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"weight": weight, "bias": bias}, (features, target))

    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *parameters))


def test_gradients_are_those_of_the_scores():
    loss = loss_of()
    output, target = features_and_targets()
    kept = target != -100
    given = [output.requires_grad_(), *loss.parameters()]
    ours = torch.autograd.grad(loss(output, target), given)
    theirs = torch.autograd.grad(-loss.scores(output)[kept, target[kept]].sum(), given)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@given(order=st.permutations(range(20)), split=st.integers(0, 20))
def test_it_is_a_sum_over_the_targets(order, split):
    loss = loss_of()
    output, target = features_and_targets()
    moved, wanted = output[order], target[order]
    parts = loss(moved[:split], wanted[:split]) + loss(moved[split:], wanted[split:])
    assert math.isclose(parts.item(), loss(output, target).item(), rel_tol=1e-12)
    assert loss.num_targets(wanted[:split]) + loss.num_targets(wanted[split:]) == loss.num_targets(target) == 16


def test_ignoring_rows_is_leaving_them_out():
    loss = loss_of()
    output, target = features_and_targets()
    kept = target != -100
    ours = torch.autograd.grad(loss(output, target), list(loss.parameters()))
    theirs = torch.autograd.grad(loss(output[kept], target[kept]), list(loss.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(ours, theirs, strict=True))


def test_leading_axes_are_flattened():
    loss = loss_of()
    output, target = features_and_targets()
    shaped, wanted = output.view(5, 4, 4), target.view(5, 4)
    assert torch.equal(loss(shaped, wanted), loss(output, target))
    assert torch.equal(loss.scores(shaped), loss.scores(output).view(5, 4, 7))
    assert torch.allclose(loss.scores(output[0]), loss.scores(output)[0])


def test_the_likeliest_classes():
    loss = loss_of()
    output, _ = features_and_targets()
    values, classes = loss.top_k(output, 3)
    scores = loss.scores(output)
    assert torch.equal(values, scores.sort(dim=1, descending=True).values[:, :3])
    assert torch.equal(scores.gather(1, classes), values)


def test_without_counts_all_classes_are_equal():
    loss = loss_of(None, num_outputs=8)
    assert loss.signs.shape == (8, 3)
    assert (loss.signs != 0).all()
    assert loss.scores(torch.zeros(2, 4)).shape == (2, 8)


@pytest.mark.parametrize("rows", [0, 4])
def test_without_targets_it_is_zero(rows):
    loss = loss_of()
    output = torch.randn(rows, 4, dtype=torch.float64, requires_grad=True)
    target = torch.full((rows,), -100)
    value = loss(output, target)
    value.backward()
    assert value.item() == 0
    assert loss.num_targets(target).item() == 0
    for gradient in (output.grad, loss.weight.grad, loss.bias.grad):
        assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_features_stay_finite(dtype):
    loss = loss_of().float()
    output = torch.tensor([[1e4, -1e4, 1e4, 0.0]] * 8, dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 5, 6, -100])
    value = loss(output, target)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(output.float(), target))
    assert all(torch.isfinite(tensor).all() for tensor in (value, output.grad, loss.weight.grad, loss.bias.grad))
    assert torch.isfinite(loss.scores(output)).all()
    assert torch.equal(output.grad[7], torch.zeros(4, dtype=dtype))


def test_float64_features_meet_float32_parameters_in_float64():
    loss = loss_of().float()
    output, target = features_and_targets()
    assert loss(output, target).dtype == loss.scores(output).dtype == torch.float64
    assert torch.allclose(loss(output, target), loss.double()(output, target), rtol=1e-12)


def test_it_learns_the_frequencies():
    loss = loss_of([1] * 4)
    target = torch.tensor([0] * 8 + [1] * 4 + [2] * 2 + [3] * 2)
    output = torch.zeros(16, 4, dtype=torch.float64)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=100, tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = loss(output, target)
        value.backward()
        return value

    optimizer.step(closure)
    expected = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert torch.allclose(loss.scores(output[0]).exp(), expected, atol=1e-5)


def test_its_state_is_its_parameters():
    loss = loss_of()
    assert loss.state_dict().keys() == {"weight", "bias"}
    assert (loss.weight.shape, loss.bias.shape) == ((6, 4), (6,))
    assert loss.in_features == 4
    assert {buffer.device.type for buffer in loss.to("meta").buffers()} == {"meta"}


def test_what_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"^in_features: must be at least 1, got 0"):
        HierarchicalSoftmax(0, -100, 3)
    with pytest.raises(ConfigError, match=r"^_target_: needs a task that knows its classes"):
        HierarchicalSoftmax(4, -100)
    with pytest.raises(ValueError, match="has not 4 features"):
        loss_of()(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(
        RowError, match=r"^target: must be a class in 0 \.\.\. 6, or -100 to be left out, got 7"
    ) as caught:
        loss_of().check(torch.tensor([0, -100, 6, 7]))
    assert caught.value.position == 3
