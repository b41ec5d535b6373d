"""Fuzz the program: run it on hostile command lines, data files, documents, checkpoints and artifacts.

    python scripts/fuzz.py [--cases 1000] [--seed 0] [--only command,data] [--jobs 2]

Each case is a command in a process of its own, forked from one that has imported everything, with limits of memory and
time. A case fails if it prints a traceback, a signal kills it, it hangs, it ends with an undocumented exit code, it
fails without a message, or it prints control characters or a secret. Case N of a run with seed S is the first case of
seed S + N, so one number repeats it; the command that does so is printed. Exit code 1 if a case has failed.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import re
import resource
import runpy
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from random import Random

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))
os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "COLUMNS": "120"}

# The folder above is importable only now.
from tests.support.hostile_commands import SECRET, command_line  # noqa: E402
from tests.support.hostile_documents import write_temperature  # noqa: E402
from tests.support.hostile_files import (  # noqa: E402
    damaged,
    replace_metadata,
    reseal,
    reseal_document,
    write_variants,
)
from tests.support.jobs import TINY, write_data  # noqa: E402

EXIT_CODES = {0, 2, 3, 4, 5, 6, 75, 130, 141}
MEMORY = 4 << 30
"""Bytes that a case may map on top of what the imports have mapped."""
CPU_SECONDS = 20
WALL_SECONDS = 300
"""A case that waits for nothing uses no processor time; other work on the machine only makes a case slower."""
TRACEBACK = "Traceback (most recent call last)"
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

MakeCase = Callable[[Random, Path, Path], list[str]]
"""Writes the files of a case into its folder and returns its command; also gets the folder of the intact files."""


def command_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Return a hostile command line."""
    return command_line(random)


def _damaged_data(random: Random, folder: Path, intact: Path) -> Path:
    name = random.choice(sorted(path.name for path in (intact / "data").iterdir() if path.is_file()))
    file = folder / name
    file.write_bytes(damaged(random, (intact / "data" / name).read_bytes(), name))
    return file


def data_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Plan a job on a damaged data file."""
    file = _damaged_data(random, folder, intact)
    return ["plan", "trial=false", "data=files", f"data.train={file}", f"data.cache_dir={folder / 'cache'}", *TINY]


def input_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Predict for a damaged data file."""
    return ["predict", f"run={intact / 'run'}", f"input={_damaged_data(random, folder, intact)}", "device=cpu"]


def _damaged_copy(random: Random, folder: Path, intact: Path, part: str, pattern: str) -> Path:
    """Copy a part of the intact run and damage one or two of its files whose names match the pattern."""
    copy = folder / "run" / part
    shutil.copytree(intact / "run" / part, copy, ignore=None if part else shutil.ignore_patterns("export"))
    files = sorted(path for path in copy.rglob("*") if path.is_file() and re.search(pattern, path.name))
    for file in random.sample(files, random.choice([1, 1, 1, 2])):
        content = damaged(random, file.read_bytes(), file.name)
        file.unlink()
        file.write_bytes(content)
        if random.random() < 0.5:
            reseal(file)
    return copy


def verbs_on(run: Path) -> list[list[str]]:
    """Return a command of each verb that uses a run."""
    return [
        ["predict", f"run={run}", "input=hammer and saw", "device=cpu"],
        ["eval", f"run={run}", "device=cpu"],
        ["report", f"run={run}"],
        ["diff", f"left={run}", f"right={run}"],
        ["verify", f"run={run}", "steps=1", "device=cpu"],
        ["export", f"run={run}", "export.formats=[safetensors]"],
        ["train", f"resume={run}"],
    ]


def document_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Run a verb on a run with damaged documents."""
    return random.choice(verbs_on(_damaged_copy(random, folder, intact, "", r"\.(json|jsonl|yaml|log)$")))


def checkpoint_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Run a verb on a run with damaged checkpoints."""
    checkpoints = _damaged_copy(random, folder, intact, "checkpoints", r"\.(safetensors|json)$")
    return random.choice(verbs_on(checkpoints.parent))


