"""Hierarchical softmax over a Huffman tree."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.errors import raise_if_any
from trainer.loss.classification import at_least_float32, count_targets
from trainer.loss.features import counts_of_classes, feature_rows
from trainer.loss.huffman import huffman_tree, paths_and_codes
from trainer.ranges import at_least
from trainer.targets import check_classes


class HierarchicalSoftmax(nn.Module):
    """Cross entropy of features (..., D) with classes (...,) in as many binary decisions as the class's code has bits.

    Morin & Bengio 2005, "Hierarchical probabilistic neural network language model"; over a Huffman tree, as in
    word2vec (Mikolov et al. 2013, https://arxiv.org/abs/1310.4546, eq. 3). With a vector w_n and a bias b_n for each
    inner node n, the class y has, over the nodes n and the bits c_n of its path from the root,

        p(y | x) = product_n sigmoid((1 - 2 * c_n) * (w_n . x + b_n))

    A target costs D times the length of its code instead of D * C. The tree follows from the training counts, so that
    frequent classes have short codes; a count of 0 is taken as 1. The weights' gradient is dense.

    Args:
        in_features: Features that the model gives for each target, D; at least 1.
        ignore_index: The target that is left out of the sum and of the count.
        num_outputs: The classes, C; at least 2.
        class_counts: Training targets of each class, where the task counts them; else all are taken as equal.

    Raises:
        ConfigError: A value is out of range, or the task does not know its classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("class",)

    paths: Tensor
    signs: Tensor
    node_parent: Tensor
    node_sign: Tensor
    leaf_parent: Tensor
    leaf_sign: Tensor

    def __init__(
        self,
        in_features: int,
        ignore_index: int,
        num_outputs: int | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        super().__init__()
        counts = counts_of_classes(num_outputs, class_counts)
        raise_if_any(at_least("in_features", in_features, 1))
        self.in_features = in_features
        self.ignore_index = ignore_index
        self.num_outputs = len(counts)
        bound = 1 / math.sqrt(in_features)
        self.weight = nn.Parameter(torch.empty(len(counts) - 1, in_features).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(len(counts) - 1))
        tree = huffman_tree(counts)
        paths, codes = paths_and_codes(tree)
        self.level_starts = tree.level_starts
        buffers = {
            "paths": torch.from_numpy(paths),
            # 1 for the bit 0, -1 for the bit 1, 0 behind the end of the path.
            "signs": torch.from_numpy((1 - 2 * codes) * (codes >= 0)),
            "node_parent": torch.from_numpy(tree.node_parent),
            "node_sign": torch.from_numpy(1 - 2 * tree.node_bit),
            "leaf_parent": torch.from_numpy(tree.leaf_parent),
            "leaf_sign": torch.from_numpy(1 - 2 * tree.leaf_bit),
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def check(self, target: Tensor) -> None:
        """Raises RowError unless `target` holds classes or `ignore_index`."""
        check_classes(target, self.num_outputs, self.ignore_index)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """The sum over the targets: shape (), float32 (float64 for float64 features).

        Raises:
            ValueError: There is not one row of D features for each target.
        """
        features, target = feature_rows(output, target, self.in_features)
        ignored = target == self.ignore_index
        target = target.masked_fill(ignored, 0)
        paths, signs = self.paths[target], self.signs[target].masked_fill(ignored[:, None], 0)
        scores: Tensor = _PathScores.apply(features, self.weight.to(features.dtype), paths)  # type: ignore[no-untyped-call]
        scores = scores + F.embedding(paths, self.bias[:, None]).squeeze(-1)
        return (-F.logsigmoid(signs * scores)).masked_fill(signs == 0, 0).sum()

    def num_targets(self, target: Tensor) -> Tensor:
        """How many targets (...,) are not ignored: int64, shape ()."""
        return count_targets(target, self.ignore_index)

    def scores(self, output: Tensor) -> Tensor:
        """Log-probabilities of all classes: features (..., D) to (..., C), float32 (float64 for float64 features)."""
        features = at_least_float32(output)
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
        """The `k` likeliest classes of features (..., D), likeliest first: log-probabilities and numbers, (..., k)."""
        values, classes = self.scores(output).topk(k, dim=-1)
        return values, classes


class _PathScores(torch.autograd.Function):
    """The products x_i . w_n of each row with the nodes n of its path: (N, D), (nodes, D), (N, L) to (N, L).

    Both gradients come out of an embedding bag: x's is the sum of its nodes' vectors under the incoming gradient, which
    is such a bag, and the nodes' gradient is the backward pass of that bag for x. So nothing of (N, L, D) is made here.
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
            (of_weight,) = torch.autograd.grad(bag, nodes, features)
        return bag.detach(), of_weight, None
