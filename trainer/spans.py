"""Spans of tokens, each with a class: how a batch stores them, and how scores of spans are compared with them.

A span is a first token, a last token and one of C classes; spans may overlap, and be in each other. The target of a
batch is int64 (B, T, M): for each token, the spans that start there, each as `last * C + class`. -1 is no span, and
-100 marks a token at which no span may start or end, such as a special token or padding. So a target needs T * M
numbers, where the scores need C * T * T.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

NO_SPAN: Final = -1
NO_BOUNDARY: Final = -100
"""The target of a token at which no span may start or end."""


class SpanCells(NamedTuple):
    """The spans of a target, with entries that are no spans, so that nothing waits for the device.

    Attributes:
        cells: The position of each span in scores (C, T, T) that are flattened: int64 (B, N); 0 for no span.
        classes: The class of each span: int64 (B, N).
        exist: True for a span: bool (B, N).
    """

    cells: Tensor
    classes: Tensor
    exist: Tensor


def pack_spans(
    spans: Sequence[np.ndarray], boundaries: Sequence[np.ndarray], *, width: int, num_classes: int
) -> Tensor:
    """Return the target of B samples: int64 (B, width, M), with M as small as possible, at least 1.

    Args:
        spans: First token, last token and class of each span of a sample: (N, 3).
        boundaries: True for each token of a sample at which a span may start or end: bool (T,).
        width: The number of tokens of a row.
        num_classes: C.
    """
    starts = [each[:, 0] for each in spans]
    depth = max((int(np.bincount(own).max()) for own in starts if len(own)), default=1)
    target = np.full((len(spans), width, depth), NO_BOUNDARY, dtype=np.int64)
    for row, own, may_bound in zip(target, spans, boundaries, strict=True):
        row[: len(may_bound)][may_bound] = NO_SPAN
        used = np.zeros(width, dtype=np.int64)
        for first, last, index in own.tolist():
            row[first, used[first]] = last * num_classes + index
            used[first] += 1
    return torch.from_numpy(target)


def span_cells(target: Tensor, num_classes: int) -> SpanCells:
    """Return the spans of a target (B, T, M); N is T * M."""
    _, width, depth = target.shape
    codes = target.flatten(1)
    first = torch.arange(codes.shape[1], device=target.device) // depth
    exist = codes >= 0
    last, classes = codes.div(num_classes, rounding_mode="floor"), codes.remainder(num_classes)
    cells = (classes * width + first) * width + last
    return SpanCells(cells.masked_fill(~exist, 0), classes, exist)


def possible_spans(target: Tensor) -> Tensor:
    """Return True for each first and last token that a span may have: bool (B, T, T), of a target (B, T, M)."""
    may_bound = (target != NO_BOUNDARY).any(dim=2)
    return (may_bound[:, :, None] & may_bound[:, None, :]).triu()


def count_spans(scores: Tensor, target: Tensor) -> Tensor:
    """Count the matched, predicted and actual spans of each class, without a host sync: int64 (3, B, C).

    A span is predicted if its score is above 0.

    Args:
        scores: The scores of all spans (B, C, T, T).
        target: The target (B, T, M).
    """
    num_classes = scores.shape[1]
    predicted = (scores > 0) & possible_spans(target)[:, None]
    spans = span_cells(target, num_classes)
    matched = predicted.flatten(1).gather(1, spans.cells) & spans.exist
    is_class = spans.classes[:, None] == torch.arange(num_classes, device=target.device)[:, None]
    counts = [(is_class & each[:, None]).sum(dim=2) for each in (matched, spans.exist)]
    return torch.stack([counts[0], predicted.sum(dim=(2, 3)), counts[1]])


def list_spans(predicted: Tensor) -> list[tuple[int, int, int]]:
    """Return first token, last token and class of each True in (C, T, T), in the order of the text."""
    places = predicted.nonzero().tolist()
    return sorted((first, last, index) for index, first, last in places)


def list_targets(target: Tensor, num_classes: int) -> list[tuple[int, int, int]]:
    """Return first token, last token and class of each span of one sample's target (T, M), in the order of the text."""
    codes = [(first, code) for first, row in enumerate(target.tolist()) for code in row if code >= 0]
    return sorted((first, code // num_classes, code % num_classes) for first, code in codes)
