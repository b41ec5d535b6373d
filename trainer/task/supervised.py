"""The base of tasks in which a sample is one input and one target, each with an encoder of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Required, TypedDict

from trainer.protocols import (
    Batch,
    Batching,
    Columns,
    EncodedColumns,
    HasDecisionRule,
    Prediction,
    StateDict,
    Target,
    TaskInfo,
)

if TYPE_CHECKING:
    import numpy as np
    from datasets import Dataset
    from torch import Tensor
    from torchmetrics import MetricCollection

    from trainer.decision import DecisionRule
    from trainer.files.mapped import MappedRows
    from trainer.sample_rng import SampleRng


def fingerprint(name: str, *parts: object) -> str:
    """Return a digest of a task's name and version and of the settings that its encoding depends on (JSON)."""
    return hashlib.blake2b(json.dumps((name, *parts)).encode(), digest_size=16).hexdigest()


class InputFields(TypedDict, total=False):
    """Fields of `TaskInfo` that the inputs determine."""

    vocab_size: int
    max_length: int
    pad_id: int
    num_token_types: int
    num_features: int
    image_channels: int
    image_size: tuple[int, ...]


class TargetFields(TypedDict, total=False):
    """Fields of `TaskInfo` that the targets determine."""

    num_outputs: Required[int]
    class_counts: list[int]
    class_names: list[str]
    num_train: int
    train_target: Target


class InputEncoder(Protocol):
    """Encodes the inputs of samples: texts, tables or images. The methods are the same-named ones of `Task`."""

    def fingerprint_parts(self) -> tuple[object, ...]:
        """Return the settings that `fit` and `encode` depend on, as JSON."""
        ...

    def fit(self, train: Dataset, roles: Sequence[str]) -> None:
        """Learn from the columns `roles` of the training split what encoding needs."""
        ...

    def encode(self, values: Sequence[Any]) -> EncodedColumns:
        """Turn the values of one column into encoded columns."""
        ...

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]: ...

    def lengths(self, encoded: MappedRows) -> np.ndarray | None: ...

    def model_inputs(self, rows: Columns, batching: Batching) -> dict[str, Tensor]: ...

    def info_fields(self) -> InputFields:
        """Return the fields of `TaskInfo` that the inputs determine."""
        ...

    def axes(self) -> dict[str, dict[int, str]]: ...

    def axis_limits(self) -> dict[str, tuple[int, int]]: ...

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]: ...

    def artifact_files(self) -> dict[str, str]: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class TargetEncoder(Protocol):
    """Encodes the targets of samples, and provides their metrics and predictions."""

    role: ClassVar[str]
    """The column of the targets."""

    def fit(self, train: Dataset) -> None:
        """Learn the targets from the training split."""
        ...

    def encode(self, values: Any) -> list[Any]:
        """Encode the target of each row."""
        ...

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        """Log how many targets of each class each split has; return warnings."""
        ...

    def to_tensor(self, rows: Any) -> Tensor:
        """Turn the encoded targets of a batch into one tensor."""
        ...

    def info_fields(self) -> TargetFields:
        """Return the fields of `TaskInfo` that the targets determine."""
        ...

    def metrics(self) -> MetricCollection: ...

    def predictions(self, output: Tensor, top: int) -> list[Prediction]: ...

    def artifact_files(self) -> dict[str, str]: ...

    def state_dict(self) -> StateDict: ...

    def load_state_dict(self, state: StateDict) -> None: ...


