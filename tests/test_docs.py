"""The commands in README and docs run as they are written, only shorter."""

import json
import logging
import os
import re
import runpy
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import rows, working_in
from trainer.cli import main
from trainer.config.command import check_command
from trainer.data import stdlib
from trainer.data.quality import LIMITS
from trainer.errors import TrainerError

ROOT = Path(__file__).parent.parent
PAGES = [page for folder in ("", "docs", "docs/tutorials") for page in sorted((ROOT / folder).glob("*.md"))]
WRITTEN = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
TRANSLATIONS = {page: text for page, text in WRITTEN.items() if page.endswith(".zh.md")}
TEXTS = {page: text for page, text in WRITTEN.items() if page not in TRANSLATIONS}
SHORT = ["debug=smoke", "device=cpu", "logger.console=plain"]


def commands_of(text: str) -> list[str]:
    """Return the command lines of the `sh` blocks of a page."""
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


COMMANDS = {page: commands_of(text) for page, text in TEXTS.items()}
STARTS = dict.fromkeys(
    c for commands in COMMANDS.values() for c in commands if c.startswith(("trainer init ", "python make_"))
)
"""The commands that write files which other commands use; each runs once, before the others."""


def makes_a_run(command: str) -> bool:
    return "run.dir=runs/" in command


def runs_in(command: str) -> set[str]:
    return set(re.findall(r"\bruns/\w+", command))


def is_training(command: str) -> bool:
    return command.startswith("trainer train ") and " --" not in command


def is_launched(command: str) -> bool:
    """Return whether a command starts a process for each device."""
    return command.startswith("torchrun ") or (" devices=" in command and not command.startswith("trainer plan "))


def is_quick(command: str) -> bool:
    """Return whether a command takes a few seconds at most, given the run `runs/demo`."""
    takes_long = (
        is_training(command) or is_launched(command) or command.startswith(("trainer export ", "trainer doctor"))
    )
    # With more cases in tests/hostile/test_fuzz.py, and in tests/commands/test_init.py.
    is_tested = command.startswith(("python scripts/fuzz.py ", "python -m pytest "))
    return not takes_long and not is_tested and command not in STARTS and runs_in(command) <= {"runs/demo"}