def artifact_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Use a damaged folder of artifacts; its code stays intact."""
    export = _damaged_copy(random, folder, intact, "export", r"(?<!\.py)$")
    if random.random() < 0.5:
        return [f"{export}/predict.py", "hammer and saw"]
    if random.random() < 0.5:
        return ["predict", f"run={export}", "input=hammer and saw"]
    shutil.copytree(intact / "run", export.parent, ignore=shutil.ignore_patterns("export"), dirs_exist_ok=True)
    return random.choice([["verify", f"run={export.parent}", "steps=1", "device=cpu"], verbs_on(export.parent)[5]])


def result_case(random: Random, folder: Path, intact: Path) -> list[str]:
    """Use what a run or a sweep has found: a damaged decision rule, predictions with damaged metadata, a damaged sweep.

    Checksums fit in half of the cases.
    """
    kind = random.choice(("decision", "predictions", "sweep"))
    if kind == "sweep":
        sweep = folder / "sweeps/s"
        shutil.copytree(intact / "sweeps/s", sweep)
        file = sweep / "sweep.json"
        file.write_bytes(damaged(random, file.read_bytes(), file.name))
        return ["report", f"run={sweep}"]
    run = folder / "run"
    shutil.copytree(intact / "run", run, ignore=shutil.ignore_patterns("export"))
    if kind == "predictions":
        replace_metadata(run / "eval/test.predictions.parquet", lambda data: damaged(random, data, "metadata.json"))
        return random.choice(verbs_on(run)[2:4])
    file = run / "decision.json"
    file.write_bytes(damaged(random, file.read_bytes(), file.name))
    if random.random() < 0.8:
        reseal_document(file)
    return random.choice([*verbs_on(run)[:2], ["eval", f"run={run}", "calibrate=true", "device=cpu"], verbs_on(run)[5]])


AREAS: dict[str, tuple[MakeCase, int]] = {
    "command": (command_case, 10),
    "data": (data_case, 3),
    "input": (input_case, 2),
    "documents": (document_case, 3),
    "checkpoints": (checkpoint_case, 2),
    "artifacts": (artifact_case, 1),
    "results": (result_case, 1),
}
"""Each area with its share of the cases."""


@dataclass(frozen=True)
class Case:
    """A case while it runs."""

    area: str
    seed: int
    command: Sequence[str]
    folder: Path

    @property
    def output(self) -> Path:
        """The file of what it prints."""
        return self.folder.with_suffix(".out")


def start(area: str, seed: int, scratch: Path, intact: Path) -> tuple[int, Case]:
    """Make a case and start its process; return the id of the process and the case."""
    folder = scratch / f"{area}-{seed}"
    folder.mkdir()
    case = Case(area, seed, AREAS[area][0](Random(f"{area}-{seed}"), folder, intact), folder)
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        _run(case)
    return pid, case


def _run(case: Case) -> None:
    """Run a case in this forked process, which ends here."""
    code = 1
    try:
        os.setsid()
        os.chdir(case.folder)
        target = os.open(case.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(target, 1)
        os.dup2(target, 2)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.alarm(WALL_SECONDS)
        os.environ |= {"HOME": str(case.folder), "TRAINER_CACHE": str(case.folder / "encoded")}
        code = execute(case.command)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except Exception:
                traceback.print_exc(file=sys.__stderr__)
        os._exit(code)


def execute(command: Sequence[str]) -> int:
    """Run a command in this process and return its exit code: arguments of `trainer`, or a script with its own."""
    from trainer.cli import main

    if not command or not command[0].endswith(".py"):
        return main(list(command))
    sys.argv = list(command)
    runpy.run_path(command[0], run_name="__main__")
    return 0


def verdict(status: int, output: str) -> str:
    """Return how a case ended: `exit N`, or the kind of its failure."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return "hang" if number in (signal.SIGALRM, signal.SIGXCPU) else f"death by {signal.Signals(number).name}"
    code = os.WEXITSTATUS(status)
    if TRACEBACK in output:
        return "traceback"
    if code not in EXIT_CODES:
        return f"undocumented exit code {code}"
    if code and not output.strip():
        return f"no message, exit code {code}"
    if CONTROL.search(output):
        return "control characters"
    if SECRET in output:
        return "secret shown"
    return f"exit {code}"


