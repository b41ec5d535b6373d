"""The checks of `trainer doctor` that need no torch: Python, packages, folders, locks, the clock, the network."""

from __future__ import annotations

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

_GB = 10**9
_LEAST_SPACE = _GB
"""Bytes without which the checkpoints of a small model do not fit."""
_LITTLE_SPACE = 10 * _GB
_LEAST_SHARED = 256 * 10**6
_SECONDS = 2.0
"""Longest wait for an answer from the network."""
_CLOCK_TOLERANCE = 60.0
_HUB = "https://huggingface.co"
_MIRROR = "https://hf-mirror.com"
_PYTHONS = ((3, 11), (3, 14))
EXTRAS_OF_A_CLONE = ("dev", "docs", "interop")
"""Extras with tools for work on this project, which no job needs."""


@dataclass(frozen=True)
class Check:
    """The result of a check.

    Attributes:
        status: `note` is worth knowing and stops nothing; `problem` stops some jobs.
        name: What was checked.
        text: What was found.
        remedy: What to do, a sentence; empty if there is nothing to do.
    """

    status: Literal["ok", "note", "problem"]
    name: str
    text: str
    remedy: str = ""


def check_python() -> Check:
    """Check the interpreter."""
    text = f"{platform.python_version()}, {platform.system()} {platform.machine()}, {sys.executable}"
    if not _PYTHONS[0] <= sys.version_info[:2] < _PYTHONS[1]:
        return Check("problem", "python", text, "Use Python 3.11, 3.12 or 3.13")
    if sys.prefix == sys.base_prefix:
        return Check("note", "python", f"{text}, outside a virtual environment")
    return Check("ok", "python", text)


def check_packages() -> Iterator[Check]:
    """Check that the required packages have a version in their range, and name the extras that are missing."""
    try:
        declared = requires("trainer") or []
    except PackageNotFoundError:
        yield Check("note", "packages", "trainer is not installed, so its requirements are not known", "pip install .")
        return
    by_extra: dict[str, list[str]] = {}
    for requirement in declared:
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        by_extra.setdefault(extra[1] if extra else "", []).append(requirement.partition(";")[0].strip())
    required = by_extra.pop("", [])
    wrong = {requirement: problem for requirement in required if (problem := _version_problem(requirement))}
    if wrong:
        names = " ".join(f'"{requirement}"' for requirement in wrong)
        yield Check("problem", "packages", ", ".join(wrong.values()), f"pip install {names}")
    else:
        yield Check("ok", "packages", f"all {len(required)} required packages are in their ranges")
    for name in EXTRAS_OF_A_CLONE:
        by_extra.pop(name, None)
    present = sorted(name for name, needed in by_extra.items() if not any(map(_version_problem, needed)))
    missing = sorted(by_extra.keys() - present)
    text = f"installed: {', '.join(present) or 'none'}; missing: {', '.join(missing) or 'none'}"
    remedy = f'To add them: pip install "trainer[{",".join(missing)}]"' if missing else ""
    yield Check("note" if missing else "ok", "extras", text, remedy)


def _version_problem(requirement: str) -> str:
    """Return what is wrong with the installed version of a package; empty if it fits."""
    from packaging.requirements import Requirement

    parsed = Requirement(requirement)
    try:
        installed = version(parsed.name)
    except PackageNotFoundError:
        return f"{parsed.name} is missing"
    if parsed.specifier.contains(installed, prereleases=True):
        return ""
    return f"{parsed.name} {installed} is not {parsed.specifier}"