RUNS = {
    run: command
    for commands in COMMANDS.values()
    for command in commands
    if makes_a_run(command)
    for run in runs_in(command)
}
"""The commands that create the run folders which other commands use."""
QUICK = dict.fromkeys(command for commands in COMMANDS.values() for command in commands if is_quick(command))
TRAINING = {page: list(filter(is_training, commands)) for page, commands in COMMANDS.items()}
TORCHRUN = [command for commands in COMMANDS.values() for command in commands if command.startswith("torchrun ")]
SLOW = dict.fromkeys(
    command
    for commands in COMMANDS.values()
    for command in commands
    if not is_quick(command) and not makes_a_run(command) and command not in STARTS
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with the data file and the modules that the pages mention."""
    made = tmp_path_factory.mktemp("docs")
    lines = ["content,category", *(f"{text},{label}" for text, label in rows(200))]
    (made / "my.csv").write_text("\n".join(lines), encoding="utf-8")
    for code in (code for text in TEXTS.values() for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL)):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None, "a Python block names its file in the first line"
        (made / name[1]).write_text(code, encoding="utf-8")
    with working_in(made), pytest.MonkeyPatch.context() as patch:
        # A part of the library with all topics: its parsing, and vocabularies of all its words, take seconds.
        some = {topic: modules.split()[:2] for topic, modules in stdlib._MODULES_OF_TOPIC.items()}
        patch.setattr(stdlib, "_TOPIC", {module: topic for topic, modules in some.items() for module in modules})
        # The sources read the same modules.
        documented_objects = stdlib.documented_objects
        patch.setattr(stdlib, "documented_objects", cache(lambda source: [*documented_objects(source)]))
        for command in STARTS:
            run_command(command)
        yield made


def ensure_runs(command: str, folder: Path) -> None:
    """Create the run folders that a command uses, if they do not exist yet."""
    for run in sorted(runs_in(command)):
        if not (folder / run).exists():
            run_command(RUNS[run])


def run_command(command: str) -> None:
    program, *words = shlex.split(command)
    if program == "trainer":
        with recorded_doubts() as doubts:
            assert main(shortened(words)) == 0, command
        assert doubts == [], command
    elif program == "torchrun":
        # Two processes of this machine instead of those of several machines.
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
        trainer = str(Path(sys.executable).with_name("trainer"))
        line = [sys.executable, *launcher, trainer, *shortened(words[words.index("trainer") + 1 :])]
        subprocess.run(line, check=True, capture_output=True)
    elif command in STARTS:
        with warnings.catch_warnings(action="ignore"):  # to look at all of the standard library finds old parts
            runpy.run_path(words[0])
    elif words[0] == "quick.py":  # without a start of Python, which takes longer than the rest
        runpy.run_path(words[0])
    elif program == "python":
        script = [str(ROOT / words[0]) if words[0].startswith("scripts/") else words[0], *words[1:]]
        subprocess.run([sys.executable, *script], check=True, capture_output=True)
    else:
        assert program == "make"
        # Really running them would run the tests from within a test.
        assert subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode == 0


@contextmanager
def recorded_doubts() -> Iterator[list[str]]:
    """Record the warnings about the data in the block, except for shares such as the one of duplicates."""
    doubts: list[str] = []
    handler = logging.Handler(logging.WARNING)

    def record(warning: logging.LogRecord) -> None:
        text = warning.getMessage()
        doubts.extend([text] if not any(f"% {name}" in text for name in LIMITS) else [])

    handler.emit = record  # type: ignore[method-assign]
    loggers = [logging.getLogger(name) for name in ("trainer.data", "trainer.builders.data")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield doubts
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


def shortened(words: list[str]) -> list[str]:
    """Return the words of a `trainer` command as a short job on the CPU."""
    verb, *rest = [word.replace("device=cuda", "device=cpu") for word in words]
    if verb == "plan":
        # The trial of large models takes seconds; tests/commands/test_plan.py runs one.
        added = ["debug=smoke", "trial=false"]
        return [verb, *rest, *(word for word in added if word not in rest)]
    if verb != "train" or "--help" in rest or any(word.startswith("resume=runs") for word in rest):
        return [verb, *rest]
    # As many processes as any machine can run.
    rest = [re.sub(r"^(devices|shard)=(\d+|auto)$", r"\1=2", word) for word in rest]
    short = [word for word in SHORT if word not in rest]
    is_named = any(word.startswith("run.dir=runs/") for word in rest)
    return [verb, *rest, *short, *([] if is_named else ["export.formats=[]"])]


@pytest.mark.parametrize("command", QUICK)
def test_a_quick_command_runs(command: str, folder: Path) -> None:
    ensure_runs(command, folder)
    run_command(command)


@pytest.mark.parametrize("page", [page for page, commands in TRAINING.items() if commands])
def test_training_commands_are_valid(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))  # as the command does
    for command in TRAINING[page]:
        if not makes_a_run(command) and runs_in(command) <= {"runs/demo"}:
            ensure_runs(command, folder)
        elif not makes_a_run(command):
            continue
        verb, *words = shlex.split(command)[1:]
        assert check_command(verb, words).line.verb == "train", command


def test_commands_that_are_only_shown_are_valid(folder: Path) -> None:
    shown = {c for text in TEXTS.values() for c in re.findall(r"^\$ trainer ((?:.*\\\n)*.*)\n", text, re.MULTILINE)}
    shown -= {"train lss=focal optimizer.lrr=1 epochs=3 +loss.gama=2", "train --num_train_epochs 3 warmup_ratio=0.1"}
    assert len(shown) > 5
    for command in shown:
        if not command.startswith("serve "):  # which is checked without its run
            ensure_runs(command, folder)
        verb, *words = shlex.split(command.replace("\\\n", " "))
        messages: tuple[str, ...] = ()
        try:
            check_command(verb, words)
        except TrainerError as error:
            messages = error.messages
        # Files that a reader brings along.
        assert all("no such file" in message for message in messages), (command, messages)


def test_commands_of_torchrun_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TORCHRUN
    for command in TORCHRUN:
        words = shlex.split(command)
        monkeypatch.setenv("RANK", "0")
        verb, *rest = words[words.index("trainer") + 1 :]
        assert check_command(verb, rest).line.verb == "train", command


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch.compile
@pytest.mark.parametrize("command", SLOW)
def test_a_slow_command_runs(command: str, folder: Path) -> None:
    ensure_runs(command, folder)
    run_command(command)


def trains_on_the_library(command: str) -> bool:
    """Return whether a command trains on the standard library, with parts of this project, in one process."""
    experiment = re.search(r"\bexperiment=(\w+)", command)
    return not is_launched(command) and "my_" not in command and (not experiment or experiment[1].startswith("stdlib"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [*filter(trains_on_the_library, dict.fromkeys(RUNS.values()))])
def test_a_run_of_the_pages_is_trained_on_the_whole_library(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other commands read two modules of each topic."""
    topics = stdlib._MODULES_OF_TOPIC.items()
    whole = {module: topic for topic, modules in topics for module in modules.split()}
    monkeypatch.setattr(stdlib, "_TOPIC", whole)
    with working_in(tmp_path):
        run_command(command)
    (run,) = runs_in(command)
    assert (tmp_path / run / "eval/test.json").exists()


def test_the_reference_is_current() -> None:
    generated = runpy.run_path(str(ROOT / "scripts/reference.py"))["pages"]()
    stored = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs/reference").glob("*.md")}
    assert stored == generated, "docs/reference is out of date: run `make docs`"


def test_every_run_that_is_used_is_created_by_a_command() -> None:
    used = {run for commands in COMMANDS.values() for command in commands for run in runs_in(command)}
    assert used == RUNS.keys()
    assert sum(map(len, COMMANDS.values())) > 60


def structure_of(text: str) -> dict[str, list[Any]]:
    """Return what a page and its translation have in common: levels of headings, code blocks, sizes of tables."""
    blocks = re.findall(r"^```(.*?)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE)]
    return {
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "blocks": blocks,
        "indented": [line.split()[0] for line in re.findall(r"^    .+", prose, re.MULTILINE)],
        "tables": [[len(re.findall(r"(?<!\\)\|", row)) for row in table] for table in tables],
        "points": re.findall(r"^ *\* ", prose, re.MULTILINE),
    }


@pytest.mark.parametrize("page", TRANSLATIONS)
def test_a_translation_has_the_structure_of_its_page(page: str) -> None:
    original = page.replace(".zh.md", ".md")
    structure = structure_of(TEXTS[original])

    assert structure_of(TRANSLATIONS[page]) == structure
    assert len(structure["headings"]) > 5
    assert len(structure["tables"]) > 1
    assert f"({Path(page).name})" in TEXTS[original].partition("\n## ")[0]
    assert f"({Path(original).name})" in TRANSLATIONS[page].partition("\n## ")[0]


def test_every_test_that_a_page_names_exists() -> None:
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = {name for text in TEXTS.values() for name in re.findall(r"`(test_\w+)`", text)}
    assert named
    assert {
        name for name in named if f"def {name}(" not in tests and not list((ROOT / "tests").rglob(f"{name}.py"))
    } == set()


def test_every_path_in_the_architecture_page_exists() -> None:
    paths = re.findall(r"`((?:trainer|conf|tests|scripts)/[\w/.]+)`", TEXTS["docs/architecture.md"])
    assert len(paths) > 15
    for path in paths:
        assert (ROOT / path).exists(), path


@pytest.mark.slow
def test_make_train_trains(folder: Path) -> None:
    arguments = f"{' '.join(SHORT)} export.formats=[] run.dir={folder}/made"
    # As from a shell, without the variables of a make process around the tests.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "train", f"ARGS={arguments}"], cwd=ROOT, capture_output=True, env=environment)

    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "made/eval/test.json").exists()


@pytest.mark.parametrize(("page", "start"), [("README.md", "train lss"), ("docs/from-transformers.md", "train --num")])
def test_the_examples_of_wrong_keys_show_the_real_output(
    page: str, start: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    block = re.search(rf"```console\n\$ trainer ({start}.*?)\n(.*?)```", TEXTS[page], re.DOTALL)
    assert block is not None

    with working_in(tmp_path):  # without the options that other pages make
        assert main(shlex.split(block[1])) == 2
    assert capsys.readouterr().err == block[2]


def test_the_walk_of_the_first_hour_ends_at_a_surprise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = runpy.run_path(str(ROOT / "scripts/first_hour.py"))
    commands = script["commands_of"](TEXTS["docs/start.md"])
    assert commands == COMMANDS["docs/start.md"]
    short = [command.partition(" debug=smoke")[0] for command in script["shortened"](commands)]
    assert set(short) < set(commands)
    assert [command.split()[1] for command in short][:4] == ["init", "plan", "train", "eval"]
    assert all(runs_in(command) <= {"runs/mine"} for command in short)

    script["write_data"](tmp_path / "my.csv")
    script["walk"](["test -f my.csv", "python3 -c pass"], tmp_path, os.environ)
    for surprise in ("exit 3", "echo 'Traceback (most recent call last)'", "read answer"):
        with pytest.raises(SystemExit, match=re.escape(surprise)):
            script["walk"](["true", surprise, "touch after"], tmp_path, os.environ)
    assert not (tmp_path / "after").exists()


def test_the_table_of_exported_models_equals_the_stored_result() -> None:
    bench = runpy.run_path(str(ROOT / "scripts/bench_export.py"))
    table = bench["table"](json.loads((ROOT / "scripts/results/export.json").read_text(encoding="utf-8")))
    assert len(table.splitlines()) > 10
    assert f"\n\n{table}\n\n" in TEXTS["docs/benchmarks.md"]


def test_the_table_of_several_devices_equals_the_stored_result() -> None:
    bench = runpy.run_path(str(ROOT / "scripts/bench_devices.py"))
    table = bench["table"](json.loads((ROOT / "scripts/results/devices.json").read_text(encoding="utf-8")))
    assert len(table.splitlines()) > 4
    assert f"\n\n{table}\n\n" in TEXTS["docs/benchmarks.md"]


@pytest.mark.slow
def test_the_benchmark_against_other_trainers_runs(tmp_path: Path) -> None:
    result = tmp_path / "peers.json"
    command = [sys.executable, "scripts/bench_peers.py", "--smoke", "--threads", "1", "--output", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("| whole job, ") == 3
    measured = json.loads(result.read_text(encoding="utf-8"))
    assert set(measured["first_step"]["ratios"]) == {"trainer"}
    assert all(
        0 < ratio < 10
        for part in ("whole", "first_step")
        for each in measured[part]["ratios"].values()
        for ratio in each.values()
    )


@pytest.mark.slow
def test_the_benchmark_of_memory_on_many_rows_runs(tmp_path: Path) -> None:
    result = tmp_path / "rows.json"
    command = [sys.executable, "scripts/bench_memory.py", "--rows", "2500", "--output", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    peaks = json.loads(result.read_text(encoding="utf-8"))["rows"]["2500"]
    assert 2**26 < peaks["anonymous_bytes"] < peaks["bytes"]


@pytest.mark.slow
def test_the_study_of_heads_runs_and_goes_on_where_it_was(tmp_path: Path) -> None:
    result = tmp_path / "heads.json"
    keys = ["loader.limit=100", "train.duration=2", "task.max_length=16"]
    command = [sys.executable, "scripts/study_heads.py", "--encoders", "ours", "--starts", "0.02,priors"]
    for seeds in ("1", "2"):
        call = [*command, "--seeds", seeds, "--output", str(result), *keys]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert done.stdout.count(" s CPU ") == 2, "the runs of the first seed were not kept"
    study = json.loads(result.read_text(encoding="utf-8"))
    assert [(run["start"], run["seed"]) for run in study["runs"]] == [
        (start, seed) for seed in (0, 1) for start in ("0.02", "priors")
    ]
    assert {row["seeds"] for row in study["differences"]} == {2}


@pytest.mark.slow
def test_the_study_of_heads_runs_small_jobs_of_several_lengths() -> None:
    options = ["--encoders", "diabetes", "--starts", "features,0.02", "--steps", "1,2", "--seeds", "2"]
    command = [sys.executable, "scripts/study_heads.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" s CPU ") == 8
    for steps in (1, 2):
        assert re.search(
            rf"^diabetes +{steps} steps  0.02 - features +weights, test accuracy .*2 seeds", done.stdout, re.M
        )
