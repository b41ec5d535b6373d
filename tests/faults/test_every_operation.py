"""Every verb survives a disk that fails at any operation: one message, old files or new ones, nothing left behind."""

import errno
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from itertools import cycle
from multiprocessing.util import get_temp_dir
from pathlib import Path

import pytest

from tests.support.disk_faults import DiskFault, failing_disk, file_size_limit
from tests.support.jobs import TINY, working_in, write_data
from tests.support.processes import start
from trainer.cli import main
from trainer.export.folder import verify
from trainer.report.page import is_sealed

TRAIN = (*TINY, "train.duration=1", "train.eval_every=1", "checkpoint.every=1", "run.dir=new")
PREDICT = ("predict", "run=run", "input=test.csv", "force=true")
VERBS: dict[str, tuple[str, ...]] = {
    "train": ("train", *TRAIN, "resume=auto", "run.name=new", "task.vocab_size=190", "export.formats=[pth]"),
    "resume": ("train", "resume=run", "train.duration=4", "logger.tensorboard=true"),
    "eval": ("eval", "run=run"),
    "csv": (*PREDICT, "output=predictions.csv"),
    "jsonl": (*PREDICT, "output=predictions.jsonl"),
    "parquet": (*PREDICT, "output=predictions.parquet"),
    "generate": ("generate", "run=language", "prompt=apple", "output=predictions.jsonl", "force=true"),
    "report": ("report", "run=run"),
    "verify": ("verify", "run=run"),
    "diff": ("diff", "run", "run"),
    "plan": ("plan", *TINY, "task.vocab_size=190"),
    "export": ("export", "run=run", "export.formats=[pth,safetensors]"),
    "torchscript": ("export", "run=run", "export.formats=[torchscript]"),
    "pt2": ("export", "run=run", "export.formats=[pt2]"),
    "onnx": ("export", "run=run", "export.formats=[onnx]"),
    "sweep": ("train", "-m", "seed=1,2", "hydra.sweep.dir=sweep", *TRAIN[:-1], "run.name=swept"),
}
VARYING = ("run/tensorboard", "new/tensorboard", "encoded", "temporary", "sweep", "multirun")
WITH_DATA = ("train", "plan", "sweep")
UNFINISHED = (".trainer-*.tmp", ".tmp-*", "*.partial*")
"""Names of what is not complete. A checkpoint in `.trash-` is an old one, which the next save deletes."""
REMOVALS = ("os.remove", "os.rmdir")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT, None)
"""None is a MemoryError."""
SIZES = (0, 100, 1000, 3000, 10_000, 30_000)
"""Limits of file sizes, in bytes."""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data, caches, a finished run and what the verbs have written before."""
    folder = tmp_path_factory.mktemp("template")
    with working_in(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAINER_CACHE", "encoded")
        Path("temporary").mkdir()
        write_data(Path())
        options = (*TRAIN[:-1], "run.dir=run", "train.duration=3", "checkpoint.keep=2")
        assert main(["train", *options, *data()]) == 0
        assert main(["export", "run=run", "export.formats=[pth]"]) == 0
        assert main(["train", *TRAIN[:-1], "run.dir=language", "task=causal_lm", *data()]) == 0
        for suffix in ("csv", "jsonl", "parquet"):
            Path(f"predictions.{suffix}").write_text("old\n")
        yield folder


class Trials:
    """Runs a verb in copies of a folder, each time with a fault."""

    def __init__(self, verb: str, template: Path, folder: Path) -> None:
        self.arguments = [*VERBS[verb], *(data() if verb in WITH_DATA else ())]
        self.template = template
        self.folder = folder
        self.before = contents(template)
        counting = DiskFault(folder)
        self.restore()
        with failing_disk(counting):
            assert main(self.arguments) == 0
        self.after = contents(folder)
        self.names = {name for name in self.after if not name.startswith(VARYING)}
        self.operations = distinct(counting.operations)

    def restore(self) -> None:
        """Make the contents of the folder those of the template."""
        for path in self.folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(self.template, self.folder, dirs_exist_ok=True)

    def check(self, fault: AbstractContextManager[object], capsys: pytest.CaptureFixture[str]) -> list[str]:
        """Run the verb with a fault, then without; return what is wrong."""
        self.restore()
        capsys.readouterr()
        with fault:
            code = main(self.arguments)
        output, message = capsys.readouterr()
        problems = []
        if code not in (0, 2, 3, 6) or "Traceback" in message or (code and not 1 <= len(message.splitlines()) <= 4):
            problems.append(f"exit code {code}: {message}")
        if code and output:
            problems.append(f"announced before it was durable: {output}")
        problems += self.find_damage(has_ended=code == 0)
        # A partly published export stays in its stage, from which the next export completes it.
        problems += [
            f"{path} is left"
            for path in unfinished(self.folder)
            if path.parent.name != "export" or (path.parent / "manifest.json").exists()
        ]
        if main(self.arguments) != 0:
            problems.append(f"the next run fails: {capsys.readouterr().err}")
        return problems + self.find_leftovers()

    def find_damage(self, *, has_ended: bool) -> list[str]:
        """Return the files that are neither old nor new, after a run of the verb with a fault."""
        now = contents(self.folder)
        problems = [
            f"{name} is neither old nor new"
            for name, old in self.before.items()
            if not self.is_whole(name, now.get(name, b""), old) and not (name not in now and name not in self.after)
        ]
        return problems + [f"{name} is missing" for name in sorted(self.names - now.keys()) if has_ended]

    def find_leftovers(self) -> list[str]:
        """Return what is left of a run with a fault, or not whole, after a run without one."""
        problems = [f"{path} is left by the next run" for path in unfinished(self.folder)]
        problems += [f"the next run lacks {name}" for name in sorted(self.names - contents(self.folder).keys())]
        problems += [f"export/{name} {fault}" for name, fault in verify(Path("run/export")).items() if fault]
        return problems

    def is_whole(self, name: str, text: bytes, old: bytes) -> bool:
        """Return whether a file is the old one, a log with more lines, or a complete new one."""
        if text == old or (text.startswith(old) and text.endswith(b"\n")):
            return True
        if name.endswith(".lock"):  # empty if the process that holds it cannot be noted
            return text == b""
        if name.endswith(".html"):
            return is_sealed(text)
        # Whether a new export is whole is checked by its manifest, after the next run.
        return name in self.after and (text == self.after[name] or name.startswith("run/export/"))


def data() -> list[str]:
    files = [f"data.{split}={split}.csv" for split in ("train", "validation", "test")]
    return ["data=files", *files, "data.cache_dir=cache"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def unfinished(folder: Path) -> list[Path]:
    """Return the unfinished files and folders, without what is inside of such a folder."""
    found = {path for path in folder.rglob("*") if any(fnmatch(path.name, pattern) for pattern in UNFINISHED)}
    return sorted(path for path in found if found.isdisjoint(path.parents))


def distinct(operations: list[tuple[str, str]]) -> list[int]:
    """Return the positions, from 1, of all operations but removals; of several writes to one file, only the first.

    What cannot be removed stays until the next save, by design.
    """
    pairs = zip(operations, [None, *operations], strict=False)
    return [
        place
        for place, (each, last) in enumerate(pairs, 1)
        if each[0] not in REMOVALS and (each != last or each[0] != "write")
    ]


@pytest.fixture
def workspace(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    get_temp_dir()  # of the server that starts processes: trials must not remove it
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINER_CACHE", "encoded")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path


def faults(trials: Trials, every: int) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """Yield the faults at every n-th operation, and the kernel's limits of file sizes for native code."""
    numbers = cycle(ERRORS)
    for place in trials.operations[::every]:
        number = next(numbers)
        fault = DiskFault(trials.folder, number, place, lasts=number == errno.ENOSPC)
        yield f"{number and errno.errorcode[number]} at operation {place}", failing_disk(fault)
    for size in SIZES[:: 1 if every == 1 else 3]:
        yield f"files of {size} bytes", file_size_limit(size)