def check_compiler(*, has_gpu: bool) -> Check:
    """Check that torch.compile would find a C++ compiler that works, and Triton if there is a GPU."""
    from importlib.util import find_spec

    use = "compile=true needs it; other jobs do not"
    command = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "clang++", "c++")), None)
    if command is None:
        return Check("note", "compiler", f"no C++ compiler ({use})", "Install g++, for example: apt-get install g++")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("#include <vector>\nint main() { return int(std::vector<int>().size()); }\n")
        built = subprocess.run(
            [*command.split(), str(source), "-o", f"{folder}/empty"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    if built.returncode:
        reason = (built.stderr.splitlines() or ["no message"])[0]
        return Check("note", "compiler", f"{command} cannot build a program: {reason} ({use})", "Install g++ anew")
    if has_gpu and find_spec("triton") is None:
        return Check("note", "compiler", f"{command} works, but Triton is missing ({use})", "pip install triton")
    return Check("ok", "compiler", f"{command} works, for torch.compile")


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Check the shared memory, through which the workers of the loader hand over batches."""
    if not folder.is_dir():
        if platform.system() != "Linux":
            return Check("ok", "shared memory", "the system needs no folder for it")
        remedy = "Mount a tmpfs there, or keep loader.workers=0"
        return Check("problem", "shared memory", f"there is no {folder}, which loader.workers needs", remedy)
    usage = shutil.disk_usage(folder)
    text = f"{_size(usage.free)} free of {_size(usage.total)} in {folder}"
    if usage.free < _LEAST_SHARED:
        remedy = "In Docker, start with --shm-size=2g; otherwise keep loader.workers=0"
        return Check("note", "shared memory", f"{text}, little for loader.workers", remedy)
    return Check("ok", "shared memory", text)


def check_memory(limit: int | None) -> Check:
    """Check the memory of the machine; `limit` is what this process may use, if it is known."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable = min(total, total if limit is None else limit)
    text = f"{_size(usable)}{f' of {_size(total)}' if usable < total else ''}, {cores} processor cores"
    if usable < 2 * _GB:
        return Check("problem", "memory", text, "Raise the limit of the container or process to at least 4 GB")
    return Check("note" if usable < 4 * _GB else "ok", "memory", text)


def check_folder(name: str, folder: Path, remedy: str) -> Iterator[Check]:
    """Check that a folder, or the existing folder above it, can be written and has space.

    Args:
        name: What the folder is for.
        folder: The folder, which need not exist.
        remedy: How to choose another folder.
    """
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    text = f"{folder.absolute()}"
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".trainer-", suffix=".tmp") as file:
            file.write(b"x")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        yield Check("problem", name, f"{text} cannot be written ({error.strerror})", remedy)
        return
    free = shutil.disk_usage(existing).free
    text = f"{text} can be written, {_size(free)} free"
    if free < _LITTLE_SPACE:
        yield Check("problem" if free < _LEAST_SPACE else "note", name, text, f"Free some space. {remedy}")
    else:
        yield Check("ok", name, text)


def check_file_system(folder: Path) -> Iterator[Check]:
    """Check what a run expects of the file system of its folder: locks, and a clock like the machine's."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    try:
        with tempfile.NamedTemporaryFile(dir=existing, prefix=".trainer-", suffix=".tmp") as file:
            yield _check_lock(file.name)
            skew = abs(os.stat(file.name).st_mtime - time.time())
    except OSError:  # reported by `check_folder`
        return
    if skew > _CLOCK_TOLERANCE:
        text = f"the file system of {existing} differs by {skew:.0f} seconds from this machine"
        yield Check("note", "clock", text, "Set both by NTP: the names and the order of runs depend on the clock")
    else:
        yield Check("ok", "clock", time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def _check_lock(path: str) -> Check:
    remedy = "Set run.dir to a folder on another file system, or start no two processes on one run"
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Check("ok", "file locks", "one process at a time can hold the lock of a run")
    except OSError as error:
        return Check("problem", "file locks", f"the file system has none ({error.strerror})", remedy)
    finally:
        os.close(first)
        os.close(second)
    return Check("problem", "file locks", "two holders got the same lock", remedy)


class HubCheck:
    """A request to the Hugging Face hub, and to its mirror, that runs beside the other checks."""

    def __init__(self) -> None:
        self._endpoint = os.environ.get("HF_ENDPOINT") or _HUB
        self._is_offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
        self._answers: dict[str, float | None] = {}
        self._reasons: dict[str, str] = {}
        addresses = [self._endpoint, *([_MIRROR] if self._endpoint == _HUB else [])]
        self._threads = [threading.Thread(target=self._ask, args=(each,), daemon=True) for each in addresses]
        self._deadline = time.monotonic() + _SECONDS
        for thread in [] if self._is_offline else self._threads:
            thread.start()

    def _ask(self, address: str) -> None:
        request = urllib.request.Request(address, method="HEAD")
        date: str | None = None
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:
                date = answer.headers.get("Date")
        except urllib.error.HTTPError as error:  # an answer, too
            date = error.headers.get("Date")
        except (OSError, ValueError) as error:
            self._reasons[address] = str(getattr(error, "reason", error))
            return
        try:
            self._answers[address] = None if date is None else parsedate_to_datetime(date).timestamp() - time.time()
        except ValueError:
            self._answers[address] = None

    def results(self) -> Iterator[Check]:
        """Yield what is known of the hub when the wait is over, and of the clock if a server has told its time."""
        if self._is_offline:
            yield Check("ok", "hub", "not asked, as HF_HUB_OFFLINE is set: only local models and data are used")
            return
        for thread in self._threads:
            thread.join(max(0.0, self._deadline - time.monotonic()))
        answers, reasons = dict(self._answers), dict(self._reasons)
        if self._endpoint in answers:
            yield Check("ok", "hub", f"{self._endpoint} answers")
        elif _MIRROR in answers and self._endpoint == _HUB:
            remedy = f"To use the mirror: export HF_ENDPOINT={_MIRROR}"
            yield Check("note", "hub", f"{_HUB} does not answer, its mirror {_MIRROR} does", remedy)
        else:
            reason = reasons.get(self._endpoint, f"no answer within {_SECONDS:g} seconds")
            remedy = "Local models and data work; for names on the hub, connect, or set HF_ENDPOINT to a mirror"
            yield Check("note", "hub", f"{self._endpoint} cannot be reached ({reason})", remedy)
        skew = next((each for each in answers.values() if each is not None), 0.0)
        if abs(skew) > _CLOCK_TOLERANCE:
            text = f"this machine differs by {abs(skew):.0f} seconds from the hub's server"
            yield Check("note", "clock", text, "Set it by NTP: connections and the names of runs depend on it")


def _size(count: float) -> str:
    return f"{count / _GB:.1f} GB" if count >= _GB else f"{count / 10**6:.0f} MB"
