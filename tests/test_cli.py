"""The command line, up to the start of a job and without torch."""

import errno
import gc
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import working_in
from trainer import __version__, cli
from trainer.config.compose import compose, register_defaults
from trainer.config.help import verb_help
from trainer.errors import CheckpointError, ConfigError, DataError, Interrupted, TrainerError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty working directory; environment and import path are restored afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "argv", ["trainer"])
    return tmp_path


class Started:
    """Replaces the start of a job: records the jobs, and raises the error set for the number of a job."""

    def __init__(self) -> None:
        self.jobs: list[tuple[str, Any, dict[str, Any]]] = []
        self.errors: dict[int, Exception] = {}

    def __call__(self, verb: str, job: Any, config: dict[str, Any]) -> None:
        self.jobs.append((verb, job, config))
        if error := self.errors.get(len(self.jobs) - 1):
            raise error


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """Record the jobs instead of running them."""
    start = Started()
    monkeypatch.setattr(cli, "_start", start)
    return start


def test_help_names_verbs_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert [cli.main(argv) for argv in ([], ["-h"], ["--help"])] == [0, 0, 0]
    pages = capsys.readouterr().out
    page = pages[: len(pages) // 3]
    assert pages == 3 * page
    assert [verb for verb in cli.VERBS if f"\n  {verb} " not in page] == []
    for error in (ConfigError, CheckpointError, DataError, Interrupted):
        assert f" {error.exit_code} " in page


def test_every_verb_is_a_command_with_a_config() -> None:
    assert {path.stem for path in (ROOT / "conf").glob("*.yaml")} == {*cli.VERBS}
    assert {*cli.VERBS} <= {path.stem for path in (ROOT / "trainer" / "commands").glob("*.py")}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"trainer {__version__}\n"


def test_help_of_a_verb_shows_the_keys_of_the_chosen_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "loss=focal", "--help"]) == 0
    page = capsys.readouterr().out
    assert "train.batch_size=32 " in page
    assert "loss=focal: the function to minimize; options: adaptive_softmax, " in page
    assert "\n  For rare classes or labels: cross entropy" in page
    assert "\n  Predict one class for a text.\n" in page
    assert "loss.gamma: 2.0 " in page
    assert not re.search(r"^ *\S*_target_", page, re.MULTILINE)  # as a key; a help text may name it
    assert cli.main(["eval", "--help"]) == 0
    assert "checkpoint=best " in capsys.readouterr().out


def test_help_of_a_task_shows_its_job() -> None:
    register_defaults()
    for option in sorted(path.stem for path in (ROOT / "conf" / "task").glob("*.yaml")):
        config, choices = compose(ROOT / "conf", "train", [f"task={option}"])
        page = verb_help("train", [f"task={option}"])
        headings = dict(re.findall(r"^(\w+)=(\w+): .*options: ", page, re.MULTILINE))
        assert headings == {group: choices[group] or "null" for group in headings}, option
        assert {"task", "data", "model", "loss"} <= {*headings}, option
        assert not re.search(r"^ *\S*_target_|override /|_self_", page, re.MULTILINE), option
        keys = {*re.findall(r"^  task\.(\w+)", page, re.MULTILINE)}
        assert keys == {str(key) for key in config["task"]} - {"_target_"}, option


def test_help_follows_an_experiment_and_ignores_errors() -> None:
    page = verb_help("train", ["experiment=digits", "loss=focall", "--help"])
    assert "\ntask=image_classification: " in page
    assert "\ndata=digits: " in page
    assert "\nloss=cross_entropy: " in page


@pytest.mark.parametrize(
    ("verb", "remedy"),
    [
        ("trian", "Did you mean train?"),
        ("xyz", f"Known: {', '.join(cli.VERBS)}."),
        ("loss=focal", "Put the verb first, for example: trainer train loss=focal"),
        ("epochs=3", "Put the verb first, for example: trainer train train.duration=3ep"),
        ("fit", "Did you mean train?"),
        ("test", "Did you mean eval split=test?"),
        ("-v", "Did you mean --version?"),
        ("--verison", "Did you mean --version?"),
        ("my.csv", "To train on your data, write its job first: trainer init my.csv."),
    ],
)
def test_an_unknown_verb(verb: str, remedy: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "my.csv").touch()
    assert cli.main([verb]) == 2
    assert capsys.readouterr().err.startswith(f"{verb}: unknown verb. {remedy}")


