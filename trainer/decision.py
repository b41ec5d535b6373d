"""The decision rule of a trained classifier: thresholds and a temperature that are set after training.

A rule belongs to the weights of one checkpoint, which do not change. `trainer eval` sets it, usually by what is best on
the validation split, and keeps it in `decision.json` of the run folder; artifacts contain it in `task.json`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final

from trainer.documents import DECISION, read_document, unusable
from trainer.errors import show_value
from trainer.files.atomic_io import write_text
from trainer.layout import DECISION_RULE, Document
from trainer.shapes import DocumentError, check_seal, to_sealed_json

_REMEDY: Final = "Delete the file to go back to the rule of the task"


@dataclass(frozen=True)
class DecisionRule:
    """The rule that turns outputs into answers.

    Attributes:
        thresholds: A label is predicted if its probability is above this value, in [0, 1). Of two classes, only one is
            here: the other class is predicted if the probability is not above its threshold. Without thresholds, a
            task does what it does after training.
        temperature: Logits are divided by this value, or by the value of each label, before they become
            probabilities; None for 1 (Guo et al. 2017, "On Calibration of Modern Neural Networks").
    """

    thresholds: Mapping[str, float] = field(default_factory=dict)
    temperature: float | Mapping[str, float] | None = None

    def __bool__(self) -> bool:
        return bool(self.thresholds) or self.temperature is not None

    def document(self) -> Document:
        """Return the rule as JSON."""
        return {"thresholds": self.thresholds, "temperature": self.temperature}

    def describe(self) -> str:
        """Return the parts of the rule, `thresholds and temperatures`."""
        temperature = "temperatures" if isinstance(self.temperature, Mapping) else "a temperature"
        parts = {"thresholds": bool(self.thresholds), temperature: self.temperature is not None}
        return " and ".join(name for name, is_set in parts.items() if is_set)


def parse_rule(document: Mapping[str, Any], labels: Sequence[str], *, several: bool) -> DecisionRule:
    """Return a rule for the labels of a task.

    Args:
        document: The result of `DecisionRule.document`, with the shape that `trainer.documents` declares.
        labels: The labels of the task.
        several: A sample may have several labels.

    Raises:
        DocumentError: The rule belongs to another task, or a number is out of range.
    """
    thresholds, temperature = document["thresholds"], document["temperature"]
    by_label = temperature if isinstance(temperature, Mapping) else None
    expected = set(labels) if several else {*thresholds} & {*labels}
    if thresholds and ({*thresholds} != expected or not (several or (len(labels) == 2 and len(thresholds) == 1))):
        raise DocumentError(f"thresholds: must have {_describe(labels, several)}, got {show_value([*thresholds])}")
    if temperature is not None and (several != (by_label is not None) or (by_label and {*by_label} != {*labels})):
        needed = f"have {_describe(labels, several)}" if several else "be one number"
        got = temperature if by_label is None else [*by_label]
        raise DocumentError(f"temperature: must {needed}, got {show_value(got)}")
    for label, value in thresholds.items():
        if not 0 <= value < 1:
            raise DocumentError(f"thresholds[{show_value(label)}]: must be at least 0 and less than 1, got {value}")
    temperatures = by_label if by_label is not None else {} if temperature is None else {"": temperature}
    for label, value in temperatures.items():
        if not (isfinite(value) and value > 0):
            field = f"temperature[{show_value(label)}]" if label else "temperature"
            raise DocumentError(f"{field}: must be finite and greater than 0, got {value}")
    return DecisionRule(thresholds, temperature)


def _describe(labels: Sequence[str], several: bool) -> str:
    return f"the labels {show_value(list(labels))}" if several else "one of two classes"


def write_rule(run: Path, fields: Document) -> Path:
    """Write the rule of a run, with the origin of the weights that it belongs to."""
    file = run / DECISION_RULE
    write_text(file, to_sealed_json(fields, indent=1, ensure_ascii=False) + "\n")
    return file


def read_rule(run: Path) -> Document | None:
    """Return the document of the rule of a run; None if the run has none.

    Raises:
        CheckpointError: It is damaged.
    """
    file = run / DECISION_RULE
    if not file.exists() and not file.is_symlink():
        return None
    document: Document = read_document(file, DECISION, _REMEDY, finite=True)
    try:
        check_seal(document)
    except DocumentError as error:
        raise unusable(file, error, _REMEDY) from error
    return document


def rule_of(run: Path, document: Document, labels: Sequence[str], *, several: bool) -> DecisionRule:
    """Return the rule in a document of `read_rule`.

    Raises:
        CheckpointError: It does not fit the task.
    """
    try:
        return parse_rule(document, labels, several=several)
    except DocumentError as error:
        raise unusable(run / DECISION_RULE, error, _REMEDY) from error
