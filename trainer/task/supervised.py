"""What the tasks share in which a sample is one input and one target: the two halves put together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from trainer.protocols import Batch, Batching, Columns, TaskInfo
from trainer.task.fingerprint import fingerprint
from trainer.task.images import Images
from trainer.task.label import Label
from trainer.task.labels import Labels
from trainer.task.table import Table
from trainer.task.texts import Texts
from trainer.task.values import Values

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.sample_rng import SampleRng

Reader = Texts | Table | Images
"""What makes the inputs of a sample."""

Wanted = Label | Labels | Values
"""What is asked for: it makes targets, metrics and answers."""


class Supervised:
    """The methods of `Task`, each by the half that it concerns.

    Args:
        version: The task's name with the version of its encoding.
        roles: The columns that an input is made of; where there are several, `encode_inputs` is the task's own.
        reader: What makes inputs of them.
        wanted: What makes targets, metrics and answers.
    """

    def __init__(self, version: str, roles: tuple[str, ...], reader: Reader, wanted: Wanted) -> None:
        self._version = version
        self._roles = roles
        self._reader = reader
        self._wanted = wanted

    def columns(self) -> tuple[str, ...]:
        return (*self._roles, self._wanted.role)

    def input_columns(self) -> tuple[str, ...]:
        return self._roles

    def fingerprint(self) -> str:
        return fingerprint(self._version, *self._reader.key())

    def fit(self, train: Dataset) -> None:
        """Takes from the training split what the targets are, and what is to be known of the inputs.

        Raises:
            DataError: Nothing can be learnt from them; see `learn` of either half.
        """
        self._wanted.learn(train)
        self._reader.learn(train, self._roles)

    def encode(self, rows: Columns) -> dict[str, list[Any]]:
        """The columns of `encode_inputs`, and the encoded target under its own name.

        Raises:
            RowError: A row does not fit what was learnt in training; see `encode` of either half.
        """
        role = self._wanted.role
        return {**self.encode_inputs(rows), role: self._wanted.encode(rows[role])}

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        (role,) = self._roles
        return self._reader.encode(rows[role])

    def check(self, encoded: Mapping[str, Dataset]) -> list[str]:
        self._wanted.tell(encoded)
        return self._reader.check(encoded)

    def lengths(self, encoded: Dataset) -> np.ndarray | None:
        return self._reader.lengths(encoded)

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        target = self._wanted.target(rows[self._wanted.role])
        return Batch(self.model_inputs(rows, batching), target, len(target), tuple(draws.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self._reader.model_inputs(encoded, batching)

    def info(self) -> TaskInfo:
        return TaskInfo(**self._reader.info_fields(), **self._wanted.info_fields())

    def metrics(self) -> MetricCollection:
        return self._wanted.metrics()

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        return self._wanted.predictions(output, top)

    def axes(self) -> dict[str, dict[int, str]]:
        return self._reader.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self._reader.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self._reader.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return {**self._wanted.artifact_files(), **self._reader.artifact_files()}

    def state_dict(self) -> dict[str, Any]:
        return {**self._wanted.state_dict(), **self._reader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._wanted.load_state_dict(state)
        self._reader.load_state_dict(state)