class SupervisedTask:
    """The methods of `Task`, each delegated to the encoder that it concerns.

    Args:
        version: The task's name with the version of its encoding, for the fingerprint.
        roles: The input columns; a task with several overrides `encode_inputs`.
        input_encoder: Encodes the inputs.
        target_encoder: Encodes the targets, and provides metrics and predictions.
    """

    def __init__(
        self, version: str, roles: tuple[str, ...], input_encoder: InputEncoder, target_encoder: TargetEncoder
    ) -> None:
        self._version = version
        self._roles = roles
        self._input_encoder = input_encoder
        self._target_encoder = target_encoder

    def columns(self) -> tuple[str, ...]:
        return (*self._roles, self._target_encoder.role)

    def input_columns(self) -> tuple[str, ...]:
        return self._roles

    def fingerprint(self) -> str:
        return fingerprint(self._version, *self._input_encoder.fingerprint_parts())

    def fit(self, train: Dataset) -> None:
        """Fit both encoders to the training split.

        Raises:
            DataError: The split is not sufficient; see `fit` of each encoder.
        """
        self._target_encoder.fit(train)
        self._input_encoder.fit(train, self._roles)

    def encode(self, rows: Columns) -> EncodedColumns:
        """Return the columns of `encode_inputs`, and the encoded target under the name of its column.

        Raises:
            RowError: A row does not fit the training split; see `encode` of each encoder.
        """
        role = self._target_encoder.role
        return {**self.encode_inputs(rows), role: self._target_encoder.encode(rows[role])}

    def encode_inputs(self, rows: Columns) -> EncodedColumns:
        (role,) = self._roles
        return self._input_encoder.encode(rows[role])

    def check(self, encoded: Mapping[str, MappedRows]) -> list[str]:
        return [*self._target_encoder.check(encoded), *self._input_encoder.check(encoded)]

    def lengths(self, encoded: MappedRows) -> np.ndarray | None:
        return self._input_encoder.lengths(encoded)

    def collate(self, rows: Columns, rng: SampleRng, batching: Batching) -> Batch:
        target = self._target_encoder.to_tensor(rows[self._target_encoder.role])
        return Batch(self.model_inputs(rows, batching), target, len(target), tuple(rng.ids))

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return self._input_encoder.model_inputs(encoded, batching)

    def info(self) -> TaskInfo:
        return TaskInfo(**self._input_encoder.info_fields(), **self._target_encoder.info_fields())

    def metrics(self) -> MetricCollection:
        return self._target_encoder.metrics()

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[Prediction]:
        return self._target_encoder.predictions(output, top)

    def answers(self, output: Tensor) -> list[Any]:
        """Return what each row of outputs (B, C) says: the class, the labels, or the values in the user's units."""
        rows = self._target_encoder.predictions(output, 1)
        return [next(row[key] for key in ("label", "labels", "value") if key in row) for row in rows]

    @property
    def decision_rule(self) -> DecisionRule | None:
        return self._decisions.decision_rule if self._decisions else None

    @decision_rule.setter
    def decision_rule(self, rule: DecisionRule) -> None:
        assert self._decisions, "the task has a decision rule"
        self._decisions.decision_rule = rule

    @property
    def threshold(self) -> float:
        return self._decisions.threshold if self._decisions else 0.5

    def calibrated(self, output: Tensor) -> Tensor:
        assert self._decisions, "the task has a decision rule"
        return self._decisions.calibrated(output)

    def decide(self, output: Tensor) -> Tensor:
        assert self._decisions, "the task has a decision rule"
        return self._decisions.decide(output)

    @property
    def _decisions(self) -> HasDecisionRule | None:
        """The target encoder if it has a decision rule."""
        return self._target_encoder if isinstance(self._target_encoder, HasDecisionRule) else None

    def axes(self) -> dict[str, dict[int, str]]:
        return self._input_encoder.axes()

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self._input_encoder.axis_limits()

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        return self._input_encoder.example(sizes, generator)

    def artifact_files(self) -> dict[str, str]:
        return {**self._target_encoder.artifact_files(), **self._input_encoder.artifact_files()}

    def state_dict(self) -> StateDict:
        return {**self._target_encoder.state_dict(), **self._input_encoder.state_dict()}

    def load_state_dict(self, state: StateDict) -> None:
        self._target_encoder.load_state_dict(state)
        self._input_encoder.load_state_dict(state)