def signature(result: str, output: str) -> str:
    """Return what is special about a failure: the place and the last line of a traceback, or the last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    if result == "control characters":
        lines = [line for line in lines if CONTROL.search(line)]
    places = re.findall(r'File "[^"]*/(trainer/[^"]+|predict\.py)", line (\d+)', output)
    place = f"{':'.join(places[-1])} " if places else ""
    return place + ascii(lines[-1][:160] if lines else "")


def prepare(intact: Path, areas: Sequence[str]) -> None:
    """Write intact data, a run and its artifacts for cases to damage, and import everything that cases need.

    A process of its own trains and tries the verbs, as forked cases must not inherit threads; then its imports are
    repeated here.
    """
    (intact / "data").mkdir(parents=True)
    job = [*TINY, *write_data(intact / "data")]
    write_variants(intact / "data")
    commands = [["plan", *job, "trial=false"]]
    if set(areas) - {"command", "data"}:
        run = intact / "run"
        formats = "[safetensors,onnx]" if "artifacts" in areas else "[safetensors]"
        length = ["train.duration=6st", "checkpoint.every=3st", "train.eval_every=3st"]
        commands += [["train", f"run.dir={run}", *job, *length, f"export.formats={formats}"], *verbs_on(run)]
    if "results" in areas:
        commands += [["train", "-m", "seed=0,1", "sweep.name=s", *job, "train.duration=2st", "export.formats=[]"]]
    for name in ("torch", "datasets", "trainer.commands.plan"):  # once for both processes
        import_module(name)
    pid = os.fork()
    if pid == 0:
        os.chdir(intact)
        os.dup2(os.open(intact / "output.txt", os.O_WRONLY | os.O_CREAT), 1)
        for command in commands:
            if code := execute(command):
                print(f"{shlex.join(command)}: exit code {code}", file=sys.stderr, flush=True)
                os._exit(1)
        if "results" in areas:
            write_temperature(intact / "run")
        (intact / "modules.txt").write_text("\n".join(sorted(sys.modules)), encoding="utf-8")
        os._exit(0)
    if os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]):
        sys.exit("The intact run cannot be used.")
    for name in (intact / "modules.txt").read_text(encoding="utf-8").split("\n"):
        with contextlib.suppress(Exception):  # a module that exists only after something else has run
            import_module(name)
    gc.freeze()  # a collection in a forked process would copy all of it


def main() -> int:
    """Run the cases and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=",".join(AREAS), help="areas, joined by commas")
    parser.add_argument("--jobs", type=int, default=2, help="cases at the same time")
    parser.add_argument("--show", action="store_true", help="print the command and the output of every case")
    options = parser.parse_args()
    areas = options.only.split(",")
    if unknown := set(areas) - set(AREAS):
        parser.error(f"--only: unknown area {', '.join(sorted(unknown))}. Known: {', '.join(AREAS)}.")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        prepare(scratch / "intact", areas)
        return fuzz(options, areas, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def ended_cases(options: argparse.Namespace, areas: Sequence[str], scratch: Path) -> Iterator[tuple[Case, int]]:
    """Run the cases and yield each one that has ended, with its status."""
    weighted = [area for area in areas for _ in range(AREAS[area][1])]
    seeds = iter(range(options.seed, options.seed + options.cases))
    running: dict[int, Case] = {}
    try:
        while True:
            while len(running) < options.jobs and (seed := next(seeds, None)) is not None:
                pid, case = start(Random(seed).choice(weighted), seed, scratch, scratch / "intact")
                running[pid] = case
            if not running:
                return
            pid, status = os.wait()
            case = running.pop(pid)
            _kill_group(pid)  # what the case has left running
            yield case, status
            shutil.rmtree(case.folder, ignore_errors=True)
            case.output.unlink(missing_ok=True)
    finally:
        for pid in running:
            _kill_group(pid)


def _kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def fuzz(options: argparse.Namespace, areas: Sequence[str], scratch: Path) -> int:
    """Run the cases until they end or Ctrl-C stops them; return 1 if one has failed."""
    counts: Counter[tuple[str, str]] = Counter()
    failures: Counter[tuple[str, str]] = Counter()
    begin = time.monotonic()
    with contextlib.suppress(KeyboardInterrupt):
        for case, status in ended_cases(options, areas, scratch):
            output = case.output.read_bytes().decode(errors="replace") if case.output.is_file() else ""
            result = verdict(status, output)
            counts[case.area, result] += 1
            if options.show:
                print(shlex.join(case.command), output, result, sep="\n", flush=True)
            if not result.startswith("exit "):
                where = signature(result, output)
                if (result, where) not in failures:
                    repeat = f"python scripts/fuzz.py --cases 1 --show --only {case.area} --seed {case.seed}"
                    print(f"{result}: {where}", repeat, sep="\n    ", flush=True)
                failures[result, where] += 1
    print(f"\n{sum(counts.values())} cases in {time.monotonic() - begin:.0f} s, seed {options.seed}")
    for (area, result), count in sorted(counts.items()):
        print(f"{area:<12} {result:<24} {count}")
    for (result, where), count in failures.most_common():
        print(f"{count:>5} times {result}: {where}")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
