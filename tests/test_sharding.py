"""Several devices that store the weights in shards train what devices with complete weights train."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import TINY, checkpoint_files, events, stop_at, without_clock, working_in, write_data
from tests.support.ranks import run_ranks
from trainer.checkpoint.store import Snapshot, load_folder
from trainer.checkpoint.tensors import tensor_differences

STEPS = 12
JOB = [f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=4"]
"""With dropout, averaged weights, three evaluation batches and, in each epoch of 8 steps, a smaller last batch."""

UNCLIPPED = "train.max_grad_norm=null"
"""The norm of a sharded gradient is summed in another order, so clipping agrees only up to rounding."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("sharding")
    with working_in(folder):
        yield [*TINY, *JOB, "loader.eval_batch_size=8", *write_data(folder)]


def train_on(devices: int, run_dir: Path, *arguments: str) -> Path:
    """Train in as many processes as there are devices; return the run folder."""
    output = run_dir.with_suffix(".output")
    codes = run_ranks(["train", *arguments, f"run.dir={run_dir}"], devices, output)
    assert codes == [0] * devices, [file.read_text() for file in output.iterdir()]
    return run_dir


def snapshot(run_dir: Path, step: int) -> Snapshot:
    """Return the complete state in a checkpoint."""
    return load_folder(run_dir / "checkpoints" / f"step-{step:08d}")


def assert_same_state(left: Path, right: Path, step: int) -> None:
    """Check that two runs have the same checkpoint, one of them perhaps in shards."""
    one, other = snapshot(left, step), snapshot(right, step)
    assert list(tensor_differences(one.tensors, other.tensors)) == []
    assert one.documents["state.json"] == other.documents["state.json"]
    assert one.documents["task.json"] == other.documents["task.json"]


def largest_difference(left: Path, right: Path, step: int) -> float:
    """Return the largest difference of a weight in two checkpoints."""
    one, other = snapshot(left, step).tensors["model"], snapshot(right, step).tensors["model"]
    assert one.keys() == other.keys()
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.fixture(scope="module")
def sharded(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_on(2, tmp_path_factory.mktemp("runs") / "sharded", *job, UNCLIPPED, "shard=true")


def test_shards_equal_complete_weights_to_the_byte(sharded: Path, job: list[str], tmp_path: Path) -> None:
    complete = train_on(2, tmp_path / "complete", *job, UNCLIPPED)
    for step in (8, STEPS):
        assert_same_state(sharded, complete, step)
    logged, expected = without_clock(events(sharded)), without_clock(events(complete))
    norms = [[event.pop("grad_norm", 0.0) for event in run] for run in (logged, expected)]
    assert logged == expected
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_each_device_writes_its_rows(sharded: Path) -> None:
    names = set(checkpoint_files(sharded, STEPS))
    shards = {f"{name}-0000{k}-of-00002.safetensors" for name in ("model", "ema", "optimizer") for k in (1, 2)}
    assert names == {*shards, "state.json", "task.json"}
    manifest = json.loads((sharded / "checkpoints" / f"step-{STEPS:08d}" / "MANIFEST.json").read_text())
    assert manifest["format"] == 2


def test_resumed_shards_continue_with_the_same_bytes(sharded: Path, job: list[str], tmp_path: Path) -> None:
    resumed = tmp_path / "resumed"
    shutil.copytree(sharded, resumed)
    stop_at(resumed, 8)
    output = tmp_path / "output"
    codes = run_ranks(["train", f"resume={resumed}", "checkpoint.every=1", "checkpoint.keep=9"], 2, output)
    assert codes == [0, 0], [file.read_text() for file in output.iterdir()]
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(sharded, STEPS)
