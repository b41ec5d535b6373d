"""What the tasks with labels share: their order, their counts, their indices."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.errors import DataError, RowError, did_you_mean, format_error

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

_SHOWN = 20
"""Classes that are counted one by one; of more the largest and the smallest."""


class Classes:
    """The labels of the training split, sorted, and how often each occurs there.

    Attributes:
        labels: Their names; the index of a label is its class.
        counts: Training targets of each.
    """

    def __init__(self) -> None:
        self.labels: list[str] = []
        self.counts: list[int] = []
        self._indices: dict[str, int] = {}

    def learn(self, labels: Iterable[str], *, at_least: int, role: str = "label") -> None:
        """Takes the labels from the training targets.

        Raises:
            DataError: There are fewer than `at_least`.
        """
        counts = Counter(labels)
        if len(counts) < at_least:
            problem = f"needs at least {at_least} different {'label' if at_least == 1 else 'labels'} in training"
            raise DataError(format_error(role, problem, value=list(counts)))
        self._take(sorted(counts), [counts[label] for label in sorted(counts)])

    def indices(self, rows: Sequence[Sequence[str]], role: str = "label") -> list[list[int]]:
        """The classes of the labels of each row.

        Raises:
            RowError: Labels were never seen in training; all of these rows are named.
        """
        unknown: dict[str, int] = {}
        for position, labels in enumerate(rows):
            for label in labels:
                if label not in self._indices:
                    unknown.setdefault(label, position)
        if unknown:
            (label, position), *others = unknown.items()
            more = f", nor were {', '.join(repr(other) for other, _ in others[:_SHOWN])}" if others else ""
            problem = f"was never seen in training{more}"
            raise RowError(position, role, format_error(role, problem, did_you_mean(label, self.labels), value=label))
        return [[self._indices[label] for label in labels] for labels in rows]

    def tell(self, encoded: Mapping[str, Dataset], column: str) -> None:
        """Logs how many targets of each split each class has, the largest first.

        Args:
            encoded: The splits.
            column: Of the classes, one or a list in a row.
        """
        for split, rows in encoded.items():
            counts = np.zeros(len(self.labels), dtype=np.int64)
            for batch in rows.with_format("arrow").select_columns(column).iter(10_000):
                values = batch[column].combine_chunks()
                classes = values.flatten() if hasattr(values, "value_lengths") else values
                counts += np.bincount(classes.to_numpy(zero_copy_only=False), minlength=len(counts))
            order = np.argsort(-counts, kind="stable")
            told = [f"{self.labels[number]} {counts[number]}" for number in order]
            if len(told) > _SHOWN:
                told = [*told[: _SHOWN // 2], "...", *told[-_SHOWN // 2 :]]
            logger.info("%s: targets of %d classes: %s", split, len(self.labels), ", ".join(told))

    def info_fields(self) -> dict[str, Any]:
        return {"num_outputs": len(self.labels), "class_counts": self.counts}

    def artifact_files(self) -> dict[str, str]:
        return {"labels.json": json.dumps(self.labels, ensure_ascii=False, indent=1) + "\n"}

    def state_dict(self) -> dict[str, Any]:
        return {"labels": self.labels, "class_counts": self.counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._take(list(state["labels"]), list(state["class_counts"]))

    def _take(self, labels: list[str], counts: list[int]) -> None:
        self.labels, self.counts = labels, counts
        self._indices = {label: number for number, label in enumerate(labels)}
