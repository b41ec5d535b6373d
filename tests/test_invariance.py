"""What a run learns does not depend on how it is watched, fed or cut."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import checkpoint_files, events, train, working_in, write_data

STEPS = 20
BASE = [f"train.duration={STEPS}", "train.log_every=1", "train.eval_every=8", "checkpoint.every=8"]
LEARNT = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("invariance")
    with working_in(folder):
        yield write_data(folder)


@pytest.fixture(scope="module")
def reference(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("reference") / "run"
    assert train(run_dir, *data, *BASE) == 0
    return run_dir


def losses(run_dir: Path) -> dict[int, tuple[float, float]]:
    return {event["step"]: (event["loss"], event["grad_norm"]) for event in events(run_dir, "train")}


@pytest.mark.parametrize(
    "changes",
    [
        ["train.eval_every=1"],
        ["train.eval_every=20"],
        ["train.log_every=7"],
        ["checkpoint.every=1", "checkpoint.keep=5"],
        ["logger.tensorboard=true", "logger.console=plain"],
        ["loader.eval_batch_size=3"],
        ["loader.workers=1"],
        ["loader.workers=2", "loader.prefetch=1", "loader.persistent_workers=false"],
        ["checkpoint.monitor=loss"],
        ["export.formats=[torchscript]"],
    ],
    ids=lambda changes: " ".join(changes),
)
def test_the_same_bits(changes: list[str], data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, *changes) == 0

    found, expected = losses(tmp_path / "run"), losses(reference)
    assert found
    assert all(found[step] == expected[step] for step in found)
    ours, theirs = checkpoint_files(tmp_path / "run", STEPS), checkpoint_files(reference, STEPS)
    assert {name: ours[name] for name in LEARNT} == {name: theirs[name] for name in LEARNT}


def test_averaging_does_not_touch_the_weights(data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, "ema.decay=null") == 0

    ours, theirs = checkpoint_files(tmp_path / "run", STEPS), checkpoint_files(reference, STEPS)
    assert "ema.safetensors" not in ours
    assert ours["model.safetensors"] == theirs["model.safetensors"]


@pytest.mark.parametrize("changes", [["train.accumulate=2"], ["train.accumulate=8"], ["loader.batching=padded"]])
def test_the_same_to_rounding(changes: list[str], data: list[str], tmp_path: Path) -> None:
    # Dropout draws by position in the micro-batch, so it is off here.
    without = [*data, *BASE, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.05"]
    assert train(tmp_path / "whole", *without) == 0
    assert train(tmp_path / "cut", *without, *changes) == 0

    whole, cut = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    for step, values in whole.items():
        assert cut[step] == pytest.approx(values, rel=2e-5), step
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    ours, theirs = load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name)
    for key, tensor in theirs.items():
        torch.testing.assert_close(ours[key], tensor, rtol=0, atol=2e-5)


def test_another_seed_is_another_run(data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, "seed=1") == 0

    assert losses(tmp_path / "run") != losses(reference)
