"""Metrics of classes: tokens, multiple labels, and tagged words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassF1Score, MultilabelExactMatch, MultilabelF1Score
from torchmetrics.wrappers.abstract import WrapperMetric

from trainer.spans import count_spans
from trainer.task.entities import Scheme, count_entities, read_scheme
from trainer.task.regression_metrics import KeptRows, average_ranks

_MAX_LOGITS = 2**22
"""Logits to normalize at a time, so that an evaluation needs no second tensor of the size of its logits."""

_MAX_LABELS = 256
"""Labels to sort at a time."""

Prepare = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Turns the output of a model and its target into what a metric reads."""


class TokenAccuracy(Metric):
    """Fraction of targets whose class has the largest score, or one of the `k` largest.

    Args:
        ignore_index: The target to leave out.
        k: Number of largest scores.
    """

    higher_is_better = True
    full_state_update = False

    num_right: Tensor
    num_targets: Tensor

    def __init__(self, ignore_index: int = -100, k: int = 1) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.k = k
        for name in ("num_right", "num_targets"):
            self.add_state(name, default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add scores (..., C) and classes (...,)."""
        kept = target != self.ignore_index
        right = output.argmax(dim=-1) == target
        if self.k > 1:
            right = (output.topk(self.k, dim=-1).indices == target[..., None]).any(dim=-1)
        self.num_right += (kept & right).sum()
        self.num_targets += kept.sum()

    def compute(self) -> Tensor:
        return self.num_right / self.num_targets


class Perplexity(Metric):
    """exp of the mean cross entropy of the targets.

    Args:
        ignore_index: The target to leave out.
    """

    higher_is_better = False
    full_state_update = False

    cross_entropy: Tensor
    num_targets: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("cross_entropy", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_targets", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add logits or log-probabilities (..., C) and classes (...,)."""
        logits, target = output.flatten(0, -2), target.flatten()
        rows = max(1, _MAX_LOGITS // logits.shape[1])
        for start in range(0, len(target), rows):
            piece, classes = logits[start : start + rows].float(), target[start : start + rows]
            self.cross_entropy += F.cross_entropy(piece, classes, ignore_index=self.ignore_index, reduction="sum")
        self.num_targets += (target != self.ignore_index).sum()

    def compute(self) -> Tensor:
        return (self.cross_entropy / self.num_targets).exp()


def language_metrics() -> MetricCollection:
    """Return perplexity and accuracy over the tokens that have a target."""
    return MetricCollection({"perplexity": Perplexity(), "accuracy": TokenAccuracy()})


def multilabel_metrics(num_labels: int, decide: Callable[[Tensor], Tensor]) -> MetricCollection:
    """Return micro and macro F1, mean average precision, and the fraction of samples with all labels right.

    Args:
        num_labels: C, at least 2.
        decide: Returns True for each predicted label, in the shape of the logits (B, C).
    """
    micro, macro = (
        MultilabelF1Score(num_labels, average=average, validate_args=False) for average in ("micro", "macro")
    )
    exact, prepare = MultilabelExactMatch(num_labels, validate_args=False), partial(prepare_decisions, decide)
    return MetricCollection(
        {
            "micro_f1": PreparedMetric(micro, prepare),
            "macro_f1": PreparedMetric(macro, prepare),
            "mean_average_precision": RankingScore(average_precisions),
            "exact_match": PreparedMetric(exact, prepare),
        }
    )


def decide_labels(logits: Tensor, threshold: float | Tensor) -> Tensor:
    """Return True for each label whose probability is above its threshold, in the shape of the logits (B, C)."""
    limit = threshold if isinstance(threshold, float) else threshold.to(logits.device)
    return logits.float().sigmoid() > limit


def decide_between_two(logits: Tensor, threshold: float, positive: int) -> Tensor:
    """Return logits (B, 2) as scores of 0 and 1: the class `positive` has 1 if its probability is above `threshold`."""
    is_positive = logits.float().softmax(dim=-1)[:, positive] > threshold
    scores = torch.stack([~is_positive, is_positive], dim=-1).float()
    return scores if positive else scores.flip(-1)


class PreparedMetric(WrapperMetric):
    """Apply a metric to prepared outputs and targets.

    It also keeps a collection from merging two metrics whose states are equal after the first batch by chance.

    Args:
        metric: The metric.
        prepare: Turns the outputs of a model and its targets into what the metric reads.
    """

    def __init__(self, metric: Metric, prepare: Prepare) -> None:
        super().__init__()
        self.metric = metric
        self.prepare = prepare

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]  # of the metric, not of this class
        return self.metric.higher_is_better

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add outputs and targets of the task."""
        self.metric.update(*self.prepare(output, target))

    def compute(self) -> Tensor:
        value: Tensor = self.metric.compute()
        return value

    def reset(self) -> None:
        super().reset()
        self.metric.reset()


def prepare_decisions(decide: Callable[[Tensor], Tensor], output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Turn logits (B, C) into decisions, and targets into integers: classes (B,), or labels of 0 and 1 (B, C).

    torchmetrics takes a batch whose logits all happen to be in [0, 1] for probabilities, so it gets only decisions.
    """
    decisions = decide(output)
    return decisions.int() if decisions.dtype == torch.bool else decisions, target.long()


class Outputs(KeptRows):
    """All outputs and targets of a split, in the order of the data; its value is the number of rows.

    Attributes:
        collected: Outputs (N, C) in float32 and targets on the CPU, once the value has been computed.
    """

    collected: tuple[Tensor, Tensor]

    def compute(self) -> Tensor:
        self.collected = self.rows()
        return torch.tensor(len(self.collected[0]))


class RankingScore(KeptRows):
    """A statistic of the order of the scores of each label, averaged over the labels.

    A label without a value, such as one without a positive, is left out of the mean, which is NaN if no label remains.

    Args:
        statistic: Maps scores and labels of 0 and 1, both (N, C), to one number per label, (C,), or NaN.
    """

    higher_is_better = True

    def __init__(self, statistic: Callable[[Tensor, Tensor], Tensor], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.statistic = statistic

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add scores and labels of 0 and 1, both (B, C)."""
        super().update(output, target.bool())

    def compute(self) -> Tensor:
        """Return the mean: shape (), float64."""
        output, target = self.rows()
        parts = [slice(start, start + _MAX_LABELS) for start in range(0, output.shape[1], _MAX_LABELS)]
        return torch.cat([self.statistic(output[:, part], target[:, part]) for part in parts]).nanmean()


def average_precisions(scores: Tensor, target: Tensor) -> Tensor:
    """Return the average precision of each label, (N, C) to (C,), float64; NaN for a label without a positive.

    It is sum_n (R_n - R_(n-1)) P_n over the distinct scores as thresholds, from the highest: P and R are precision and
    recall of the samples at or above the n-th.

    Source: scikit-learn's `average_precision_score`; Zhu 2004, "Recall, precision and average precision".
    """
    order = scores.argsort(dim=0, descending=True)
    scores, positive = scores.gather(0, order), target.gather(0, order)
    places = torch.arange(len(scores))[:, None].expand_as(scores)
    # Equal scores are one threshold: each takes precision and recall at the last of them.
    is_last = torch.ones_like(positive)
    is_last[:-1] = scores[:-1] != scores[1:]
    last = places.masked_fill(~is_last, len(scores)).flip(0).cummin(0).values.flip(0)
    precision = positive.cumsum(0).gather(0, last).double() / (last + 1)
    return (precision * positive).sum(0) / positive.sum(0)


def roc_areas(scores: Tensor, target: Tensor) -> Tensor:
    """Return the area under the ROC curve of each label, (N, C) to (C,), float64; NaN for a label of one value.

    It is the share of the pairs of a positive and a negative in which the positive has the higher score; equal scores
    count half.

    Source: Mann and Whitney 1947; Hanley and McNeil 1982.
    """
    positives = target.sum(0).double()
    rank_sums = (average_ranks(scores) * target).sum(0)
    return (rank_sums - positives * (positives + 1) / 2) / (positives * (len(target) - positives))


class Counts(Metric):
    """The base of statistics of the right, the predicted and the actual targets of each class.

    Args:
        num_classes: C.
        statistic: Maps the three counts, each int64 (C,), to a number, shape ().
    """

    higher_is_better = True
    full_state_update = False

    counts: Tensor

    def __init__(self, num_classes: int, statistic: Callable[..., Tensor]) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.statistic = statistic
        self.add_state("counts", default=torch.zeros(3, num_classes, dtype=torch.int64), dist_reduce_fx="sum")

    def compute(self) -> Tensor:
        return self.statistic(*self.counts)


class EntityScore(Metric):
    """F1, precision or recall of entities over all types (micro-averaged), as `conlleval` and seqeval compute them.

    The score is 0 if its divisor is 0.

    Args:
        tags: The names of the C classes.
        score: The score to compute.
        ignore_index: The target at a position without a word to tag.
    """

    higher_is_better = True
    full_state_update = False

    counts: Tensor
    types: Tensor
    opens: Tensor
    closes: Tensor

    def __init__(
        self, tags: Sequence[str], score: Literal["f1", "precision", "recall"], ignore_index: int = -100
    ) -> None:
        super().__init__()
        self.score = score
        self.ignore_index = ignore_index
        for name, table in vars(read_scheme(tags)).items():
            self.register_buffer(name, table, persistent=False)
        self.add_state("counts", default=torch.zeros(3, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add scores (B, W, C) and classes (B, W)."""
        scheme = Scheme(self.types, self.opens, self.closes)
        self.counts += count_entities(output.argmax(dim=-1), target, scheme, self.ignore_index)

    def compute(self) -> Tensor:
        return _entity_score(self.score, *self.counts)


def _entity_score(
    score: Literal["f1", "precision", "recall"], matched: Tensor, predicted: Tensor, actual: Tensor
) -> Tensor:
    """Return a score of the entities of all types, given the counts of each type or of all."""
    matched, predicted, actual = (counts.sum().float() for counts in (matched, predicted, actual))
    divisor = {"f1": (predicted + actual) / 2, "precision": predicted, "recall": actual}[score]
    value: Tensor = matched / divisor.clamp(min=0.5)
    return value


class ClassCounts(Counts):
    """A statistic of how many targets of each class were predicted, how often it was predicted, and how often a target.

    Args:
        num_classes: C.
        statistic: Maps the three counts, each int64 (C,), to a number, shape ().
        ignore_index: The target at a position without a word to tag.
    """

    def __init__(self, num_classes: int, statistic: Callable[..., Tensor], ignore_index: int = -100) -> None:
        super().__init__(num_classes, statistic)
        self.ignore_index = ignore_index

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add scores (..., C) and classes (...,)."""
        target, predicted = target.flatten(), output.argmax(dim=-1).flatten()
        ignored = target == self.ignore_index
        # Count ignored words in a class of their own: selecting the others would wait for the device.
        target = target.masked_fill(ignored, self.num_classes)
        predicted = predicted.masked_fill(ignored, self.num_classes)
        right = target.where(target == predicted, self.num_classes)
        counts = [_count_classes(classes, self.num_classes + 1)[:-1] for classes in (right, predicted, target)]
        self.counts += torch.stack(counts)


class SpanCounts(Counts):
    """A statistic of how many spans of each class were predicted rightly, were predicted, and are in the text."""

    def update(self, output: Tensor, target: Tensor) -> None:
        """Add scores of spans (B, C, T, T) and a target (B, T, M) as `trainer.spans` describes it."""
        self.counts += count_spans(output, target).sum(dim=1)


def span_metrics(num_classes: int) -> MetricCollection:
    """Return F1, precision and recall of entities over all types, and F1 of the types; 0 if a divisor is 0."""
    scores: dict[Literal["f1", "precision", "recall"], str] = {
        "f1": "entity_f1",
        "precision": "entity_precision",
        "recall": "entity_recall",
    }
    metrics = {name: SpanCounts(num_classes, partial(_entity_score, score)) for score, name in scores.items()}
    return MetricCollection({**metrics, "macro_f1": SpanCounts(num_classes, f1_of_tags)})


class LabelCounts(Counts):
    """A statistic of how many rows with each label were predicted to have it, were predicted to, have it, and of rows.

    Args:
        num_labels: C.
        statistic: Maps the three counts, each int64 (C,), and the number of rows to a number, shape ().
    """

    num_rows: Tensor

    def __init__(self, num_labels: int, statistic: Callable[..., Tensor]) -> None:
        super().__init__(num_labels, statistic)
        self.add_state("num_rows", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, decisions: Tensor, target: Tensor) -> None:
        """Add decisions and labels of 0 and 1, both (B, C)."""
        predicted, actual = decisions.bool(), target.bool()
        self.counts += torch.stack([each.sum(dim=0) for each in (predicted & actual, predicted, actual)])
        self.num_rows += len(target)

    def compute(self) -> Tensor:
        return self.statistic(*self.counts, self.num_rows)


def f1_of_tags(right: Tensor, predicted: Tensor, actual: Tensor) -> Tensor:
    """Return the F1 of each class, averaged over the classes that occur in targets or predictions."""
    right, predicted, actual = right.float(), predicted.float(), actual.float()
    scores = right / ((predicted + actual) / 2).clamp(min=0.5)
    mean: Tensor = scores.sum() / ((predicted + actual) > 0).sum().clamp(min=1)
    return mean


class MacroF1(MulticlassF1Score):
    """F1 of each class, averaged over the classes that occur, with the value and the states of its base class.

    The base class counts pairs of classes: of 10,000 classes 800 MB, and with deterministic algorithms on CUDA so many
    for each sample.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, average="macro", validate_args=False)

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add scores (B, C) and classes (B,)."""
        assert self.num_classes is not None
        predicted = preds.argmax(dim=-1)
        wrong = (predicted != target).long()
        false_positive = _count_classes(predicted, self.num_classes, wrong)
        false_negative = _count_classes(target, self.num_classes, wrong)
        true_positive = _count_classes(target, self.num_classes, 1 - wrong)
        true_negative = len(target) - (true_positive + false_positive + false_negative)
        self._update_state(true_positive, false_positive, true_negative, false_negative)


def _count_classes(classes: Tensor, num_classes: int, weights: Tensor | None = None) -> Tensor:
    """Return the sum of the weights, or the number, of each class: int64 (C,), of classes (N,)."""
    # Not bincount, which waits for the device to learn the largest class.
    counts = torch.zeros(num_classes, dtype=torch.int64, device=classes.device)
    return counts.index_add(0, classes, torch.ones_like(classes) if weights is None else weights)
