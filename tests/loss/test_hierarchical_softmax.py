import heapq
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.loss_sums import check_order_is_free, check_parts_add_up
from trainer.errors import ConfigError, RowError
from trainer.loss.hierarchical_softmax import HierarchicalSoftmax, build_huffman_tree, find_paths

COUNTS = [45, 13, 12, 16, 9, 5, 0]


def make_loss(
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


def compute_log_probability(loss: HierarchicalSoftmax, row: list[float], target: int) -> float:
    """Sum the decisions along the path."""
    paths, codes = find_paths(build_huffman_tree(COUNTS))
    total = 0.0
    for node, bit in zip(paths[target].tolist(), codes[target].tolist(), strict=True):
        if bit >= 0:
            weight, bias = loss.weight[node].tolist(), loss.bias[node].item()
            score = math.fsum(a * b for a, b in zip(weight, row, strict=True)) + bias
            total -= math.log1p(math.exp(score if bit else -score))
    return total


def test_value_matches_the_definition():
    loss = make_loss()
    output, target = features_and_targets()
    rows = zip(output.tolist(), target.tolist(), strict=True)
    expected = math.fsum(-compute_log_probability(loss, row, y) for row, y in rows if y != -100)
    value = loss(output, target)
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_scores_match_the_definition():
    loss = make_loss()
    output, _ = features_and_targets(rows=3)
    expected = torch.tensor([[compute_log_probability(loss, row, y) for y in range(7)] for row in output.tolist()])
    assert torch.allclose(loss.scores(output), expected.double(), rtol=0, atol=1e-6)


@settings(max_examples=30)
@given(
    counts=st.lists(st.integers(0, 1000), min_size=2, max_size=80),
    scale=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_scores_are_log_probabilities_that_match_the_loss(counts, scale, seed):
    loss = make_loss(counts)
    generator = torch.Generator().manual_seed(seed)
    output = scale * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(len(counts), (6,), generator=generator)
    scores = loss.scores(output)
    assert scores.shape == (6, len(counts))
    assert torch.allclose(scores.exp().sum(dim=1), torch.ones(6, dtype=torch.float64), rtol=1e-12)
    assert torch.allclose(loss(output, target), -scores[torch.arange(6), target].sum(), rtol=1e-12)


def test_gradients():
    loss = make_loss()
    output, target = features_and_targets(rows=9)
    parameters = [parameter.detach().clone().requires_grad_() for parameter in loss.parameters()]

    def value(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(loss, {"weight": weight, "bias": bias}, (features, target))

    assert torch.autograd.gradcheck(value, (output.requires_grad_(), *parameters))


def test_gradients_match_the_gradients_of_the_scores():
    loss = make_loss()
    output, target = features_and_targets()
    kept = target != -100
    leaves = [output.requires_grad_(), *loss.parameters()]
    ours = torch.autograd.grad(loss(output, target), leaves)
    theirs = torch.autograd.grad(-loss.scores(output)[kept, target[kept]].sum(), leaves)
    assert all(torch.allclose(a, b, rtol=1e-11, atol=1e-12) for a, b in zip(ours, theirs, strict=True))


@settings(max_examples=30)
@given(order=st.permutations(range(20)), split=st.integers(0, 20))
def test_loss_is_a_sum_over_targets(order, split):
    loss = make_loss()
    output, target = features_and_targets()
    check_order_is_free(loss, output, target, order)
    check_parts_add_up(loss, output[order], target[order], split)
    assert loss.num_targets(target) == 16


def test_ignored_rows_add_nothing():
    loss = make_loss()
    output, target = features_and_targets()
    kept = target != -100
    ours = torch.autograd.grad(loss(output, target), list(loss.parameters()))
    theirs = torch.autograd.grad(loss(output[kept], target[kept]), list(loss.parameters()))
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(ours, theirs, strict=True))


def test_leading_axes_are_flattened():
    loss = make_loss()
    output, target = features_and_targets()
    shaped = output.view(5, 4, 4)
    torch.testing.assert_close(loss(shaped, target.view(5, 4)), loss(output, target))
    torch.testing.assert_close(loss.scores(shaped), loss.scores(output).view(5, 4, 7))
    assert torch.allclose(loss.scores(output[0]), loss.scores(output)[0])


def test_top_k_returns_the_most_likely_classes():
    loss = make_loss()
    output, _ = features_and_targets()
    values, classes = loss.top_k(output, 3)
    scores = loss.scores(output)
    assert torch.equal(values, scores.sort(dim=1, descending=True).values[:, :3])
    assert torch.equal(scores.gather(1, classes), values)


def test_without_counts_all_codes_have_one_length():
    loss = make_loss(None, num_outputs=8)
    assert loss.signs.shape == (8, 3)
    assert (loss.signs != 0).all()
    assert loss.scores(torch.zeros(2, 4)).shape == (2, 8)


@pytest.mark.parametrize("rows", [0, 4])
def test_loss_without_targets_is_zero(rows):
    loss = make_loss()
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
    loss = make_loss().float()
    output = torch.tensor([[1e4, -1e4, 1e4, 0.0]] * 8, dtype=dtype, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 5, 6, -100])
    value = loss(output, target)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(output.float(), target))
    assert all(torch.isfinite(tensor).all() for tensor in (value, output.grad, loss.weight.grad, loss.bias.grad))
    assert torch.isfinite(loss.scores(output)).all()
    assert torch.equal(output.grad[7], torch.zeros(4, dtype=dtype))


def test_float64_features_with_float32_parameters_compute_in_float64():
    loss = make_loss().float()
    output, target = features_and_targets()
    assert loss(output, target).dtype == loss.scores(output).dtype == torch.float64
    assert torch.allclose(loss(output, target), loss.double()(output, target), rtol=1e-12)


