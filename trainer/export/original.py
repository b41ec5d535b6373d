"""What artifacts are made of and proved equal to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn

from trainer.export.subject import Subject
from trainer.protocols import Batch, Task


@dataclass(frozen=True)
class Original:
    """A trained model and its data.

    Attributes:
        model: On the CPU in float32, in any mode; it stays as it is.
        task: Gives example inputs, their axes, metrics and files.
        evaluation: The evaluation split, padded, with targets; the same at each call.
        training: The given number of training samples, padded, which some formats measure ranges on.
        samples: A few rows of the evaluation split as the source gave them, at least one.
        architecture: What makes the model again, for formats that hold weights alone (JSON).
        provenance: Where the weights and the split come from (JSON); of no other original it is the same.
    """

    model: nn.Module
    task: Task
    evaluation: Callable[[], Iterable[Batch]]
    training: Callable[[int], Iterable[Batch]]
    samples: Sequence[Mapping[str, Any]]
    architecture: Mapping[str, Any]
    provenance: Mapping[str, Any]

    def subject(self, calibration: int, int8: Literal["dynamic", "static"] | None, scratch: Path) -> Subject:
        """What its formats are written from, with so many training samples to measure ranges on."""
        training = partial(self.training, calibration)
        return Subject(self.model, self.task, training, architecture=self.architecture, int8=int8, scratch=scratch)
