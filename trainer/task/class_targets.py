"""Target encoders for classes: one class per sample (`ClassTarget`) or any number of labels (`MultilabelTarget`)."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from trainer.decision import DecisionRule, parse_rule
from trainer.display import counted
from trainer.errors import DataError, RowError, did_you_mean, format_error
from trainer.files.mapped import MappedRows, as_array, read_chunks
from trainer.protocols import Prediction, StateDict
from trainer.shapes import to_json
from trainer.task.class_names import (
    are_all_in_brackets,
    boolean_spellings,
    warn_of_equal_names,
    warn_of_splits,
)
from trainer.task.supervised import TargetFields
from trainer.task.texts import row_lengths

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

logger = logging.getLogger(__name__)

_MAX_LISTED = 20
"""Log the counts of all classes up to this number, else only of the largest and the smallest."""

_DECIMALS = 6


class Classes:
    """The labels of the training split, sorted, and how often each occurs there.

    Attributes:
        labels: The names; the index of a label is its class.
        counts: Training targets of each label.
    """

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.counts: list[int] = []
        self._indices: dict[str, int] = {}

    def fit(self, labels: Iterable[str], *, at_least: int, role: str = "label") -> None:
        """Collect the labels of the training targets.

        Raises:
            DataError: There are fewer than `at_least` different labels, or all are lists that were written as texts.
        """
        counts = Counter(labels)
        if len(counts) < at_least:
            problem = f"needs at least {counted(at_least, 'different label')} in training"
            raise DataError(format_error(role, problem, value=list(counts)))
        if are_all_in_brackets(list(counts)):
            remedy = 'Write several labels as a JSON list, ["a", "b"], and one label without brackets'
            raise DataError(format_error(role, "looks like a list written as a text", remedy, value=min(counts)))
        self._set(sorted(counts), [counts[label] for label in sorted(counts)])

    def indices(self, rows: Sequence[Sequence[str]], role: str = "label") -> list[list[int]]:
        """Return the classes of the labels of each row.

        Raises:
            RowError: Labels do not occur in training; the error names all of them.
        """
        unseen = {label for labels in rows for label in labels} - self._indices.keys()
        indices = self._indices
        if spellings := boolean_spellings(self._indices, unseen):
            indices = self._indices | {label: self._indices[known] for label, known in spellings.items()}
        unknown: dict[str, int] = {}
        for position, labels in enumerate(rows):
            for label in labels:
                if label not in indices:
                    unknown.setdefault(label, position)
        if unknown:
            (label, position), *others = unknown.items()
            names = ", ".join(repr(other) for other, _ in others[:_MAX_LISTED])
            problem = "does not occur in training" + (f", nor do {names}" if others else "")
            raise RowError(position, role, format_error(role, problem, did_you_mean(label, self.labels), value=label))
        return [[indices[label] for label in labels] for labels in rows]

    def check(self, encoded: Mapping[str, MappedRows], column: str, role: str | None = None) -> list[str]:
        """Log how many targets of each class each split has, the largest class first; return warnings about the names.

        Args:
            encoded: The splits.
            column: The encoded column of classes, one or a list per row.
            role: The role of their column in the data; None if it is named like the encoded one.
        """
        for split, rows in encoded.items():
            counts = np.zeros(len(self.labels), dtype=np.int64)
            for batch in read_chunks(rows, column):
                values = batch[column].combine_chunks()
                classes = values.flatten() if hasattr(values, "value_lengths") else values
                counts += np.bincount(as_array(classes), minlength=len(counts))
            order = np.argsort(-counts, kind="stable")
            entries = [f"{self.labels[index]} {counts[index]}" for index in order]
            if len(entries) > _MAX_LISTED:
                entries = [*entries[: _MAX_LISTED // 2], "...", *entries[-_MAX_LISTED // 2 :]]
            logger.info("%s: targets of %d classes: %s", split, len(self.labels), ", ".join(entries))
        return [
            *warn_of_equal_names(self.labels, role or column),
            *warn_of_splits(self.labels, role or column),
        ]

    def info_fields(self) -> TargetFields:
        return {"num_outputs": len(self.labels), "class_counts": self.counts, "class_names": self.labels}

    def artifact_files(self) -> dict[str, str]:
        return {"labels.json": to_json(self.labels, ensure_ascii=False, indent=1) + "\n"}

    def state_dict(self) -> StateDict:
        return {"labels": self.labels, "class_counts": self.counts}

    def load_state_dict(self, state: StateDict) -> None:
        self._set(list(state["labels"]), list(state["class_counts"]))

    def _set(self, labels: list[str], counts: list[int]) -> None:
        self.labels, self.counts = labels, counts
        self._indices = {label: index for index, label in enumerate(labels)}


class ClassTarget:
    """Encodes one of K classes per sample.

    Attributes:
        classes: The labels of the training split.
        decision_rule: The rule that turns outputs into classes; without one, the most likely class is predicted.
    """

    role: ClassVar[str] = "label"
    threshold: ClassVar[float] = 0.5

    def __init__(self) -> None:
        self.classes = Classes()
        self.decision_rule = DecisionRule()

    def fit(self, train: Dataset) -> None:
        """Collect the labels and their counts from the column `label` of the training split.

        Raises:
            DataError: There are fewer than two labels.
        """
        batches = train.select_columns(self.role).iter(10_000)
        self.classes.fit((label for batch in batches for label in batch[self.role]), at_least=2)

    def encode(self, labels: Sequence[str]) -> list[int]:
        """Return the class of each row.

        Raises:
            RowError: Labels do not occur in training.
        """
        return [index for (index,) in self.classes.indices([(label,) for label in labels], self.role)]

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log how many samples of each class each split has; return warnings about the names of the classes."""
        return self.classes.check(encoded, self.role)

    @staticmethod
    def to_tensor(classes: Sequence[int]) -> Tensor:
        """Return the target of encoded rows, int64 (B,)."""
        return torch.from_numpy(np.array(classes, dtype=np.int64))

    def info_fields(self) -> TargetFields:
        return {**self.classes.info_fields(), "num_train": sum(self.classes.counts)}

    def metrics(self) -> MetricCollection:
        """Return accuracy, and F1 averaged over the classes so that rare ones count as much as frequent ones."""
        from torchmetrics import MetricCollection
        from torchmetrics.classification import MulticlassAccuracy

        from trainer.task.classification_metrics import MacroF1, PreparedMetric, prepare_decisions

        count = len(self.classes.labels)
        accuracy, macro_f1 = MulticlassAccuracy(count, average="micro"), MacroF1(count)
        if self.decision_rule.thresholds:
            prepare = partial(prepare_decisions, self.decide)
            return MetricCollection(
                {"accuracy": PreparedMetric(accuracy, prepare), "macro_f1": PreparedMetric(macro_f1, prepare)}
            )
        return MetricCollection({"accuracy": accuracy, "macro_f1": macro_f1})

    def calibrated(self, output: Tensor) -> Tensor:
        temperature = self.decision_rule.temperature
        assert not isinstance(temperature, Mapping), "the rule was checked"
        return output if temperature is None else output.float() / temperature

    def decide(self, output: Tensor) -> Tensor:
        """Return scores (B, C), the largest of a row for its answer: the logits, or 0 and 1 by the threshold."""
        from trainer.task.classification_metrics import decide_between_two

        for label, threshold in self.decision_rule.thresholds.items():
            return decide_between_two(output, threshold, self.classes.labels.index(label))
        return output

    def predictions(self, output: Tensor, top: int) -> list[Prediction]:
        """Return `label` and `probability` for each row of logits (B, C), and the `probabilities` of the `top` ones."""
        labels = self.classes.labels
        if not self.decision_rule:
            return class_predictions(output, labels, top)
        # A temperature may make two probabilities equal, so the logits give the order.
        order = output.float().argsort(dim=-1, descending=True, stable=True)
        probabilities = output.float().softmax(dim=-1)
        for label, threshold in self.decision_rule.thresholds.items():
            positive = labels.index(label)
            chosen = torch.where(probabilities[:, positive] > threshold, positive, 1 - positive)
            order = torch.stack([chosen, 1 - chosen], dim=-1)
        order = order[:, :top]
        return [
            best_prediction(
                "label",
                [(labels[index], round_probability(value)) for index, value in zip(indices, values, strict=True)],
            )
            for indices, values in zip(order.tolist(), probabilities.gather(-1, order).tolist(), strict=True)
        ]

    def artifact_files(self) -> dict[str, str]:
        return {**self.classes.artifact_files(), **_rule_files(self.decision_rule)}

    def state_dict(self) -> StateDict:
        return {**self.classes.state_dict(), **_rule_state(self.decision_rule)}

    def load_state_dict(self, state: StateDict) -> None:
        self.classes.load_state_dict(state)
        if "decision" in state:
            self.decision_rule = parse_rule(state["decision"], self.classes.labels, several=False)