def test_training_learns_the_frequencies():
    loss = make_loss([1] * 4)
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


def test_state_is_the_parameters():
    loss = make_loss()
    assert loss.state_dict().keys() == {"weight", "bias"}
    assert (loss.weight.shape, loss.bias.shape) == ((6, 4), (6,))
    assert loss.in_features == 4
    assert {buffer.device.type for buffer in loss.to("meta").buffers()} == {"meta"}


def test_wrong_arguments_outputs_and_targets_are_reported():
    with pytest.raises(ConfigError, match=r"^in_features: must be at least 1, got 0"):
        HierarchicalSoftmax(0, -100, 3)
    with pytest.raises(ConfigError, match=r"^_target_: needs a task that knows its classes"):
        HierarchicalSoftmax(4, -100)
    with pytest.raises(ValueError, match="does not have 4 features"):
        make_loss()(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(
        RowError, match=r"^target: must be a class in 0 \.\.\. 6, or -100 to be left out, got 7"
    ) as error:
        make_loss().check(torch.tensor([0, -100, 6, 7]))
    assert error.value.position == 3


# The Huffman tree

ANY_COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=60)


def optimal_total(counts: list[int]) -> int:
    """Return the total length of an optimal code: the sum of the weights of all merged subtrees."""
    heap, total = [max(1, count) for count in counts], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def code_texts(counts: list[int]) -> list[str]:
    _, codes = find_paths(build_huffman_tree(counts))
    return ["".join(str(bit) for bit in row if bit >= 0) for row in codes.tolist()]


def code_lengths(counts: list[int]) -> list[int]:
    return (find_paths(build_huffman_tree(counts))[1] >= 0).sum(axis=1).tolist()


def test_a_known_tree():
    counts = [45, 13, 12, 16, 9, 5]
    lengths = code_lengths(counts)
    assert lengths == [1, 3, 3, 3, 4, 4]
    assert sum(count * length for count, length in zip(counts, lengths, strict=True)) == 224


@settings(max_examples=40)
@given(counts=ANY_COUNTS)
def test_the_total_length_is_optimal(counts):
    lengths = code_lengths(counts)
    assert sum(max(1, count) * length for count, length in zip(counts, lengths, strict=True)) == optimal_total(counts)


@settings(max_examples=40)
@given(counts=st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_no_other_tree_is_better(counts):
    best = min(
        sum(count * length for count, length in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, len(counts)), repeat=len(counts))
        if math.fsum(2.0**-length for length in lengths) <= 1
    )
    assert optimal_total(counts) == best


@settings(max_examples=40)
@given(counts=ANY_COUNTS)
def test_the_code_is_prefix_free_and_complete(counts):
    codes = sorted(code_texts(counts))
    assert not any(later.startswith(code) for code, later in itertools.pairwise(codes))
    assert sum(2.0 ** -len(code) for code in codes) == 1


@settings(max_examples=40)
@given(counts=ANY_COUNTS)
def test_codes_of_frequent_classes_are_not_longer(counts):
    lengths = code_lengths(counts)
    descending = sorted(zip(counts, lengths, strict=True), reverse=True)
    for (more, shorter), (fewer, longer) in itertools.pairwise(descending):
        assert shorter <= longer or max(1, more) == max(1, fewer)


@settings(max_examples=40)
@given(counts=ANY_COUNTS)
def test_a_path_follows_its_code_from_the_root(counts):
    tree = build_huffman_tree(counts)
    paths, codes = find_paths(tree)
    children = {(0, 0): None, (0, 1): None}
    for node in range(1, len(counts) - 1):
        children[int(tree.node_parent[node]), int(tree.node_bit[node])] = ("node", node)
    for leaf in range(len(counts)):
        children[int(tree.leaf_parent[leaf]), int(tree.leaf_bit[leaf])] = ("leaf", leaf)
    assert len(children) == 2 * (len(counts) - 1)
    for leaf, (path, code) in enumerate(zip(paths.tolist(), codes.tolist(), strict=True)):
        here = ("node", 0)
        for node, bit in zip(path, code, strict=True):
            if bit == -1:
                assert node == 0
                continue
            assert here == ("node", node)
            here = children[node, bit]
        assert here == ("leaf", leaf)


@settings(max_examples=40)
@given(counts=ANY_COUNTS)
def test_inner_nodes_are_numbered_level_by_level(counts):
    tree = build_huffman_tree(counts)
    starts = tree.level_starts
    assert starts[:2] == (0, 1)
    assert starts[-1] == len(counts) - 1
    assert len(starts) - 1 == max(code_lengths(counts))
    for first, start, stop in zip(starts, starts[1:], starts[2:], strict=False):
        assert ((first <= tree.node_parent[start:stop]) & (tree.node_parent[start:stop] < start)).all()


def test_equal_counts_give_equal_trees():
    counts = [3, 1, 1, 3, 2, 0, 1]
    one, other = build_huffman_tree(counts), build_huffman_tree(list(counts))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("node_parent", "leaf_parent"))
    assert code_texts([1, 1]) == ["0", "1"]
    assert code_texts([1, 1, 1, 1]) == ["00", "01", "10", "11"]


def test_a_count_of_zero_is_treated_as_one():
    assert code_texts([0, 7, 0, 2]) == code_texts([1, 7, 1, 2])


def test_fibonacci_counts_give_the_deepest_tree():
    for size in (2, 3, 30):
        counts = [1, 1]
        while len(counts) < size:
            counts.append(counts[-1] + counts[-2])
        assert code_lengths(counts) == [size - 1, *range(size - 1, 0, -1)]
