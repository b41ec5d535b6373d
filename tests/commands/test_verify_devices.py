"""`trainer verify` trains a part of a run on several devices again in as many processes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, train, working_in, write_data
from tests.support.launched import start_launched
from tests.support.processes import PATIENCE
from tests.support.ranks import run_ranks
from trainer.checkpoint.snapshot import load_folder, write_snapshot

STEPS = 6
JOB = [f"train.duration={STEPS}", "train.eval_every=2", "checkpoint.every=2", "logger.tensorboard=false"]


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("verify-devices")
    with working_in(folder):
        yield [*TINY, *JOB, *write_data(folder)]


def train_on_two(run_dir: Path, *arguments: str, exit_code: int = 0) -> Path:
    output = run_dir.with_suffix(".output")
    codes = run_ranks(["train", *arguments, f"run.dir={run_dir}"], 2, output)
    assert codes == [exit_code] * 2, [file.read_text() for file in output.iterdir()]
    return run_dir


def verify(run: Path, exit_code: int = 0) -> str:
    """Return what `trainer verify` prints."""
    output = run.with_suffix(".txt")
    started = start_launched(["verify", f"run={run}"], output)
    started.join(PATIENCE)
    page = output.read_text(encoding="utf-8")
    assert started.exitcode == exit_code, page
    return page


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Without shards, tests below replay runs, and tests/commands/test_verify.py changes weights.
@pytest.mark.parametrize("shard", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_run_on_two_devices_is_replayed_on_two(job: list[str], tmp_path: Path, shard: str) -> None:
    run = train_on_two(tmp_path / "run", *job, f"shard={shard}")
    before = content(run)
    page = verify(run)
    assert content(run) == before
    assert page.count(f"replay of step-{4:08d} to step-{STEPS:08d}") == 1
    assert page.count("bitwise equal") == 2

    newest = run / "checkpoints" / f"step-{STEPS:08d}"
    snapshot = load_folder(newest)
    name = next(name for name, tensor in snapshot.tensors["model"].items() if tensor.ndim == 2)
    with torch.no_grad():
        snapshot.tensors["model"][name][-1] += 0.25  # in the rows of the second device
    shutil.rmtree(newest)
    write_snapshot(newest, snapshot, ordinal=1000)
    columns = snapshot.tensors["model"][name].shape[1]
    page = verify(run, exit_code=3)
    error = next(line for line in page.splitlines() if line.startswith(f"{run}: replay of"))
    assert f"tensors: model/{name} differs: {columns} of " in error
    assert "more differ" not in error


def test_a_divergence_on_two_devices_is_replayed_on_two(job: list[str], tmp_path: Path) -> None:
    diverging = ["optimizer.lr=1e30", "train.max_grad_norm=null", "scheduler=constant"]
    run = train_on_two(tmp_path / "run", *job, *diverging, exit_code=5)
    page = verify(run)
    assert page.count("replay of the divergence at ") == 1
    assert "diverged again" in page


def test_processes_that_torchrun_has_started_replay_their_own_number(job: list[str], tmp_path: Path) -> None:
    run = train_on_two(tmp_path / "run", *job)
    for devices, replayed in ((2, "bitwise equal"), (1, "trained on 2 devices, not on 1")):
        output = tmp_path / f"verify-{devices}"
        assert run_ranks(["verify", f"run={run}"], devices, output) == [0] * devices
        pages = [(output / f"rank-{rank}.txt").read_text(encoding="utf-8") for rank in range(devices)]
        assert replayed in pages[0]
        assert f"step-{STEPS:08d}" in pages[0]
        assert set(pages[1:]) <= {""}


def test_a_run_that_went_on_alone_is_replayed_alone(job: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *job) == 0
    page = verify(run)
    assert page.count("bitwise equal") == 2
