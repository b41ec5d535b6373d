"""Huffman trees over classes: frequent classes are leaves near the root.

Huffman 1952, "A method for the construction of minimum-redundancy codes". Among all binary trees with the classes as
leaves it has the least sum of count * depth.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class HuffmanTree:
    """A binary tree with the V classes as leaves. Inner nodes are numbered level by level, the root is 0.

    Attributes:
        node_parent: The inner node above each inner node, int64 (V - 1,); 0 for the root itself.
        node_bit: Which child it is there, 0 or 1, int8 (V - 1,); 0 for the root.
        leaf_parent: The inner node above each class, int64 (V,).
        leaf_bit: Which child it is there, int8 (V,).
        level_starts: Number of the first inner node of each level, and V - 1 at the end.
    """

    node_parent: NDArray[np.int64]
    node_bit: NDArray[np.int8]
    leaf_parent: NDArray[np.int64]
    leaf_bit: NDArray[np.int8]
    level_starts: tuple[int, ...]


def huffman_tree(counts: Sequence[int]) -> HuffmanTree:
    """The tree of at least two classes with these counts, a count of 0 taken as 1.

    The two lightest subtrees are merged, the lighter one becomes child 0; among equals, classes come before merged
    subtrees and the lower number before the higher. So equal counts give equal trees.
    """
    size = len(counts)
    assert size >= 2, "a tree needs two leaves"
    parent, bit = _merge([max(1, count) for count in counts])
    # Children have lower numbers than their parents: from the root, the last, down to the first.
    depth = [0] * len(parent)
    for node in range(len(parent) - 2, -1, -1):
        depth[node] = depth[parent[node]] + 1
    by_level = sorted(range(size, len(parent)), key=lambda node: (depth[node], -node))
    number = np.zeros(len(parent), np.int64)
    number[by_level] = np.arange(size - 1)
    parents, bits = number[parent], np.array(bit, np.int8)
    per_level = np.bincount(np.array(depth[size:]))
    return HuffmanTree(
        parents[by_level], bits[by_level], parents[:size], bits[:size], (0, *np.cumsum(per_level).tolist())
    )


def _merge(counts: list[int]) -> tuple[list[int], list[int]]:
    """Parent and bit of each node: leaves 0 ... V - 1, then inner nodes in the order of their making, the root last."""
    size = len(counts)
    heap = [(count, leaf) for leaf, count in enumerate(counts)]
    heapq.heapify(heap)
    parent, bit = [2 * size - 2] * (2 * size - 1), [0] * (2 * size - 1)
    for node in range(size, 2 * size - 1):
        (light, first), (heavy, second) = heapq.heappop(heap), heap[0]
        parent[first] = parent[second] = node
        bit[second] = 1
        heapq.heapreplace(heap, (light + heavy, node))
    return parent, bit


def code_lengths(tree: HuffmanTree) -> list[int]:
    """Edges from the root to each class."""
    return (paths_and_codes(tree)[1] >= 0).sum(axis=1).tolist()  # type: ignore[no-any-return]  # numpy's tolist is Any


def paths_and_codes(tree: HuffmanTree) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """The inner nodes from the root to each class and the bits taken there, int32 and int8 (V, longest code).

    Behind the end of a path are 0 as node and -1 as bit.
    """
    levels = len(tree.level_starts) - 1
    level_of = np.repeat(np.arange(levels), np.diff(tree.level_starts))
    paths = np.zeros((len(tree.leaf_parent), levels), np.int32)
    codes = np.full(paths.shape, -1, np.int8)
    rows, node, bit = np.arange(len(paths)), tree.leaf_parent, tree.leaf_bit
    while len(rows):
        paths[rows, level_of[node]] = node
        codes[rows, level_of[node]] = bit
        below = node > 0
        rows, node, bit = rows[below], tree.node_parent[node[below]], tree.node_bit[node[below]]
    return paths, codes
