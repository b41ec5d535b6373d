"""A stretch of a run done again, in memory alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

from trainer.builders.training import build_training
from trainer.checkpoint.store import Snapshot
from trainer.config.jobs import TrainJob
from trainer.errors import DivergedError, Interrupted
from trainer.loop import fit
from trainer.run import DivergenceReport, RunOutputs


@dataclass
class Replay:
    """What a stretch gave; the report of the run that it is.

    Attributes:
        step: The step it ended after.
        logged: Step to the values of its `train` event.
        snapshot: The state at its end, as a checkpoint would hold it; None where it diverged.
        findings: What was found where it diverged.
    """

    step: int = 0
    logged: dict[int, dict[str, Any]] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    findings: DivergenceReport | None = None

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        if event == "train":
            self.logged[step] = dict(values)


def replay(job: TrainJob, config_text: str, start: Snapshot | None, stop: int) -> Replay:
    """Trains from a checkpoint to the end of step `stop`, logging and evaluating as the run did; writes nothing.

    Args:
        job: The run's config.
        config_text: The same as it is stored.
        start: Where to start; None: at the very start.
        stop: The step to end after.

    Raises:
        CheckpointError: The checkpoint is of another model, optimizer or data.
    """
    done = Replay()
    snapshots: deque[Snapshot] = deque(maxlen=1)
    found: list[DivergenceReport] = []

    def keep_findings(findings: DivergenceReport) -> str:
        found.append(findings)
        return ""

    with ExitStack() as closing:
        outlets = RunOutputs(done, snapshots.append, keep_findings)
        training = build_training(job, config_text, outlets, start, closing)
        with suppress(Interrupted, DivergedError):
            fit(training.run, training.state, lambda: training.state.step >= stop)
        done.step = training.state.step
    if found:
        done.findings = found[0]
    else:
        done.snapshot = snapshots[0]
    return done
