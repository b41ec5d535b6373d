"""Train a part of a run again, and compare it bit for bit with what the run recorded."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.config.jobs import TrainJob, VerifyJob
from trainer.config.stored import differences, job_from_text
from trainer.documents import MEASURED_VALUES
from trainer.errors import DivergedError, Interrupted
from trainer.layout import (
    CONFIG,
    METRICS,
    STATE,
)
from trainer.report.events import read_events

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.checkpoint.shards import Rows
    from trainer.checkpoint.snapshot import Snapshot
    from trainer.distributed.ranks import Ranks
    from trainer.run import DivergenceReport


"""Logged values that depend on the machine's speed and are not compared."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of a replay with what the run recorded.

    Attributes:
        subject: What was compared.
        result: The result if nothing differs, or why it was not compared.
        fault: The first difference; "" if there is none.
    """

    subject: str
    result: str
    fault: str = ""


@dataclass
class Replay:
    """The outcome of training a part of a run again; also the report that the run logs to.

    Attributes:
        logged: Step -> the values of its `train` event.
        snapshot: The state at its end, as a checkpoint would contain it; None if it diverged.
        divergence: The report of the step that diverged, if one did.
        machine: Threads, processor and versions of the replay.
    """

    machine: dict[str, int | str] = field(default_factory=dict)
    logged: dict[int, Mapping[str, object]] = field(default_factory=dict)
    snapshot: Snapshot | None = None
    divergence: DivergenceReport | None = None

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        if event == "train":
            self.logged[step] = dict(values)


def compare_training(
    job: VerifyJob, folder: Path, start: Path | None, stop: Path, ranks: Ranks | None = None
) -> list[Comparison]:
    """Train from one checkpoint to the next again, or only `job.steps` steps, and compare.

    The logged numbers are compared step by step. If the next checkpoint is reached, its whole state is compared too.

    Args:
        job: The checked config of the verb.
        folder: The run folder.
        start: The first checkpoint; None is the start of the run.
        stop: The next checkpoint.
        ranks: The processes that train together; None is this process alone.

    Raises:
        CheckpointError: A checkpoint cannot be used.
    """
    from trainer.checkpoint.snapshot import load_folder

    # Tensors are read when they are used: a checkpoint in shards may not fit into memory.
    stored = load_folder(stop, on_demand=True)
    text = stored.text(CONFIG)
    first = None if start is None else load_folder(start, on_demand=True)
    begin = 0 if first is None else first.step
    end = stored.step if job.steps is None else min(stored.step, begin + job.steps)
    recorded = _recorded_machine(folder, begin)
    with _threads_of(recorded):
        done = replay(stored_job(job, text, stop), text, first, end, ranks)
    comparisons = [_compare_logged(folder / METRICS, done, needed=end < stored.step)]
    if done.divergence is not None:
        comparisons.append(Comparison("end", "", f"the replay diverged at step {done.divergence.step}"))
    elif end < stored.step:
        result = f"not compared: the replay ended after step {end}, as requested"
        comparisons.append(Comparison("tensors, state", result))
    else:
        assert done.snapshot is not None
        comparisons += _compare_states(stored, done.snapshot, ranks)
    recorded |= stored.json(STATE)["versions"]
    return _explain_faults(comparisons, recorded, done.machine)


def compare_divergence(
    job: VerifyJob, bundle: Path, before: Path | None, ranks: Ranks | None = None
) -> list[Comparison]:
    """Train from the last checkpoint before a divergence again, and compare the reports of the divergence.

    Args:
        job: The checked config of the verb.
        bundle: The folder with the report of the divergence.
        before: The last intact checkpoint before it; None if there is none.
        ranks: The processes that train together; None is this process alone.

    Raises:
        CheckpointError: The folder or the checkpoint cannot be used.
    """
    from trainer.checkpoint.snapshot import load_folder
    from trainer.checkpoint.tensors import tensor_differences
    from trainer.divergence import read_divergence

    stored, text, checkpoint = read_divergence(bundle)
    # A run that diverged before its first checkpoint may have been started again in the same folder.
    first = None if before is None or checkpoint is None else load_folder(before, on_demand=True)
    with _threads_of(_recorded_machine(bundle.parent.parent, 0 if first is None else first.step)):
        replayed = replay(stored_job(job, text, bundle), text, first, stored.step, ranks).divergence
    origin = "the start" if first is None else f"step {first.step}"
    if replayed is None:
        return [Comparison(f"from {origin}", "", f"step {stored.step} did not diverge again")]
    fault = _summarize(
        f"{path} {old!r} recorded, {new!r} replayed" for path, old, new in differences(stored.report, replayed.report)
    )
    numbers = f"loss {stored.report['loss']}, gradient norm {stored.report['grad_norm']}"
    again = f"diverged again: {'weights not finite' if stored.report['loss'] is None else numbers}"
    batch_fault = _summarize(tensor_differences({"batch": stored.batch}, {"batch": replayed.batch}))
    return [
        Comparison(f"from {origin}", f"{again}; all numbers equal", fault),
        Comparison("batch", f"{len(stored.batch)} tensors, bitwise equal", batch_fault),
    ]


def replay(job: TrainJob, config_text: str, start: Snapshot | None, stop: int, ranks: Ranks | None = None) -> Replay:
    """Train from a checkpoint to the end of step `stop`, logging and evaluating as the run did. Writes nothing.

    Args:
        job: The run's config.
        config_text: The same as it is stored.
        start: The checkpoint to start from; None is the start of the run.
        stop: The last step.
        ranks: The processes that train together; None is this process alone.

    Raises:
        CheckpointError: The checkpoint belongs to another model, optimizer or data.
    """
    from trainer.builders.training import build_training
    from trainer.capture import current_versions, describe_machine
    from trainer.loop import fit
    from trainer.run import RunOutputs

    done = Replay()
    snapshots: deque[Snapshot] = deque(maxlen=1)
    divergences: list[DivergenceReport] = []

    def keep_divergence(divergence: DivergenceReport) -> str:
        divergences.append(divergence)
        return ""

    with ExitStack() as closing:
        outputs = RunOutputs(report=done, save=snapshots.append, save_divergence=keep_divergence)
        training = build_training(job, config_text, outputs, start, closing, ranks)
        done.machine = {**describe_machine(training.run.device), **current_versions()}
        with suppress(Interrupted, DivergedError):
            fit(training.run, training.state, lambda: training.state.step >= stop)
    if divergences:
        done.divergence = divergences[0]
    else:
        done.snapshot = snapshots[0]
    return done


def _recorded_machine(folder: Path, step: int) -> dict[str, int | str]:
    """Return the threads and the processor of the process that trained on from a step; empty if none are recorded."""
    metrics = folder / METRICS
    events = read_events(metrics) if metrics.exists() else []
    starts = [event for event in events if event["event"] in ("start", "resume") and event["step"] <= step]
    return {name: starts[-1][name] for name in ("threads", "processor") if starts and name in starts[-1]}


_POSSIBLE_THREADS = range(1, 1025)
"""The file of metrics may come from anyone."""


@contextmanager
def _threads_of(recorded: Mapping[str, int | str]) -> Iterator[None]:
    """Compute with the recorded number of threads: it decides how sums are split, and so how they are rounded."""
    import torch

    before = torch.get_num_threads()
    threads = int(recorded.get("threads", before))
    torch.set_num_threads(threads if threads in _POSSIBLE_THREADS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _explain_faults(
    comparisons: Iterable[Comparison], recorded: Mapping[str, int | str], machine: Mapping[str, int | str]
) -> list[Comparison]:
    """Add to each difference what else differs from the process that trained, because it may be the reason."""
    reasons = [
        f"{name} {old} then, {machine[name]} now" for name, old in recorded.items() if machine.get(name, old) != old
    ]
    note = f" (possible reason: {'; '.join(reasons)})" if reasons else ""
    return [replace(each, fault=each.fault + note) if each.fault else each for each in comparisons]


def stored_job(job: VerifyJob, text: str, folder: Path) -> TrainJob:
    """Return the job that a checkpoint or the folder of a divergence was trained with."""
    device = () if job.device is None else (("device", job.device),)
    return job_from_text(text, trust=job.trust, overrides=(*job.stored_overrides, *device), file=folder / CONFIG)


def _compare_logged(metrics: Path, done: Replay, *, needed: bool) -> Comparison:
    subject = "logged steps"
    events = read_events(metrics) if metrics.exists() else []
    stored = {event["step"]: event for event in events if event["event"] == "train"}
    common = sorted(stored.keys() & done.logged.keys())
    for step in common:
        for name, value in done.logged[step].items():
            if name not in MEASURED_VALUES and stored[step].get(name) != value:
                old = stored[step].get(name)
                fault = f"step {step} is the first to differ: {name} {old!r} logged, {value!r} replayed"
                return Comparison(subject, "", fault)
    if needed and not common:
        return Comparison(subject, "", "none of the replayed steps was logged, so nothing was compared. Raise steps")
    return Comparison(subject, f"{len(common)}, bitwise equal")


def _compare_states(stored: Snapshot, replayed: Snapshot, ranks: Ranks | None) -> list[Comparison]:
    from trainer.capture import describe_other_versions
    from trainer.checkpoint.tensors import tensor_differences

    before, after = (json.loads(snapshot.text(STATE), parse_constant=str) for snapshot in (stored, replayed))
    other = describe_other_versions(before.pop("versions"))
    after.pop("versions")
    fault = _summarize(f"{STATE}: {path} {_show(old, new)}" for path, old, new in differences(before, after))
    for name in dict.fromkeys([*stored.documents, *replayed.documents]):
        if name != STATE and stored.documents.get(name) != replayed.documents.get(name):
            fault = fault or f"{name} differs"
    count = sum(map(len, stored.tensors.values()))
    tensor_faults = [*tensor_differences(_stored_part(stored, replayed), replayed.tensors)]
    if ranks is not None:  # each process has its own weights, or its own rows of them
        tensor_faults = [fault for faults in ranks.gather(tensor_faults) for fault in faults]
    tensor_fault = _summarize(dict.fromkeys(tensor_faults))
    comparisons = [
        Comparison("tensors", f"{count}, bitwise equal", tensor_fault),
        Comparison("state", "equal", fault),
    ]
    if other:
        comparisons.append(Comparison("versions", other))
    return comparisons


def _stored_part(stored: Snapshot, replayed: Snapshot) -> Mapping[str, Mapping[str, Tensor]]:
    """Return the tensors of a checkpoint, or the rows of them that this process has trained again."""
    shard = replayed.shard
    if shard is None:
        return stored.tensors
    part: dict[str, dict[str, Tensor]] = {}
    for file, named in replayed.tensors.items():
        # The first process has every tensor, or some rows of it: one that is missing there is missing everywhere.
        known = stored.tensors.get(file, {})
        names = known if shard.index == 0 else [name for name in known if name in named]
        part[file] = {name: _rows_of(known, name, named, shard.rows.get(file, {})) for name in names}
    return part


def _rows_of(
    stored: Mapping[str, Tensor], name: str, replayed: Mapping[str, Tensor], rows: Mapping[str, Rows]
) -> Tensor:
    from trainer.checkpoint.tensors import StoredTensors

    if name not in rows:
        return stored[name]
    start = rows[name].start
    stop = start + len(replayed[name])
    return stored.read_rows(name, start, stop) if isinstance(stored, StoredTensors) else stored[name][start:stop]


def _summarize(lines: Iterable[str]) -> str:
    """Return the first of several lines and the number of the others."""
    first, *others = [*lines] or [""]
    return f"{first}; {len(others)} more differ" if others else first


def _show(old: object, new: object) -> str:
    text = f"{old!r} stored, {new!r} replayed"
    return text if len(text) < 100 else "differs"
