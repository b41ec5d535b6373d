"""Hierarchical softmax over a Huffman tree."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.constraints import Count, validated
from trainer.loss.classification import IGNORE_INDEX_RULES, promote_to_float32
from trainer.loss.softmax_layer import SoftmaxLayerLoss, require_class_counts


class HierarchicalSoftmax(SoftmaxLayerLoss):
    """Cross entropy of features (..., D) with classes (...,), with one binary decision per bit of the class's code.

    Morin & Bengio 2005, "Hierarchical probabilistic neural network language model"; over a Huffman tree, as in
    word2vec (Mikolov et al. 2013, https://arxiv.org/abs/1310.4546, eq. 3). Each inner node n has a vector w_n and a
    bias b_n. Over the nodes n and the bits c_n of the path from the root to the class y,

        p(y | x) = product_n sigmoid((1 - 2 * c_n) * (w_n . x + b_n))

    A target costs D times the length of its code instead of D * C. The tree is built from the training counts, so
    frequent classes have short codes; a count of 0 is treated as 1. The gradient of the weights is dense.

    Args:
        in_features: Features per target D that the model returns, at least 1.
        ignore_index: Target that is ignored in the sum and in the count.
        num_outputs: Number of classes C, at least 2.
        class_counts: Training targets of each class, if the task counts them; else all counts are equal.

    Raises:
        ConfigError: The task does not know its classes.
    """

    paths: Tensor
    signs: Tensor
    node_parent: Tensor
    node_sign: Tensor
    leaf_parent: Tensor
    leaf_sign: Tensor

    @validated(*IGNORE_INDEX_RULES)
    def __init__(
        self,
        in_features: Count,
        ignore_index: int,
        num_outputs: int | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        counts = require_class_counts(num_outputs, class_counts)
        super().__init__(in_features, ignore_index, len(counts))
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(len(counts) - 1, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(len(counts) - 1))
        tree = build_huffman_tree(counts)
        paths, codes = find_paths(tree)
        self.level_starts = tree.level_starts
        buffers = {
            "paths": torch.from_numpy(paths),
            # 1 for the bit 0, -1 for the bit 1, 0 after the end of the path.
            "signs": torch.from_numpy((1 - 2 * codes) * (codes >= 0)),
            "node_parent": torch.from_numpy(tree.node_parent),
            "node_sign": torch.from_numpy(1 - 2 * tree.node_bit),
            "leaf_parent": torch.from_numpy(tree.leaf_parent),
            "leaf_sign": torch.from_numpy(1 - 2 * tree.leaf_bit),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the targets: shape (), float32 (float64 for float64 features).

        Raises:
            ValueError: The output does not have one row of D features for each target.
        """
        features, target = self.flatten_features(output, target)
        ignored = target == self.ignore_index
        target = target.masked_fill(ignored, 0)
        paths, signs = self.paths[target], self.signs[target].masked_fill(ignored[:, None], 0)
        scores: Tensor = _PathScores.apply(features, self.weight.to(features.dtype), paths)  # type: ignore[no-untyped-call]
        scores = scores + F.embedding(paths, self.bias[:, None]).squeeze(-1)
        return (-F.logsigmoid(signs * scores)).masked_fill(signs == 0, 0).sum()

    def scores(self, output: Tensor) -> Tensor:
        """Return the log-probabilities of all classes: features (..., D) to (..., C), at least float32."""
        features = promote_to_float32(output)
        decisions = F.linear(features, self.weight.to(features.dtype), self.bias.to(features.dtype))
        above = features.new_zeros(*features.shape[:-1], 1)
        levels = [above]
        for first, start, stop in zip(self.level_starts, self.level_starts[1:], self.level_starts[2:], strict=False):
            parent, sign = self.node_parent[start:stop], self.node_sign[start:stop]
            above = above[..., parent - first] + F.logsigmoid(sign * decisions[..., parent])
            levels.append(above)
        reached = torch.cat(levels, dim=-1)[..., self.leaf_parent]
        return reached + F.logsigmoid(self.leaf_sign * decisions[..., self.leaf_parent])

    def top_k(self, output: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities and numbers (..., k) of the `k` most likely classes of features (..., D)."""
        values, classes = self.scores(output).topk(k, dim=-1)
        return values, classes


class _PathScores(torch.autograd.Function):
    """The products x_i . w_n of each row with the nodes n of its path: (N, D), (nodes, D), (N, L) to (N, L).

    Both gradients come from an embedding bag: the gradient of x is the sum of its nodes' vectors, weighted by the
    incoming gradient, and the gradient of the nodes is the backward pass of that bag. No tensor (N, L, D) is made.
    """

    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, paths: Tensor) -> Tensor:
        ctx.save_for_backward(features, weight, paths)
        return torch.bmm(F.embedding(paths, weight), features[:, :, None]).squeeze(-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        features, weight, paths = ctx.saved_tensors
        with torch.enable_grad():
            nodes = weight.detach().requires_grad_()
            bag = F.embedding_bag(paths, nodes, per_sample_weights=gradients[0], mode="sum")
            (weight_gradient,) = torch.autograd.grad(bag, nodes, features)
        return bag.detach(), weight_gradient, None


@dataclass(frozen=True)
class HuffmanTree:
    """A binary tree with the C classes as leaves. Inner nodes are numbered level by level, the root is 0.

    Huffman 1952, "A method for the construction of minimum-redundancy codes": among all such trees, it has the least
    sum of count * depth over the classes.

    Attributes:
        node_parent: Parent of each inner node, int64 (C - 1,); 0 for the root itself.
        node_bit: Which child of its parent each inner node is, 0 or 1, int8 (C - 1,); 0 for the root.
        leaf_parent: Parent of each class, int64 (C,).
        leaf_bit: Which child of its parent each class is, 0 or 1, int8 (C,).
        level_starts: Number of the first inner node of each level, and C - 1 at the end.
    """

    node_parent: NDArray[np.int64]
    node_bit: NDArray[np.int8]
    leaf_parent: NDArray[np.int64]
    leaf_bit: NDArray[np.int8]
    level_starts: tuple[int, ...]


def build_huffman_tree(counts: Sequence[int]) -> HuffmanTree:
    """Build the tree of at least two classes; a count of 0 is treated as 1.

    The two lightest subtrees are merged repeatedly; the lighter one becomes child 0. Ties are broken by taking classes
    before merged subtrees and lower numbers before higher ones, so equal counts give equal trees.
    """
    size = len(counts)
    assert size >= 2, "a tree needs two leaves"
    parent, bit = _merge([max(1, count) for count in counts])
    # Children have lower numbers than their parents, so this visits each parent before its children.
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
    """Return parent and bit of each node: leaves 0 ... C - 1, then inner nodes in order of creation, the root last."""
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


def find_paths(tree: HuffmanTree) -> tuple[NDArray[np.int32], NDArray[np.int8]]:
    """Return the inner nodes from the root to each class and its bits (the code), int32 and int8 (C, longest code).

    After the end of a path, the node is 0 and the bit is -1.
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
