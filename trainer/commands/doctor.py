"""`trainer doctor`: check what a training needs of this machine, line by line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from trainer.commands.doctor_checks import (
    Check,
    HubCheck,
    check_compiler,
    check_file_system,
    check_folder,
    check_memory,
    check_packages,
    check_python,
    check_shared_memory,
)
from trainer.config.jobs import DoctorJob
from trainer.display import counted
from trainer.errors import Interrupted, TrainerError
from trainer.layout import CHECKPOINTS, RUNS, Document
from trainer.progress import phase
from trainer.report.console import open_console, print_indented
from trainer.report.screen import phases_shown
from trainer.signals import StopSignals

_PROBE_SECONDS = 180.0
_TRAINING_SECONDS = 180.0
_SLOW_SECONDS = 60.0
"""Duration of the training on a machine that is slow or busy."""
_STEPS = 200
_SAVES = 4
_TRAINING = (
    "data=files",
    "data.train=rows.csv",
    "model.dim=32",
    "model.depth=1",
    "model.heads=2",
    "model.hidden=32",
    "task.vocab_size=200",
    "task.max_length=16",
    "train.batch_size=8",
    f"train.duration={_STEPS}",
    f"train.eval_every={_STEPS}",
    f"checkpoint.every={_STEPS // _SAVES}",
    "export.formats=[]",
    "eval.predictions=false",
    "logger.console=none",
    "logger.tensorboard=false",
)
"""The training: small, so that starting its processes takes most of the time."""


def run(job: DoctorJob, config: Document) -> None:
    """Print a line for each check as soon as it is done.

    Raises:
        TrainerError: There are problems.
    """
    console = open_console("auto")
    counts = {"ok": 0, "note": 0, "problem": 0}
    with phases_shown(console):
        for check in _checks(job):
            counts[check.status] += 1
            _print(console, check)
    if counts["problem"]:
        number = counted(counts["problem"], "problem")
        raise TrainerError(f"doctor: {number}. Do what the lines that begin with problem say.")
    console.out("no problems", highlight=False)


def _print(console: Console, check: Check) -> None:
    remedy = f" {check.remedy}." if check.remedy else ""
    print_indented(console, f"{check.status:<8} {check.name:<14} ", f"{check.text}.{remedy}")


def _checks(job: DoctorJob) -> Iterator[Check]:
    hub = HubCheck()
    yield from _safely("python", lambda: [check_python()])
    yield from _safely("packages", check_packages)
    with phase("loading torch and the other libraries"):
        facts, ending = _probe()
    memory = facts.get("memory")
    yield from _safely("torch", lambda: _check_torch(facts, ending))
    yield from _safely("compiler", lambda: [check_compiler(has_gpu=bool(facts.get("devices")))])
    yield from _safely("memory", lambda: [check_memory(memory if isinstance(memory, int) else None)])
    yield from _safely("shared memory", lambda: [check_shared_memory()])
    yield from _safely("runs", lambda: check_folder("runs", Path(RUNS), "Start in another folder, or set run.dir"))
    yield from _safely("file locks", lambda: check_file_system(Path(RUNS)))
    yield from _safely("cache", _check_caches)
    yield from _safely("hub", hub.results)
    if job.quick:
        return
    if "torch" in facts.get("failures", {"torch": ""}):
        yield Check("problem", "training", "not tried, as torch does not work", "See the line torch")
        return
    with phase("training, killing the training and resuming it"):
        checks = list(_safely("training", lambda: [_check_training()]))
    yield from checks


def _safely(name: str, checks: Callable[[], Iterable[Check]]) -> Iterator[Check]:
    """Yield the results of checks; a check that fails itself is a problem, and the others go on."""
    try:
        yield from checks()
    except Interrupted:
        raise
    except Exception as error:  # whatever is wrong with the machine
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Check("problem", name, f"cannot be checked ({reason})", "Mend what the reason names")


def _check_caches() -> Iterator[Check]:
    from trainer.data.encode import cache_root

    yield from check_folder("cache", cache_root(), "Set TRAINER_CACHE to another folder")
    hub = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    yield from check_folder("hub cache", hub, "Set HF_HOME to another folder")


# torch


def _environment() -> dict[str, str]:
    """Return an environment in which a process finds this package, even if it is not installed."""
    package = str(Path(__file__).parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}


def _probe() -> tuple[dict[str, Any], str]:
    """Return the facts of `trainer.commands.doctor_probe`, and how its process ended if not well."""
    command = [sys.executable, "-m", "trainer.commands.doctor_probe"]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, env=_environment(), timeout=_PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return {}, f"does not end within {_PROBE_SECONDS:.0f} seconds"
    facts: dict[str, Any] = {}
    for line in process.stdout.splitlines():
        with suppress(ValueError, TypeError):  # what a library prints
            facts |= json.loads(line)
    if process.returncode == 0:
        return facts, ""
    reason = (process.stderr.splitlines() or [f"exit code {process.returncode}"])[-1]
    by_signal = signal.Signals(-process.returncode).name if process.returncode < 0 else ""
    return facts, f"killed by {by_signal}" if by_signal else reason


def _check_torch(facts: Mapping[str, Any], ending: str) -> Iterator[Check]:
    failures: dict[str, str] = dict(facts.get("failures", {}))
    if ending:
        failures.setdefault("torch" if "torch" not in facts else "the probe", ending)
    for name, reason in failures.items():
        package = {"PIL": "pillow"}.get(name, name)
        remedy = "pip install --force-reinstall torch, with the build for this machine (https://pytorch.org)"
        yield Check(
            "problem",
            name,
            f"cannot be used: {reason.splitlines()[0]}",
            remedy if name in ("torch", "the probe") else f"pip install --force-reinstall {package}",
        )
    if "torch" not in facts:
        return
    build = facts["torch"]
    cuda = f"built for CUDA {build['cuda']}" if build["cuda"] else "built for the CPU only"
    yield Check("ok", "torch", f"{build['version']}, {cuda}, threads: {build['threads']}")
    yield from _check_devices(facts.get("devices"), has_cuda=bool(build["cuda"]))
    attention = facts.get("attention")
    if isinstance(attention, Mapping) and "error" not in attention:
        kernels = "; ".join(f"{device}: {', '.join(names)}" for device, names in attention.items())
        has_fast = all({"flash", "efficient", "cudnn"} & {*names} for names in attention.values())
        text = kernels if has_fast else f"{kernels}; long texts need more memory without a fused kernel"
        yield Check("ok" if has_fast else "note", "attention", text)


def _check_devices(devices: object, *, has_cuda: bool) -> Iterator[Check]:
    if not isinstance(devices, list):
        reason = devices.get("error") if isinstance(devices, Mapping) else "no answer"
        yield Check("problem", "devices", f"a GPU cannot be used: {reason}", "Check nvidia-smi and the driver")
        return
    for device in devices:
        free = f", {device['free'] / 1e9:.1f} of {device['total'] / 1e9:.1f} GB free" if "free" in device else ""
        formats = "bf16 and fp16" if device["bf16"] else "fp16, no bf16"
        text = f"{device['name']}{free}, {formats}"
        if device["works"]:
            yield Check("ok", "device", text)
        else:
            yield Check("problem", "device", f"{text}, computes wrong results", "Check nvidia-smi and the driver")
    if devices:
        return
    if not os.path.exists("/dev/nvidia0"):
        yield Check("ok", "device", "no GPU is here; jobs run on the CPU")
    elif not has_cuda:
        remedy = "Install a CUDA build of torch (https://pytorch.org)"
        yield Check("problem", "device", "there is a GPU, but this build of torch cannot use it", remedy)
    else:
        remedy = "Check nvidia-smi, the driver and CUDA_VISIBLE_DEVICES"
        yield Check("problem", "device", "there is a GPU, but torch does not find it", remedy)


# The training


def _check_training() -> Check:
    """Train, kill the same training, resume it, and compare the bytes of both last checkpoints."""
    start = time.monotonic()
    place = Path(RUNS) if os.path.isdir(RUNS) else Path()
    parent = place if os.access(place, os.W_OK) else None
    with StopSignals(), tempfile.TemporaryDirectory(dir=parent, prefix=".trainer-doctor-") as name:
        folder = Path(name).absolute()
        _write_rows(folder / "rows.csv")
        processes: list[subprocess.Popen[str]] = []
        try:
            processes += [killed := _start_training(folder, "killed")]
            processes += [whole := _start_training(folder, "whole")]
            was_killed = _kill_at_checkpoint(killed, folder / "killed" / CHECKPOINTS)
            problem = _wait(whole) or ("" if was_killed else _wait(killed))
            if not problem:
                processes += [resumed := _start_training(folder, "killed", f"resume={folder / 'killed'}")]
                problem = _wait(resumed)
        finally:
            for process in processes:
                process.kill()
                process.communicate()
        if problem:
            remedy = "Start trainer train debug=smoke to see the whole error"
            return Check("problem", "training", f"a small training fails: {problem}", remedy)
        expected, actual = (_last_checkpoint(folder / run) for run in ("whole", "killed"))
    seconds = time.monotonic() - start
    if expected != actual:
        different = ", ".join(sorted(key for key in expected | actual if expected.get(key) != actual.get(key)))
        remedy = "Report it, with this output: a resumed run must equal an uninterrupted one"
        return Check("problem", "training", f"resumed after a kill, it differs in {different}", remedy)
    how = "killed and resumed" if was_killed else "resumed (it ended before it was killed)"
    size = sum(map(len, expected.values())) / 1e6
    text = f"{_STEPS} steps, {how}: the same {size:.1f} MB to the last byte, {seconds:.0f} seconds"
    if seconds > _SLOW_SECONDS:
        return Check(
            "note", "training", text, "Two free cores need about 12 seconds: see with top what else is running"
        )
    return Check("ok", "training", text)


def _write_rows(path: Path) -> None:
    words = ("apple banana cherry grape lemon", "axe chisel drill hammer knife", "badger cat dog eagle fox")
    lines = ["text,label"]
    for number in range(120):
        these = words[number % 3].split()
        lines.append(f"{these[number % 5]} {these[number // 3 % 5]} {number},kind {number % 3}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _start_training(folder: Path, name: str, *overrides: str) -> subprocess.Popen[str]:
    arguments = overrides or (*_TRAINING, f"run.dir={name}")
    return subprocess.Popen(
        [sys.executable, "-m", "trainer", "train", *arguments],
        cwd=folder,
        # One thread, as two trainings run at once and each is too small for more: threads that find no free core wait
        # in every step, for minutes on a busy machine.
        env=_environment() | {"TRAINER_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_at_checkpoint(process: subprocess.Popen[str], checkpoints: Path) -> bool:
    """Kill a training once it has a checkpoint; return whether it was still running."""
    deadline = time.monotonic() + _TRAINING_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if any(checkpoints.glob("step-*")):
            process.kill()
            break
        time.sleep(0.005)
    return process.wait() == -signal.SIGKILL


def _wait(process: subprocess.Popen[str]) -> str:
    """Wait for a training; return why it failed, or an empty text."""
    try:
        _, errors = process.communicate(timeout=_TRAINING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return f"it does not end within {_TRAINING_SECONDS:.0f} seconds"
    if process.returncode == 0:
        return ""
    return (errors.splitlines() or [f"exit code {process.returncode}"])[-1]


def _last_checkpoint(run: Path) -> dict[str, bytes]:
    """Return the files of the last checkpoint of a run, without those that name the run's own folder."""
    folder = max((run / CHECKPOINTS).glob("step-*"))
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.name not in ("config.yaml", "MANIFEST.json")
    }
