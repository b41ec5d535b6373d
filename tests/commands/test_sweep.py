"""Sweeps with a name: one folder, one table, and the same command continues them."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, checkpoint_steps, train, working_in, write_data
from tests.support.pages import check_page
from tests.support.processes import start, wait_until
from trainer.cli import main
from trainer.commands.run_folders import read_best_score
from trainer.commands.sweep import run_sweep
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob
from trainer.config.sweep import Sweep, SweepJob, job_name
from trainer.loop import fit

STEPS = 8
GRID = ["loss=focal,cross_entropy", "seed=0,1"]
JOBS = [f"loss-{loss}_seed-{seed}" for loss in ("focal", "cross_entropy") for seed in (0, 1)]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("sweep")
    with working_in(folder):
        yield [*TINY, *write_data(folder), f"train.duration={STEPS}", "checkpoint.every=2"]


@pytest.fixture(scope="module")
def whole(job: list[str]) -> Path:
    """The folder of a sweep that was never stopped."""
    assert sweep(job, "whole") == 0
    return Path("sweeps/whole")


def sweep(job: list[str], name: str, *overrides: str, grid: list[str] = GRID) -> int:
    return main(["train", "-m", *job, *grid, f"sweep.name={name}", *overrides])


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_sweep(folder: Path, whole: Path) -> None:
    """Check that every job ended in the same bytes, and that the tables are equal."""
    for name in JOBS:
        assert checkpoint_steps(folder / name)[-1] == STEPS
        assert checkpoint_files(folder / name, STEPS) == checkpoint_files(whole / name, STEPS)
    assert (folder / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()


def test_jobs_equal_single_runs_and_the_table_groups_them_by_seed(job: list[str], whole: Path) -> None:
    assert train(Path("single"), *job, "loss=focal", "seed=1") == 0
    assert checkpoint_files(whole / JOBS[1], STEPS) == checkpoint_files(Path("single"), STEPS)

    rows = table(whole)
    assert {row["loss"] for row in rows} == {"focal", "cross_entropy"}
    means = [float(row["mean"]) for row in rows]
    assert means == sorted(means, reverse=True)
    for row in rows:
        values = [best_value(whole / f"loss-{row['loss']}_seed-{seed}") for seed in (0, 1)]
        assert float(row["mean"]) == pytest.approx(sum(values) / 2)
        assert (row["low"], row["high"]) == ("", "")
        assert (row["metric"], row["jobs"], row["missing"], row["reason"]) == ("accuracy", "2", "0", "")
    page = (whole / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "cross_entropy" in page


def best_value(run: Path) -> float:
    score = read_best_score(run)
    assert score is not None
    return float(score["value"])


def test_two_sweeps_are_compared_by_their_best_settings_and_by_equal_ones(
    job: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(job, "faster", "optimizer.lr=0.05", grid=["loss=focal,poly", "seed=1,0,2"]) == 0
    capsys.readouterr()
    assert main(["diff", "json=true", str(whole), "sweeps/faster"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"].keys() == {"optimizer.lr"}
    best, focal = document["means"]
    assert (focal["setting"], focal["pairs"]) == ("loss=focal", 2)
    runs = [[folder / f"loss-focal_seed-{seed}" for seed in (0, 1)] for folder in (whole, Path("sweeps/faster"))]
    means = [sum(map(best_value, side)) / 2 for side in runs]
    assert [focal["left"], focal["right"]] == pytest.approx(means)
    assert focal["difference"] == pytest.approx(means[1] - means[0])
    assert (focal["interval"], focal["verdict"]) == (None, None)
    assert best["pairs"] == 2
    assert main(["diff", str(whole), "sweeps/faster"]) == 0
    shown = capsys.readouterr().out
    assert f"{whole}: Best: loss=" in shown
    assert "- needs 3 jobs" in shown
    assert main(["diff", "sweeps/faster", "sweeps/faster"]) == 0
    assert "no difference shown between the best settings" in capsys.readouterr().out

    assert main(["diff", str(whole), f"{whole}/{JOBS[0]}"]) == 3
    message = (
        f"right: a sweep can only be compared with another sweep, got '{whole}/{JOBS[0]}'. Name two sweeps, or two runs"
    )
    assert message in capsys.readouterr().err
    assert main(["diff", f"{whole}/{JOBS[0]}", str(whole)]) == 3
    assert "left: a sweep can only be compared with another sweep" in capsys.readouterr().err


def test_the_same_command_skips_what_is_complete_and_runs_what_is_new(
    job: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(job, "grown", grid=["loss=focal", "seed=0,1"]) == 0
    written = {path: path.stat().st_mtime_ns for path in Path("sweeps/grown").glob("*/metrics.jsonl")}
    assert len(written) == 2
    capsys.readouterr()
    grid = ["loss=focal", "seed=0,1,2"]
    assert sweep(job, "grown", "logger.console=plain", "sweep.jobs=1", grid=grid) == 0
    assert "sweep: 2 of 3 jobs are complete already" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert [row["jobs"] for row in table(Path("sweeps/grown"))] == ["3"]


def test_a_sweep_of_an_earlier_version_continues(job: list[str], whole: Path) -> None:
    file = whole / "sweep.json"
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["config"].pop("eval")
    assert document["config"]["train"].pop("patience", 0) is None
    file.write_text(json.dumps(document), encoding="utf-8")
    assert sweep(job, "whole") == 0
    assert "eval" in json.loads(file.read_text(encoding="utf-8"))["config"]


def test_settings_that_leave_a_key_out_are_trained_once_with_the_config_s_value(tmp_path: Path) -> None:
    commands: list[tuple[list[str], dict[str, dict[str, str]]]] = [
        (["seed=0,1"], {"seed-0": {"seed": "0"}, "seed-1": {"seed": "1"}}),
        (
            ["loss=focal,cross_entropy", "seed=0"],
            {
                "seed-0_loss-focal": {"seed": "0", "loss": "focal"},
                "seed-0": {"seed": "0", "loss": "cross_entropy"},
                "seed-1": {"seed": "1", "loss": "cross_entropy"},
            },
        ),
        (["seed=1"], {"seed-1": {"seed": "1", "loss": "cross_entropy"}}),
        (["seed=0,1", "optimizer.lr=1e-3,0.001"], {}),
    ]
    stored: dict[str, Mapping[str, str]] = {}
    trained: list[str] = []
    with working_in(tmp_path):
        for grid, expected in commands:
            sweep = check_command("train", ["-m", *grid, "sweep.name=x"]).sweep
            assert sweep is not None
            for each in sweep.jobs:
                single = check_command("train", each.argv).single
                assert single is not None
                assert isinstance(single.job, TrainJob)
                assert str(single.job.seed) == each.changes["seed"]
                trained += [each.name] if each.name not in stored else []
            stored |= {**sweep.earlier, **{each.name: each.changes for each in sweep.jobs}}
            assert {name: stored[name] for name in expected} == expected
            jobs = [{"name": name, "changes": changes} for name, changes in stored.items()]
            document = {"format": 1, "config": sweep.config, "jobs": jobs}
            Path("sweeps/x").mkdir(parents=True, exist_ok=True)
            Path("sweeps/x/sweep.json").write_text(json.dumps(document), encoding="utf-8")
    default = stored["seed-0"]["optimizer.lr"]
    assert trained == ["seed-0", "seed-1", "seed-0_loss-focal"] + [
        f"seed-{seed}_loss-cross_entropy_optimizer.lr-1e-3" for seed in (0, 1) if float(default) != 1e-3
    ]
    assert len({tuple(changes.items()) for changes in stored.values()}) == len(stored)


def test_a_key_that_an_option_of_the_job_may_set_stays_out(tmp_path: Path) -> None:
    with working_in(tmp_path):
        first = check_command("train", ["-m", "optimizer=sgd,adamw", "sweep.name=x"]).sweep
        assert first is not None
        jobs = [{"name": each.name, "changes": each.changes} for each in first.jobs]
        Path("sweeps/x").mkdir(parents=True)
        document = json.dumps({"format": 1, "config": first.config, "jobs": jobs})
        Path("sweeps/x/sweep.json").write_text(document, encoding="utf-8")
        second = check_command("train", ["-m", "optimizer.lr=0.1,0.2", "sweep.name=x"]).sweep
    assert second is not None
    assert second.earlier["optimizer-sgd"] == {"optimizer": "sgd"}
    assert [each.changes["optimizer.lr"] for each in second.jobs] == ["0.1", "0.2"]


def test_a_sweep_of_single_values_is_named_after_them(tmp_path: Path) -> None:
    with working_in(tmp_path):
        sweep = check_command("train", ["-m", "loss=focal", "optimizer.lr=1e-4", "sweep.name=x"]).sweep
        assert sweep is not None
        assert [each.name for each in sweep.jobs] == ["loss-focal_optimizer.lr-1e-4"]
        # A sweep of an earlier version has a job without a name of its own.
        Path("sweeps/x").mkdir(parents=True)
        document = {"format": 1, "config": sweep.config, "jobs": [{"name": "job", "changes": {}}]}
        Path("sweeps/x/sweep.json").write_text(json.dumps(document), encoding="utf-8")
        sweep = check_command("train", ["-m", "loss=focal", "optimizer.lr=1e-4", "sweep.name=x"]).sweep
        assert sweep is not None
        assert [each.name for each in sweep.jobs] == ["job"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.duration=9"], "train.duration: differs from the sweep that is there: 8 -> 9. Keep the old value, or "),
        (["checkpoint.monitor=loss"], "checkpoint.monitor: differs from the sweep"),
        (["optimizer=sgd"], "optimizer._target_: differs from the sweep"),
    ],
)
def test_a_changed_sweep_is_refused(
    overrides: list[str], message: str, job: list[str], whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(whole.rglob("*"))
    assert sweep(job, "whole", *overrides, grid=["loss=focal,poly", "seed=7,8"]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert sorted(whole.rglob("*")) == before


def test_a_failed_job_is_in_the_table_and_does_not_stop_the_others(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["optimizer=sgd", "optimizer.lr=1e38,0.1", "train.max_grad_norm=null"]
    assert sweep(job, "failed", grid=grid) == 5
    rows = table(Path("sweeps/failed"))
    assert [row["optimizer.lr"] for row in rows] == ["0.1", "1e+38"]
    assert (rows[0]["jobs"], rows[0]["missing"], rows[1]["jobs"], rows[1]["missing"]) == ("1", "0", "0", "1")
    reason = "step 3: the run diverged: loss nan, gradient norm nan; the weights were not updated."
    assert rows[1]["reason"] == reason
    assert rows[1]["mean"] == ""


@pytest.mark.parametrize("parallel", [1, 2])
def test_jobs_that_fail_in_processes_of_their_own_hand_over_their_reason(parallel: int, tmp_path: Path) -> None:
    jobs = tuple(SweepJob(f"job-{key}", {"key": key}, (f"{key}=1",)) for key in ("lss", "sed"))
    with working_in(tmp_path):
        code = run_sweep(Sweep(Path("sweeps/wrong"), parallel, {}, jobs), lambda argv: check_command("train", argv))
        rows = table(Path("sweeps/wrong"))
    assert code == 2
    assert [row["reason"] for row in rows] == [
        "lss: unknown key, got 1. Did you mean loss?",
        "sed: unknown key, got 1. Did you mean seed?",
    ]


COLLECTOR = """
from hydra.experimental.callback import Callback

