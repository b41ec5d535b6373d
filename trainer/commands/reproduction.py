"""What a run left behind, compared bit for bit with a replay of it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoint.store import Snapshot, load_folder
from trainer.checkpoint.tensors import tensor_differences
from trainer.commands.replay import Replay, replay
from trainer.config.jobs import TrainJob, VerifyJob
from trainer.config.policy import differences
from trainer.config.stored import job_from_text
from trainer.divergence import read_divergence
from trainer.layout import CONFIG, METRICS, STATE
from trainer.report import jsonl

_CLOCK = {"samples_per_second"}


@dataclass(frozen=True)
class Check:
    """One comparison.

    Attributes:
        what: What was compared.
        found: That it holds, or why it was not done.
        fault: Where it does not hold, the first place first; "" where it does.
    """

    what: str
    found: str
    fault: str = ""


def check_stretch(job: VerifyJob, folder: Path, start: Path | None, stop: Path) -> list[Check]:
    """Replays from one checkpoint to the next one, or `job.steps` steps of the way.

    The logged numbers are compared step by step; all of the state too where the next checkpoint is reached.

    Args:
        job: What to verify.
        folder: The run folder.
        start: The first checkpoint; None: the start of the run.
        stop: The next one.

    Raises:
        CheckpointError: A checkpoint cannot be used.
    """
    stored = load_folder(stop)
    text = stored.documents[CONFIG]
    first = None if start is None else load_folder(start)
    begin = 0 if first is None else first.step
    end = stored.step if job.steps is None else min(stored.step, begin + job.steps)
    done = replay(_train_job(job, text), text, first, end)
    checks = [_logged(folder / METRICS, done, needed=end < stored.step)]
    if done.findings is not None:
        return [*checks, Check("end", "", f"the replay diverged at step {done.findings.step}")]
    if end < stored.step:
        return [*checks, Check("tensors, state", f"not compared: the replay ended after step {end}, as asked for")]
    assert done.snapshot is not None
    return [*checks, *_state(stored, done.snapshot)]


def check_divergence(job: VerifyJob, bundle: Path, before: Path | None) -> list[Check]:
    """Replays from the last checkpoint before a divergence, and compares what is found with what was.

    Args:
        job: What to verify.
        bundle: What was found then.
        before: The last intact checkpoint before it; None: there is none.

    Raises:
        CheckpointError: The bundle or the checkpoint cannot be used.
    """
    stored, text, checkpoint = read_divergence(bundle)
    # A run that diverged before its first checkpoint may have been started anew in the same folder.
    first = None if before is None or checkpoint is None else load_folder(before)
    found = replay(_train_job(job, text), text, first, stored.step).findings
    origin = "the start" if first is None else f"step {first.step}"
    if found is None:
        return [Check(f"from {origin}", "", f"step {stored.step} did not diverge again")]
    report = _first(
        f"{path} {old!r} then, {new!r} in the replay" for path, old, new in differences(stored.report, found.report)
    )
    numbers = f"loss {stored.report['loss']}, gradient norm {stored.report['grad_norm']}"
    again = f"diverged again: {'weights not finite' if stored.report['loss'] is None else numbers}"
    batch = _first(tensor_differences({"batch": stored.batch}, {"batch": found.batch}))
    return [
        Check(f"from {origin}", f"{again}; the same in every number", report),
        Check("batch", f"{len(stored.batch)} tensors, equal in every bit", batch),
    ]


def _train_job(job: VerifyJob, text: str) -> TrainJob:
    device = () if job.device is None else (("device", job.device),)
    return job_from_text(text, trust=job.trust, overrides=(*job.stored_overrides, *device))


def _logged(metrics: Path, done: Replay, *, needed: bool) -> Check:
    what = "logged steps"
    events = jsonl.read(metrics) if metrics.exists() else []
    stored = {event["step"]: event for event in events if event["event"] == "train"}
    common = sorted(stored.keys() & done.logged.keys())
    for step in common:
        for name, value in done.logged[step].items():
            if name not in _CLOCK and stored[step].get(name) != value:
                old = stored[step].get(name)
                return Check(what, "", f"step {step} is the first to differ: {name} {old!r} logged, {value!r} replayed")
    if needed and not common:
        return Check(what, "", "none of the replayed steps was logged, so nothing was compared; raise steps")
    return Check(what, f"{len(common)}, equal in every bit")


def _state(stored: Snapshot, found: Snapshot) -> list[Check]:
    before, after = (json.loads(snapshot.documents[STATE], parse_constant=str) for snapshot in (stored, found))
    written, present = before.pop("versions"), after.pop("versions")
    changed = _first(f"state.json: {path} {_short(old, new)}" for path, old, new in differences(before, after))
    for name in dict.fromkeys([*stored.documents, *found.documents]):
        if name != STATE and stored.documents.get(name) != found.documents.get(name):
            changed = changed or f"{name} differs"
    count = sum(map(len, stored.tensors.values()))
    checks = [
        Check("tensors", f"{count}, equal in every bit", _first(tensor_differences(stored.tensors, found.tensors))),
        Check("state", "equal", changed),
    ]
    if written != present:
        checks.append(Check("versions", f"written by {_listed(written)}, replayed by {_listed(present)}"))
    return checks


def _first(lines: Iterable[str]) -> str:
    first, *others = [*lines] or [""]
    return f"{first}; {len(others)} more differ" if others else first


def _short(old: Any, new: Any) -> str:
    shown = f"{old!r} stored, {new!r} replayed"
    return shown if len(shown) < 100 else "differs"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())
