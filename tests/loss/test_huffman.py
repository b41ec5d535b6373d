import heapq
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.loss.huffman import code_lengths, huffman_tree, paths_and_codes

COUNTS = st.lists(st.integers(0, 10_000), min_size=2, max_size=60)


def least_total(counts: list[int]) -> int:
    """The total length of an optimal code: the sum of the weights of all merged subtrees."""
    heap, total = [max(1, count) for count in counts], 0
    heapq.heapify(heap)
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        total += merged
        heapq.heappush(heap, merged)
    return total


def codes_as_text(counts: list[int]) -> list[str]:
    _, codes = paths_and_codes(huffman_tree(counts))
    return ["".join(str(bit) for bit in row if bit >= 0) for row in codes.tolist()]


def test_the_worked_example():
    counts = [45, 13, 12, 16, 9, 5]
    lengths = code_lengths(huffman_tree(counts))
    assert lengths == [1, 3, 3, 3, 4, 4]
    assert sum(count * length for count, length in zip(counts, lengths, strict=True)) == 224


@given(counts=COUNTS)
def test_no_code_is_shorter_in_total(counts):
    lengths = code_lengths(huffman_tree(counts))
    assert sum(max(1, count) * length for count, length in zip(counts, lengths, strict=True)) == least_total(counts)


@given(counts=st.lists(st.integers(1, 20), min_size=2, max_size=4))
def test_no_other_tree_is_better(counts):
    best = min(
        sum(count * length for count, length in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, len(counts)), repeat=len(counts))
        if math.fsum(2.0**-length for length in lengths) <= 1
    )
    assert least_total(counts) == best


@given(counts=COUNTS)
def test_no_code_begins_another_and_none_is_left_over(counts):
    codes = sorted(codes_as_text(counts))
    assert not any(later.startswith(code) for code, later in itertools.pairwise(codes))
    assert sum(2.0 ** -len(code) for code in codes) == 1


@given(counts=COUNTS)
def test_more_frequent_classes_have_no_longer_codes(counts):
    lengths = code_lengths(huffman_tree(counts))
    falling = sorted(zip(counts, lengths, strict=True), reverse=True)
    for (more, shorter), (fewer, longer) in itertools.pairwise(falling):
        assert shorter <= longer or max(1, more) == max(1, fewer)


@given(counts=COUNTS)
def test_a_path_is_the_way_from_the_root_that_its_code_says(counts):
    tree = huffman_tree(counts)
    paths, codes = paths_and_codes(tree)
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


@given(counts=COUNTS)
def test_inner_nodes_are_numbered_level_by_level(counts):
    tree = huffman_tree(counts)
    starts = tree.level_starts
    assert starts[:2] == (0, 1)
    assert starts[-1] == len(counts) - 1
    assert len(starts) - 1 == max(code_lengths(tree))
    for first, start, stop in zip(starts, starts[1:], starts[2:], strict=False):
        assert ((first <= tree.node_parent[start:stop]) & (tree.node_parent[start:stop] < start)).all()


def test_equal_counts_give_equal_trees():
    counts = [3, 1, 1, 3, 2, 0, 1]
    one, other = huffman_tree(counts), huffman_tree(list(counts))
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("node_parent", "leaf_parent"))
    assert codes_as_text([1, 1]) == ["0", "1"]
    assert codes_as_text([1, 1, 1, 1]) == ["00", "01", "10", "11"]


def test_a_count_of_zero_is_a_count_of_one():
    assert codes_as_text([0, 7, 0, 2]) == codes_as_text([1, 7, 1, 2])


@pytest.mark.parametrize("size", [2, 3, 30])
def test_the_deepest_tree(size):
    counts = [1, 1]
    while len(counts) < size:
        counts.append(counts[-1] + counts[-2])
    assert code_lengths(huffman_tree(counts)) == [size - 1, *range(size - 1, 0, -1)]