class MultilabelTarget:
    """Encodes the labels of a sample, out of C labels: none, one or several.

    Args:
        threshold: A label is predicted if its probability is above this value, in (0, 1); also for F1 and exact match.

    Attributes:
        classes: The labels of the training split.
        num_train: Training samples.
        decision_rule: Thresholds and temperatures of the labels, if they were found after training.
    """

    role: ClassVar[str] = "labels"

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.decision_rule = DecisionRule()
        self.classes = Classes()
        self.num_train = 0

    def fit(self, train: Dataset) -> None:
        """Collect the labels and their positives from the column `labels` of the training split.

        Raises:
            DataError: There are fewer than two labels, or every row has all of them.
        """
        rows = (labels for batch in train.select_columns(self.role).iter(10_000) for labels in batch[self.role])
        self.classes.fit((label for labels in rows for label in set(labels)), at_least=2, role=self.role)
        self.num_train = len(train)
        if min(self.classes.counts) == self.num_train:
            problem = "every row of training has all labels, so there is nothing to learn"
            raise DataError(
                format_error(self.role, problem, "Name the column of the labels", value=self.classes.labels)
            )

    def encode(self, rows: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Return the classes of each row, ascending, int32.

        Raises:
            RowError: Labels do not occur in training.
        """
        return [np.array(sorted(set(row)), dtype=np.int32) for row in self.classes.indices(rows, self.role)]

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log how many labels the samples have and how many samples each label has; return warnings."""
        for split, rows in encoded.items():
            counts = row_lengths(rows, self.role)
            message = "%s: %d labels, %.2f per text, %.1f%% of texts without a label"
            logger.info(message, split, len(self.classes.labels), counts.mean(), 100 * (counts == 0).mean())
        classes = zip(self.classes.labels, self.classes.counts, strict=True)
        everywhere = [label for label, count in classes if count == self.num_train]
        warnings = [f"labels: every row of training has the label {label!r}: leave it out" for label in everywhere]
        return [*warnings, *self.classes.check(encoded, self.role)]

    def to_tensor(self, rows: Sequence[np.ndarray]) -> Tensor:
        """Return the target of encoded rows, 0 or 1, float32 (B, C)."""
        target = np.zeros((len(rows), len(self.classes.labels)), dtype=np.float32)
        for row, indices in enumerate(rows):
            target[row, indices] = 1.0
        return torch.from_numpy(target)

    def info_fields(self) -> TargetFields:
        """Return the sizes; `class_counts` are the positives of each label in training."""
        return {**self.classes.info_fields(), "num_train": self.num_train}

    def metrics(self) -> MetricCollection:
        """Return micro and macro F1 and the rate of exact matches at the thresholds, and the mean average precision."""
        from trainer.task.classification_metrics import multilabel_metrics

        return multilabel_metrics(len(self.classes.labels), self.decide)

    def decide(self, output: Tensor) -> Tensor:
        """Return True for each label whose probability is above its threshold, in the shape of the logits (B, C)."""
        from trainer.task.classification_metrics import decide_labels

        return decide_labels(output, self._limits)

    def calibrated(self, output: Tensor) -> Tensor:
        by_label = self.decision_rule.temperature
        if not isinstance(by_label, Mapping):
            return output
        return output.float() / torch.tensor([by_label[label] for label in self.classes.labels], device=output.device)

    @property
    def _limits(self) -> float | Tensor:
        """The threshold of all labels, or of each (C,)."""
        thresholds = self.decision_rule.thresholds
        return torch.tensor([thresholds[label] for label in self.classes.labels]) if thresholds else self.threshold

    def predictions(self, output: Tensor, top: int) -> list[Prediction]:
        """Return the `labels` above their thresholds for each row of logits (B, C), the most likely first.

        `probabilities` contains these labels and at least the `top` most likely ones.
        """
        probabilities, order = output.float().sigmoid().sort(dim=-1, descending=True, stable=True)
        limits = self._limits
        if not isinstance(limits, float):
            limits = limits.to(output.device)[order]
        predicted = probabilities > limits
        places = torch.arange(1, order.shape[1] + 1, device=order.device)
        ends = (predicted * places).amax(dim=-1).clamp(min=top).tolist()
        predictions: list[Prediction] = []
        for values, indices, chosen, end in zip(
            probabilities.tolist(), order.tolist(), predicted.tolist(), ends, strict=True
        ):
            names = [self.classes.labels[index] for index in indices[:end]]
            by_label = {
                name: round_probability(values[place])
                for place, name in enumerate(names)
                if chosen[place] or place < top
            }
            labels = [name for place, name in enumerate(names) if chosen[place]]
            predictions.append({"labels": labels, "probabilities": by_label})
        return predictions

    def artifact_files(self) -> dict[str, str]:
        """Return `labels.json`, and `threshold.json`: a label is predicted if sigmoid(logit) is above it.

        With a decision rule, `threshold.json` and `temperature.json` have a value for each label.
        """
        files = {**self.classes.artifact_files(), "threshold.json": to_json(self.threshold) + "\n"}
        return files | _rule_files(self.decision_rule)

    def state_dict(self) -> StateDict:
        return {**self.classes.state_dict(), "num_train": self.num_train, **_rule_state(self.decision_rule)}

    def load_state_dict(self, state: StateDict) -> None:
        self.classes.load_state_dict(state)
        self.num_train = int(state["num_train"])
        if "decision" in state:
            self.decision_rule = parse_rule(state["decision"], self.classes.labels, several=True)


def _rule_state(rule: DecisionRule) -> StateDict:
    return {"decision": rule.document()} if rule else {}


def _rule_files(rule: DecisionRule) -> dict[str, str]:
    """Return `threshold.json`, thresholds by label, and `temperature.json`, if the rule has them."""
    parts = {"threshold.json": rule.thresholds or None, "temperature.json": rule.temperature}
    return {
        name: to_json(part, ensure_ascii=False, indent=1) + "\n" for name, part in parts.items() if part is not None
    }


def round_probability(value: float) -> float:
    """Round a probability to six decimals: float32 has no more."""
    return round(value, _DECIMALS)


def most_likely(output: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Return the `count` most likely classes of each row of logits (N, C) and their probabilities.

    Of equal probabilities the lower class comes first.
    """
    probabilities, order = output.float().softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    return [
        [(index, round_probability(probability)) for index, probability in zip(indices, values, strict=True)]
        for indices, values in zip(order[:, :count].tolist(), probabilities[:, :count].tolist(), strict=True)
    ]


def class_predictions(output: Tensor, labels: Sequence[str], top: int) -> list[Prediction]:
    """Return `label` and `probability` for each row of logits (B, C), and `probabilities` if `top` is above 1."""
    return [
        best_prediction("label", [(labels[index], probability) for index, probability in best])
        for best in most_likely(output, top)
    ]


def best_prediction(key: str, best: Sequence[tuple[str, float]]) -> Prediction:
    """Return the first name as `key` with its `probability`, and all `probabilities` if there are several names."""
    name, probability = best[0]
    return {key: name, "probability": probability} | ({"probabilities": dict(best)} if len(best) > 1 else {})