def check_verb(verb: str, every: int, template: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> int:
    trials = Trials(verb, template, folder)
    problems, count = [], 0
    for name, fault in faults(trials, every):
        problems += [f"{name}: {problem}" for problem in trials.check(fault, capsys)]
        count += 1
    assert not problems, "\n".join(problems)
    return count


@pytest.mark.parametrize(("verb", "every"), [("eval", 6), ("report", 3), ("train", 60)])
def test_some_operations_of_a_verb_may_fail(
    verb: str, every: int, template: Path, workspace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check_verb(verb, every, template, workspace, capsys) > 2


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["eval", "csv", "report", "export"])
def test_a_killed_verb_leaves_nothing_half_made(
    verb: str, template: Path, workspace: Path, figure: Callable[[str, int, int], None]
) -> None:
    trials, chance = Trials(verb, template, workspace), random.Random(0)
    durations = [measure(trials) for _ in range(2)]
    for _ in range(10):
        trials.restore()
        process = start(trials.arguments, workspace.with_suffix(".log"))
        process.join(chance.uniform(0.3, 1.0) * min(durations))
        process.kill()
        process.join()
        assert trials.find_damage(has_ended=process.exitcode == 0) == []
        assert main(trials.arguments) == 0
        assert trials.find_leftovers() == []
        figure("verbs killed at a random moment, old or new files afterwards", 1, 1)


def measure(trials: Trials) -> float:
    """Return the seconds that a verb takes in a process of its own."""
    trials.restore()
    before = time.monotonic()
    process = start(trials.arguments, trials.folder.with_suffix(".log"))
    process.join()
    assert process.exitcode == 0
    return time.monotonic() - before


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_every_operation_of_a_verb_may_fail(
    verb: str,
    template: Path,
    workspace: Path,
    capsys: pytest.CaptureFixture[str],
    figure: Callable[[str, int, int], None],
) -> None:
    every = 20 if verb in ("onnx", "pt2", "torchscript") else 1  # an export of these takes seconds
    count = check_verb(verb, every, template, workspace, capsys)
    figure("operations of a verb made to fail, old or new files afterwards", count, count)
