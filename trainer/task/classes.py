"""What the tasks with labels share: their order, their counts, their indices."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from trainer.errors import DataError, RowError, explain, nearest


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
            raise DataError(explain(role, problem, value=list(counts)))
        self._take(sorted(counts), [counts[label] for label in sorted(counts)])

    def index(self, label: str, position: int, role: str = "label") -> int:
        """The class of a label; `position` is its row's, for a message.

        Raises:
            RowError: It was never seen in training.
        """
        if label not in self._indices:
            problem = "was never seen in training"
            raise RowError(position, role, explain(role, problem, nearest(label, self.labels), value=label))
        return self._indices[label]

    def facts(self) -> dict[str, Any]:
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