values = []

class Collect(Callback):
    def on_job_end(self, config, job_return, **kwargs):
        values.append(job_return.return_value)
"""


def test_the_monitored_metric_is_the_objective_of_a_sweep_of_hydra(
    job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("objective.py").write_text(COLLECTOR, encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    callback = "+hydra.callbacks.collect._target_=objective.Collect"
    assert main(["train", "-m", *job, "seed=0,1", callback, "hydra.sweep.dir=objective"]) == 0
    assert sys.modules["objective"].values == [best_value(Path(f"objective/{number}")) for number in (0, 1)]
    shown = [line for line in capsys.readouterr().err.splitlines() if "better" in line]
    assert len(shown) == 2
    assert all(re.fullmatch(r"job \d: accuracy [\d.]+ \(higher is better\)", line) for line in shown)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sweep.name=x"], "sweep.name: needs a sweep, got 'x'. Use trainer train with --multirun (-m)."),
        (["-m", "seed=0,1", "sweep.jobs=2"], "sweep.jobs: needs a sweep with a name, got 2. Set sweep.name."),
        (["-m", "sweep.name=x,y"], "sweep.name: has several values, got 'x,y'. Give it one."),
        (["-m", "seed=0,1", "sweep.name=a/b"], "sweep.name: must be the name of a folder, got 'a/b'."),
        (["-m", "seed=0,1", "sweep.name=x", "run.dir=y"], "run.dir: each job of a sweep has its own folder, got 'y'."),
        (["-m", "seed=0,1", "sweep.name=x", "hydra.sweep.dir=y"], "hydra.sweep.dir: has no effect on a sweep with a n"),
        (
            ["-m", "optimizer.lr=interval(1e-4,1e-2)", "sweep.name=x"],
            "optimizer.lr: an interval has no list of values, got 'interval(1e-4,1e-2)'. List values, or set sweep",
        ),
        (["-m", "optimizer.lr=interval(-1,1e-2)", "sweep.name=x"], "optimizer.lr: must be greater than 0, got -0.495."),
        (["-m", "loss=focal,poly", "sweep.trials=3"], "sweep.trials: needs a sweep with a name, got 3."),
        (
            ["-m", "seed=0,1", "sweep.name=x", "sweep.trials=3"],
            "seed: a search must not choose the seed, got '0,1'. Give it one value, and run the best settings again",
        ),
    ],
)
def test_wrong_keys_of_a_sweep(
    overrides: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working_in(tmp_path):
        assert main(["train", *overrides]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.slow
def test_the_launchers_of_slurm_run_a_sweep_here_and_write_its_script(job: list[str]) -> None:
    pytest.importorskip("submitit", reason="these launchers need the extra slurm, which is not in dev")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    command = [sys.executable, "-m", "trainer", "train", "-m", *job, "export.formats=[]", "seed=0,1"]
    script = [str(ROOT / "scripts/slurm_dry_run.sh"), *command, "hydra/launcher=submitit_slurm"]
    script.append("hydra.launcher.timeout_min=240")
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert {"#SBATCH --array=0-1%2", "#SBATCH --time=240"} <= {*done.stdout.splitlines()}
    assert not list(Path().glob("runs/multirun/*/*/metrics.jsonl"))
    subprocess.run([*command, "hydra/launcher=submitit_local", "hydra.sweep.dir=local"], env=environment, check=True)
    no_time = [*command, "hydra/launcher=submitit_local", "hydra.launcher.timeout_min=0", "train.duration=100000"]
    done = subprocess.run(no_time, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (75, 1)
    assert "a job has ended without a result" in done.stderr
    assert Path(done.stderr.rpartition(" Read ")[2].strip().removesuffix(".")).is_file()
    for name, content in (("sbatch", "echo invalid partition >&2; exit 1"), ("srun", "exit 0")):
        Path("bin").mkdir(exist_ok=True)
        Path("bin", name).write_text(f"#!/bin/sh\n{content}\n", encoding="utf-8")
        Path("bin", name).chmod(0o755)
    for path, problem in (
        ("bin:", "Slurm has refused the jobs (invalid partition)"),
        ("", "this machine has no Slurm"),
    ):
        variables = environment | {"PATH": path + os.environ["PATH"]}
        line = [*command, "hydra/launcher=submitit_slurm"]
        done = subprocess.run(line, env=variables, capture_output=True, text=True, check=False)
        assert (done.returncode, problem in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    for number in "01":
        assert '"event": "end"' in Path("local", number, "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "code", "shown"),
    [("sbatch --parsable job.sh; echo not shown", 0, "#SBATCH --time=1\n"), ("echo wrong >&2; exit 2", 2, "wrong\n")],
)
def test_a_dry_run_of_slurm_prints_the_script_or_the_problem(
    command: str, code: int, shown: str, tmp_path: Path
) -> None:
    (tmp_path / "job.sh").write_text("#SBATCH --time=1\n", encoding="utf-8")
    script = [str(ROOT / "scripts/slurm_dry_run.sh"), "sh", "-c", command]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (code, shown)


@pytest.mark.slow
@pytest.mark.parametrize("monitor", ["accuracy", "loss"])
def test_a_killed_search_ends_with_the_same_table(monitor: str, job: list[str]) -> None:
    pytest.importorskip("optuna", reason="searches need the extra optuna, which is not in dev")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)])}
    space = ["optimizer.lr=tag(log,interval(1e-6,1e-2))", "loss=focal,cross_entropy", f"checkpoint.monitor={monitor}"]
    command = [sys.executable, "-m", "trainer", "train", "-m", *job, *space, "train.eval_every=2", "sweep.trials=8"]
    subprocess.run([*command, f"sweep.name=search-{monitor}"], env=environment, check=True)
    whole = Path(f"sweeps/search-{monitor}")
    times = random.Random(1)
    for _ in range(4):
        process = subprocess.Popen([*command, f"sweep.name=killed-{monitor}"], env=environment)
        time.sleep(times.uniform(8, 25))
        process.kill()
        process.wait()
    subprocess.run([*command, f"sweep.name=killed-{monitor}"], env=environment, check=True)
    assert (Path(f"sweeps/killed-{monitor}") / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    rows = table(whole)
    assert sum(int(row["jobs"]) + int(row["missing"]) for row in rows) == 8
    assert {row["reason"].partition(" at ")[0] for row in rows} <= {"", "pruned"}
    values = [float(row["mean"]) for row in rows if row["mean"]]
    assert values == sorted(values, reverse=monitor == "accuracy")


def test_a_folder_with_other_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sweeps" / "x").mkdir(parents=True)
    (tmp_path / "sweeps" / "x" / "mine").touch()
    with working_in(tmp_path):
        assert main(["train", "-m", "seed=0,1", "sweep.name=x"]) == 3
    assert capsys.readouterr().err.startswith("sweep.name: contains files that are not from a run")


def write_sweep(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True)
    jobs = [{"name": name, "changes": {"seed": str(seed)}} for seed, name in enumerate(names)]
    (folder / "sweep.json").write_text(json.dumps({"format": 1, "config": {"seed": 0}, "jobs": jobs}))


@pytest.mark.parametrize("name", ["../seed-0", "/seed-0", "..", "seed-0/..", ""])
def test_a_job_is_a_folder_of_its_sweep(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        write_sweep(Path("sweeps/x"), name, "seed-1")
        write_sweep(Path("sweeps/y"), "seed-0", "seed-1")
        for command in (
            ["report", "run=sweeps/x"],
            ["diff", "left=sweeps/y", "right=sweeps/x"],
            ["train", "-m", "seed=0,1", "sweep.name=x"],
        ):
            assert main(command) == 3
            message = f"sweeps/x/sweep.json: is damaged: names the job {name!r}, which is no folder of the sweep."
            assert message in capsys.readouterr().err
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["sweep.json", "sweep.json"]


def test_a_sweep_contains_no_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        for name in ("x", "y"):
            write_sweep(Path("sweeps") / name, "seed-0")
        Path("sweeps/x/seed-0").symlink_to(tmp_path)
        for command in (["report", "run=sweeps/x"], ["diff", "left=sweeps/y", "right=sweeps/x"]):
            assert main(command) == 3
            assert "sweeps/x/seed-0: is a link, which a run folder may not contain" in capsys.readouterr().err


def test_names_of_jobs_need_no_quotes() -> None:
    assert job_name({"loss": "focal", "optimizer.lr": "0.001"}) == "loss-focal_optimizer.lr-0.001"
    assert job_name({}) == "job"
    odd = [job_name({"data.train": value}) for value in ("a b.csv", "a/b.csv", "x" * 300, "x" * 301)]
    assert len(set(odd)) == 4
    assert all(re.fullmatch(r"[\w.+-]{1,140}", name) for name in odd)


def test_every_kind_of_values_makes_jobs(tmp_path: Path) -> None:
    line = ["-m", "seed=range(0,3)", "scheduler=glob(constant*)", "run.name='a b',c", "sweep.name=x"]
    with working_in(tmp_path):
        sweep = check_command("train", line).sweep
    assert sweep is not None
    assert [job.changes for job in sweep.jobs][:3] == [
        {"seed": "0", "scheduler": "constant", "run.name": "a b"},
        {"seed": "0", "scheduler": "constant", "run.name": "c"},
        {"seed": "0", "scheduler": "constant_with_warmup", "run.name": "a b"},
    ]
    assert len(sweep.jobs) == 12
    for each in (sweep.jobs[0], sweep.jobs[-1]):
        single = check_command("train", each.argv).single
        assert single is not None
        assert single.job.run.name == each.changes["run.name"]
        assert single.job.run.dir == f"sweeps/x/{each.name}"


def test_a_sweep_stopped_by_a_signal_continues(
    job: list[str], whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = 0

    def stopping(*arguments: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            signal.raise_signal(signal.SIGTERM)
        fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("trainer.loop.fit", stopping)
    assert sweep(job, "stopped") == 75
    assert capsys.readouterr().err.endswith("sweep: stopped. Continue it with the same command.\n")
    assert [row["missing"] for row in table(Path("sweeps/stopped"))] == ["1", "2"]
    assert sweep(job, "stopped") == 0
    assert_same_sweep(Path("sweeps/stopped"), whole)


def test_each_job_of_a_sweep_has_its_own_time(job: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    grid = ["seed=0,1"]
    assert sweep(job, "timed", "train.duration=2", "train.max_time=0.001s", grid=grid) == 75
    assert "sweep: stopped. Continue it with the same command." in capsys.readouterr().err
    assert [checkpoint_steps(Path("sweeps/timed") / name) for name in ("seed-0", "seed-1")] == [[1], [1]]
    assert sweep(job, "timed", "train.duration=2", "train.max_time=0.001s", grid=grid) == 0


def test_a_killed_sweep_ends_with_the_same_table(job: list[str], whole: Path) -> None:
    command = ["train", "-m", *job, *GRID, "sweep.name=killed"]
    process = start(command, Path("killed.log"))
    second = Path("sweeps/killed") / JOBS[1] / "checkpoints" / "step-00000002" / "MANIFEST.json"
    wait_until(second.exists, process)
    process.kill()
    process.join()
    assert second.exists()
    assert sweep(job, "killed") == 0
    assert_same_sweep(Path("sweeps/killed"), whole)


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", [1, 2])
def test_a_sweep_killed_ten_times_ends_with_the_same_table(parallel: int, job: list[str]) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "trainer", "train", "-m", *job, *GRID, f"sweep.jobs={parallel}"]
    whole = f"sweep.name=whole-{parallel}"
    subprocess.run([*command, whole], env=environment, check=True)
    times = random.Random(parallel)
    for _ in range(10):
        process = subprocess.Popen([*command, f"sweep.name=often-{parallel}"], env=environment)
        time.sleep(times.uniform(1, 8))
        process.kill()
        process.wait()
    subprocess.run([*command, f"sweep.name=often-{parallel}"], env=environment, check=True)
    assert_same_sweep(Path(f"sweeps/often-{parallel}"), Path(f"sweeps/whole-{parallel}"))
