"""The contracts of the parts that the loop calls: the loader, the schedule, and the receivers of events."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from trainer.layout import Document
from trainer.protocols.batch import Batch, Stateful


@runtime_checkable
class HalvesBatches(Protocol):
    """Batches that can be loaded again in halves, for when memory runs out."""

    def halves(self, batch: Batch) -> list[Batch]:
        """Return the samples of one of the batches as two batches."""
        ...


class Loader(Protocol):
    """The training data, one list of micro-batches per optimizer step.

    Attributes:
        requested: The key `train.accumulate`.
        accumulate: Micro-batches of a step; may change between steps.
        tokens: The key `loader.tokens`: positions of a micro-batch; None divides a step by `accumulate` instead.
    """

    requested: int | Literal["auto"]
    accumulate: int
    tokens: int | None

    def load(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step."""
        ...

    def load_largest(self) -> list[Batch]:
        """Return the micro-batches of a step that needs as much memory as any."""
        ...

    def fewer_tokens(self) -> int | None:
        """Return the `loader.tokens` with which a micro-batch needs about half the memory, if there is one."""
        ...

    def steps(self, start: int, stop: int) -> Iterator[list[Batch]]:
        """Yield the micro-batches of each step from `start` up to before `stop`."""
        ...


class Schedule(Protocol):
    """A function from a step, counted from 0, to the factor on the base learning rates."""

    def __call__(self, step: int, /) -> float: ...


@runtime_checkable
class MetricSchedule(Stateful, Protocol):
    """A schedule that follows the monitored metric, which is evaluated for it every `every_steps` steps."""

    every_steps: int

    def __call__(self, step: int, /) -> float: ...

    def observe(self, value: float, higher_is_better: bool) -> None:
        """Record the monitored metric of one evaluation."""
        ...


class Report(Protocol):
    """Receives the events of a run: `metrics.jsonl` (one line per event), the screen, TensorBoard."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        """Record an event, such as `train` or `eval`, after a step."""
        ...


@dataclass(frozen=True)
class Event:
    """An event of a run.

    Attributes:
        name: `start` or `resume`, `train` (a line of training metrics), `eval`, `checkpoint` (one is on the disk),
            `end`, and rarer ones such as `early_end`, `stop`, `out_of_memory`, `sparsity`.
        step: The number of completed steps.
        epoch: The same in passes over the data.
        values: The values of the event, as in `metrics.jsonl`.
    """

    name: str
    step: int
    epoch: float
    values: dict[str, Any]


@dataclass(frozen=True)
class RunView:
    """A run as an observer sees it; checkpoints and all other files are in its folder.

    Attributes:
        folder: The run folder, absolute.
        name: The name of the folder.
        config: The config of the run, without secrets.
        total_steps: The length of the run.
        steps_per_epoch: The steps of one pass over the data.
    """

    folder: Path
    name: str
    config: Document
    total_steps: int
    steps_per_epoch: int


class Observer(Protocol):
    """Receives the events of a run in the first process, on the thread that trains.

    It gets copies, and random numbers that it draws do not change the run. If it raises an error, the error is logged,
    and the run goes on without it. The run waits while it works.
    """

    def observe(self, event: Event, run: RunView) -> None:
        """Receive an event."""
        ...

    def close(self) -> None:
        """Release what is open. Called once, at the end of the run, also after an error."""
        ...
