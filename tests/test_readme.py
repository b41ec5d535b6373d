"""The README's commands run as they stand there, only shorter."""

import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import rows, working_in
from trainer.cli import main
from trainer.config.lint import check_command

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL) for line in block.splitlines()]
SHORT = ["debug=smoke", "device=cpu", "logger.console=plain"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory with what the README speaks of: a data file and a module with a part."""
    made = tmp_path_factory.mktemp("readme")
    lines = ["content,category", *(f"{text},{label}" for text, label in rows(200))]
    (made / "my.csv").write_text("\n".join(lines), encoding="utf-8")
    for code in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", code)
        assert name is not None, "a Python block names its file in the first line"
        (made / name[1]).write_text(code, encoding="utf-8")
    with working_in(made):
        yield made
    sys.path[:] = [entry for entry in sys.path if entry != str(made)]


@pytest.fixture(scope="module")
def folder(place: Path) -> Path:
    """The same, with the runs that have names."""
    for command in filter(makes_a_run, COMMANDS):
        assert main(shortened(shlex.split(command)[1:])) == 0
    return place


def shortened(words: list[str]) -> list[str]:
    """A `trainer` command's words, as a short job on the CPU."""
    verb, *rest = [word.replace("device=cuda", "device=cpu") for word in words]
    if verb != "train" or "--help" in rest or any(word.startswith("resume=runs") for word in rest):
        return [verb, *rest]
    short = [word for word in SHORT if word not in rest]
    named = any(word.startswith("run.dir=runs/") for word in rest)
    return [verb, *rest, *short, *([] if named else ["export.formats=[]"])]


def makes_a_run(command: str) -> bool:
    return "run.dir=runs/" in command


OTHERS = list(dict.fromkeys(command for command in COMMANDS if not makes_a_run(command)))
QUICK = [command for command in OTHERS if not command.startswith("trainer train ") or "--" in command]
WHOLE = [command for command in OTHERS if command not in QUICK]


@pytest.mark.parametrize("command", WHOLE)
def test_a_command_line_has_no_fault(command: str, place: Path, request: pytest.FixtureRequest) -> None:
    """All of them run among the slow tests."""
    if "=runs/" in command:
        request.getfixturevalue("folder")
    verb, *words = shlex.split(command)[1:]
    assert check_command(verb, words).request.verb == "train"


@pytest.mark.parametrize("command", [*QUICK, *(pytest.param(each, marks=pytest.mark.slow) for each in WHOLE)])
def test_a_command_runs(command: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(command)
    if program == "trainer":
        assert main(shortened(words)) == 0, capsys.readouterr().err
    elif program == "python":
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
    else:
        assert program == "make"
        # The others would run the tests from within a test.
        assert subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True).returncode == 0


def test_there_are_commands_and_some_make_the_runs_that_they_speak_of() -> None:
    assert len(COMMANDS) > 30
    made = {command.partition("run.dir=")[2].split()[0] for command in filter(makes_a_run, COMMANDS)}
    spoken_of = set(re.findall(r"\bruns/\w+", "\n".join(OTHERS)))
    assert spoken_of == made


def test_make_train_trains(folder: Path) -> None:
    arguments = f"{' '.join(SHORT)} export.formats=[] run.dir={folder}/made"
    # As from a shell: without what the tests say of threads and of a make around them.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", "train", f"ARGS={arguments}"], cwd=ROOT, capture_output=True, env=environment)

    assert done.returncode == 0, done.stderr.decode()
    assert (folder / "made/eval/test.json").exists()


def test_the_example_of_wrong_keys_shows_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    block = re.search(r"```console\n\$ trainer (.*?)\n(.*?)```", TEXT, re.DOTALL)
    assert block is not None

    assert main(shlex.split(block[1])) == 2
    assert capsys.readouterr().err == block[2]


def test_all_options_are_listed() -> None:
    section = TEXT.partition("\n## Parts\n")[2].partition("\n## ")[0]
    table = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))

    for group, options in table.items():
        listed = set(re.findall(r"`(\w+)`", options))
        assert {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")} <= listed, group
    groups = {path.name for path in (ROOT / "conf").iterdir() if path.is_dir()}
    assert table.keys() == groups - {"experiment", "debug", "hydra"}


def test_the_table_of_exports_is_that_of_the_bench() -> None:
    bench = runpy.run_path(str(ROOT / "scripts/bench_export.py"))
    table = bench["table"](json.loads((ROOT / "scripts/results/export.json").read_text(encoding="utf-8")))
    assert len(table.splitlines()) > 10
    assert f"\n\n{table}\n\n" in TEXT
