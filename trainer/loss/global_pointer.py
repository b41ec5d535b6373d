"""GlobalPointer: scores all spans of a text at once, so that entities may be in each other."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from trainer.constraints import Count, Rule, validated
from trainer.errors import ConfigError, format_error
from trainer.loss.classification import promote_to_float32
from trainer.loss.regression import count_tensor
from trainer.spans import SpanCells, possible_spans, span_cells
from trainer.targets import check_spans

_ROTARY_BASE = 10_000
_START = -4.0
"""The score of every span before training.

If all scores are equal, the loss of N spans that are not of a class and n that are is the smallest at -log(N / n) / 2.
For texts of about 100 tokens this is near -4. A start at 0 would spend its first steps on the way there.
"""


class GlobalPointer(nn.Module):
    """Loss of the classes of spans given features (B, T, 2 * head_size): a query q and a key k for each token.

        s(c, i, j) = R(i) q[i] . R(j) k[j] / sqrt(head_size) + a[c] . [q[i]; k[i]] + b[c] . [q[j]; k[j]]

    is the score of the span of the tokens i to j in the class c. R(i) turns pairs of features by angles that are
    proportional to the position i (Su et al. 2021, "RoFormer", https://arxiv.org/abs/2104.09864), so that the product
    depends on the length of the span. A span is predicted if its score is above 0. The loss of a sample and a class is

        log(1 + sum_{spans that are not of the class} exp(s)) + log(1 + sum_{spans of the class} exp(-s))

    which compares each span of the class with each other one, however rare they are. `num_targets`, the divisor of a
    step, counts samples times classes.

    Su et al. 2022, "Global Pointer: novel efficient span-based approach for named entity recognition",
    https://arxiv.org/abs/2208.03054, in the efficient form (eq. 9): the classes share q and k. The scores need
    B * C * T * T numbers, and a training step about three times as many.

    Args:
        head_size: Features of a query and of a key, even.
        num_outputs: Number of classes C, at least 1.

    Raises:
        ConfigError: The task has no classes.
    """

    targets: ClassVar[tuple[str, ...]] = ("spans",)

    @validated(Rule("head_size % 2 == 0", key="head_size", problem="must be even"))
    def __init__(self, head_size: Count, num_outputs: int | None = None) -> None:
        super().__init__()
        if num_outputs is None:
            problem = "needs a task that knows its classes"
            raise ConfigError(format_error("_target_", problem, "Use task=span_classification"))
        self.head_size = head_size
        self.in_features = 2 * head_size
        self.num_outputs = num_outputs
        self.boundaries = nn.Linear(self.in_features, 2 * num_outputs)
        nn.init.constant_(self.boundaries.bias, _START / 2)

    def scores(self, output: Tensor) -> Tensor:
        """Return the scores of all spans (B, C, T, T) of features (B, T, 2 * head_size), at least float32.

        They are 0 where the last token is before the first one: no target limits these scores, and an artifact, whose
        outputs are compared with the model's, must not be judged by them.
        """
        return self._all_scores(output).triu()

    def _all_scores(self, output: Tensor) -> Tensor:
        features = promote_to_float32(output)
        query, key = (rotate(part) for part in features.chunk(2, dim=-1))
        weight, bias = self.boundaries.weight.to(features.dtype), self.boundaries.bias.to(features.dtype)
        # Contiguous, so that the scores are, too.
        first, last = F.linear(features, weight, bias).transpose(1, 2).contiguous().chunk(2, dim=1)
        products = query @ key.transpose(1, 2) / self.head_size**0.5
        scores: Tensor = products[:, None] + first[..., None] + last[:, :, None]
        return scores

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the samples and classes: shape (), float32 (float64 for a float64 output)."""
        return self.row_terms(output, target).sum()

    def row_terms(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the terms of the sum: (B, C), of features (B, T, 2 * head_size) and targets (B, T, M).

        Raises:
            ValueError: The output does not have features for each token of the target.
        """
        if output.ndim != 3 or target.ndim != 3 or output.shape != (*target.shape[:2], self.in_features):
            shapes = f"an output {tuple(output.shape)} and targets {tuple(target.shape)}"
            raise ValueError(f"{shapes} do not fit: they must be (B, T, {self.in_features}) and (B, T, M)")
        return span_terms(self._all_scores(output), target)

    def num_targets(self, target: Tensor) -> Tensor:
        """Count the terms, a sample and a class each: int64, shape ()."""
        return count_tensor(target, len(target) * self.num_outputs)

    def check(self, target: Tensor) -> None:
        """Raise RowError unless `target` contains only spans of these classes."""
        check_spans(target, self.num_outputs)


def rotate(vectors: Tensor) -> Tensor:
    """Turn the pair (d, d + D / 2) of each vector of (B, T, D) by the angle t * 10000 ** (-2 d / D) at position t."""
    half = vectors.shape[-1] // 2
    places = torch.arange(vectors.shape[1], device=vectors.device, dtype=vectors.dtype)
    exponents = torch.arange(half, device=vectors.device, dtype=vectors.dtype) / half
    angles = places[:, None] * _ROTARY_BASE**-exponents
    cosine, sine = angles.cos(), angles.sin()
    first, second = vectors.chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1)


def span_terms(scores: Tensor, target: Tensor) -> Tensor:
    """Return the loss of each sample and class, (B, C), of scores (B, C, T, T) and a target (B, T, M)."""
    num_classes = scores.shape[1]
    spans = span_cells(target, num_classes)
    # One more cell, in which the entries that are no spans have no effect.
    num_cells = scores[0].numel() if len(scores) else 0
    places = spans.cells.masked_fill(~spans.exist, num_cells)
    is_span = scores.new_zeros((len(scores), num_cells + 1), dtype=torch.bool).scatter(1, places, True)[:, :-1]
    is_other = possible_spans(target)[:, None] & ~is_span.view(scores.shape)
    terms: Tensor = _SpanTerms.apply(scores, is_other, spans)  # type: ignore[no-untyped-call]
    return terms


class _SpanTerms(torch.autograd.Function):
    """The sum of both logarithms of each sample and class.

    The forward pass makes the gradient, too, from the powers that it sums: automatic differentiation would need three
    times the memory.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, is_other: Tensor, spans: SpanCells) -> Tensor:
        num_classes, zero = scores.shape[1], scores.new_zeros(())
        # Finite, so that a class without a span has a gradient, and the gradient is 0.
        low = torch.finfo(scores.dtype).min / 4
        powers = scores.masked_fill(~is_other, low).flatten(2)
        top = powers.amax(dim=2, keepdim=True)
        powers.sub_(top).exp_()
        others = torch.logaddexp(powers.sum(dim=2).log() + top[..., 0], zero)
        is_class = spans.classes[:, None] == torch.arange(num_classes, device=scores.device)[:, None]
        opposite = -scores.flatten(1).gather(1, spans.cells)
        own = opposite[:, None].masked_fill(~(is_class & spans.exist[:, None]), low).logsumexp(dim=2)
        own = torch.logaddexp(own, zero)
        if ctx.needs_input_grad[0]:
            powers.mul_((top[..., 0] - others).exp_()[..., None])
            shares = (opposite - own.gather(1, spans.classes)).exp_().masked_fill_(~spans.exist, 0)
            powers = powers.flatten(1).scatter_add_(1, spans.cells, -shares)
            ctx.save_for_backward(powers.view(scores.shape))
        return others + own

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * scale[..., None, None], None, None