def test_help_may_be_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    for argv, same in {("help",): ["--help"], ("help", "doctor"): ["doctor", "--help"]}.items():
        assert cli.main([*argv]) == cli.main(same) == 0
        page = capsys.readouterr().out
        assert page[: len(page) // 2] == page[len(page) // 2 :]


def test_a_job_starts_and_hydra_leaves_nothing_behind(started: Started, elsewhere: Path) -> None:
    assert cli.main(["train", "seed=3", "loss=focal"]) == 0
    ((verb, job, config),) = started.jobs
    assert (verb, job.seed, config["seed"], job.loss["gamma"]) == ("train", 3, 3, 2.0)
    assert list(elsewhere.iterdir()) == []
    assert str(elsewhere) not in sys.path


def test_garbage_collector_is_on_when_a_job_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    enabled: list[bool] = []
    monkeypatch.setattr(cli, "_start", lambda *_: enabled.append(gc.isenabled()))
    assert cli.main(["train"]) == 0
    assert cli.main(["train", "lss=focal"]) == 2
    assert [*enabled, gc.isenabled()] == [True, True]


@pytest.mark.parametrize("error", [CheckpointError("a", "b"), DataError("a", "b"), Interrupted("a", "b")])
def test_user_error_is_printed_without_a_traceback(
    error: TrainerError, started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.errors[0] = error
    assert cli.main(["train"]) == error.exit_code
    assert capsys.readouterr().err == "a\nb\n"


def test_user_error_that_caused_another_error_is_printed(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    wrapped = RuntimeError("outer")
    wrapped.__cause__ = DataError("inner")
    started.errors[0] = wrapped
    assert cli.main(["train"]) == 6
    assert capsys.readouterr().err == "inner\n"


def test_debug_shows_the_traceback(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    started.errors[0] = DataError("a")
    assert cli.main(["train", "--debug"]) == 6
    assert "Traceback" in capsys.readouterr().err
    assert cli.main(["--debug", "train", "lss=focal"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_bug_is_raised(started: Started) -> None:
    started.errors[0] = ZeroDivisionError("bug")
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize("argv", [["train"], ["train", "-m", "seed=0,1"]])
def test_keyboard_interrupt_has_no_traceback(
    argv: list[str], started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    started.errors[0] = KeyboardInterrupt()  # type: ignore[assignment]
    assert cli.main(argv) == 130
    assert capsys.readouterr().err == ("job 0: seed=0\n" if "-m" in argv else "")
    assert len(started.jobs) == 1


def test_a_sweep_runs_each_job_in_its_own_folder(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "-m", "seed=0,1", "loss=focal,cross_entropy", "hydra.sweep.dir=swept"]) == 0
    assert [job.run.dir for _, job, _ in started.jobs] == [f"swept{os.sep}{number}" for number in range(4)]
    assert [job.seed for _, job, _ in started.jobs] == [0, 0, 1, 1]
    assert "job 1: seed=0 loss=cross_entropy\n" in capsys.readouterr().err


def test_a_failed_job_of_a_sweep_does_not_stop_the_others(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    started.errors[0] = DataError("no data")
    assert cli.main(["train", "-m", "seed=0,1"]) == 6
    assert len(started.jobs) == 2
    assert "no data\n" in capsys.readouterr().err


def test_a_signal_ends_a_sweep(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    started.errors[1] = Interrupted("stopped")
    with pytest.raises(SystemExit) as caught:
        cli.main(["train", "-m", "seed=0,1,2"])
    assert caught.value.code == 75
    assert len(started.jobs) == 2
    sweep = "sweep: stopped in job 1; job 0 is complete. Start the other jobs again.\n"
    assert capsys.readouterr().err.endswith(f"stopped\n{sweep}")


def test_hydra_shows_the_configuration(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "optimizer.lr=3e-4", "--cfg", "job", "--package", "optimizer.lr"]) == 0
    assert capsys.readouterr().out == "0.0003\n"
    assert cli.main(["train", "--info", "searchpath"]) == 0
    assert "Config search path" in capsys.readouterr().out
    assert started.jobs == []


@pytest.mark.parametrize(
    ("line", "words"),
    [("trainer tr", "train"), ("trainer ", " ".join(cli.VERBS)), ("trainer train loss=fo", "loss=focal")],
)
def test_completion(line: str, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    assert cli.main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == words.split()


HEAVY = (
    "import sys; sys.argv[0] = 'trainer'; from trainer.cli import main; code = main(); print(); print(code, *sorted({"
)
HEAVY += "'torch', 'transformers', 'datasets', 'hydra', 'numpy', 'ctypes', 'subprocess'} & set(sys.modules)))"


@pytest.mark.parametrize(
    ("argv", "last"),
    [
        (["--help"], "0"),
        (["train", "--help"], "0"),
        (["train", "lss=focal", "optimizer.lrr=1", "+loss.gama=2"], "2 hydra"),
        (["train", "run.dir=run"], "3 ctypes hydra subprocess"),
    ],
)
def test_heavy_modules_are_not_imported(argv: list[str], last: str) -> None:
    Path("run", "checkpoints").mkdir(parents=True)
    Path("run", ".lock").touch()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(
        [sys.executable, "-c", HEAVY, *argv], capture_output=True, text=True, env=environment, check=True
    )
    assert process.stdout.splitlines()[-1] == last


def test_a_job_with_a_model_of_ours_does_not_load_the_models_of_transformers() -> None:
    code = "import trainer.builders.training, trainer.builders.checkpointed, trainer.commands.export, sys"
    code += "; import trainer.model.pretrained, trainer.model.pretrained_image, trainer.task.text_classification"
    code += "; print('torch' in sys.modules, 'transformers.modeling_utils' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert process.stdout == "True False\n"


def test_closed_output_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m trainer train --help | head -1; exit ${{PIPESTATUS[0]}}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=environment, check=False)
    assert process.stderr == ""
    assert process.stdout == "usage: trainer train [key=value ...] [flags]\n"


@pytest.mark.parametrize(
    ("line", "code", "error"),
    [
        ('exec "$0" -m trainer --version >&- <&-', 0, ""),
        ('exec "$0" -m trainer train seed=-1 2>&-', 2, ""),
        ('exec "$0" -m trainer --version >/dev/full', 3, "a file: cannot be written: No space left on device. Free"),
        ('exec "$0" -m trainer train seed=-1 2>/dev/full', 2, ""),
        ('cd "$1" && rmdir "$1" && exec "$0" -m trainer plan', 2, "working directory: has been removed. Change to"),
    ],
)
def test_closed_or_full_streams_and_a_removed_folder_are_no_bugs(
    line: str, code: int, error: str, tmp_path: Path
) -> None:
    (folder := tmp_path / "removed").mkdir()
    command = ["sh", "-c", line, sys.executable, str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert process.returncode == code, process.stderr
    assert process.stderr.startswith(error)
    assert len(process.stderr.splitlines()) == bool(error)


def test_characters_that_the_screen_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    content = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(content, encoding="ascii"))
    assert cli.main(["--version"]) == 0
    print("\u2581\udc80", flush=True)
    assert content.getvalue().splitlines()[1:] == [rb"\u2581\udc80"]


@pytest.mark.parametrize(
    "flags", [["--cfg", "job"], ["--cfg", "job", "--package", "data.api_key"], ["--info", "config"]]
)
def test_hydra_shows_no_secret(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "+data.api_key=hunter2", "loss=focal", *flags]) == 0
    output = capsys.readouterr().out
    assert "***" in output
    assert "hunter2" not in output


def test_a_folder_of_hydra_that_cannot_be_created(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["diff", "hydra.run.dir=/proc/nowhere"]) == 2
    assert capsys.readouterr().err.startswith("hydra.run.dir: cannot be created (No such file or directory)")


def test_a_limit_under_which_torch_cannot_be_loaded_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda limit: (700_000_000, -1))

    assert cli.main(["plan"]) == 2
    assert capsys.readouterr().err.startswith("out of memory: the libraries of the program do not fit")


class FullDisk(io.StringIO):
    """A file on a disk without space."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--debug"]])
def test_a_full_disk_in_the_place_of_the_screen_is_one_message(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", FullDisk())
    assert cli.main(arguments) == 3
    assert "cannot be written: No space left on device" in capsys.readouterr().err


def test_too_little_memory_names_keys_of_the_verb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "too_large.py").write_text("def model(num_outputs: int):\n    raise MemoryError\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    job = ["task=tabular_classification", "data=breast_cancer", "model=mlp", "device=cpu"]
    with working_in(tmp_path):
        assert cli.main(["plan", *job, "model._target_=too_large.model", "~model.hidden"]) == 2
    assert "out of memory: the job does not fit. Set trial=false" in capsys.readouterr().err


CALLBACK = """
from pathlib import Path
from hydra.experimental.callback import Callback

class Noted(Callback):
    def on_job_start(self, config, **kwargs):
        Path("noted").write_text(str(config.seed))
"""


def test_settings_of_hydra_hold_for_a_job(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (elsewhere / "noting.py").write_text(CALLBACK, encoding="utf-8")
    started_in: list[tuple[Path, str | None]] = []
    monkeypatch.setattr(cli, "_start", lambda *_: started_in.append((Path.cwd(), os.environ.get("SET_FOR_THE_JOB"))))
    job = ["train", "seed=7", "+hydra.job.env_set.SET_FOR_THE_JOB=x", "hydra.run.dir=folder"]
    assert cli.main(job) == 0
    assert (elsewhere / "folder").is_dir()
    assert cli.main([*job, "hydra.job.chdir=true", "+hydra.callbacks.note._target_=noting.Noted"]) == 0
    assert started_in == [(elsewhere, "x"), (elsewhere / "folder", "x")]
    assert (elsewhere / "folder/noted").read_text() == "7"
    assert (Path.cwd(), os.environ.get("SET_FOR_THE_JOB")) == (elsewhere, None)
