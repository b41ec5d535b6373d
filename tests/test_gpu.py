"""Guarantees of the CPU that also hold on a CUDA device: `pytest -m gpu` on a machine that has one."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import events, train, working_in, write_data
from tests.test_resume import STEPS, STOPS, Figure, check_resumes
from trainer.cli import main

pytestmark = pytest.mark.gpu

CUDA = ["device=cuda", f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("gpu")
    with working_in(folder):
        yield write_data(folder)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
@pytest.mark.parametrize("batching", ["packed", "padded"])
def test_resumed_run_is_bitwise_equal(
    precision: str, batching: str, data: list[str], tmp_path: Path, figure: Figure
) -> None:
    options = [f"precision={precision}", f"loader.batching={batching}"]
    check_resumes([*data, *CUDA], options, tmp_path, STOPS, figure)


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16", "fp16"])
def test_loss_is_close_to_the_loss_on_the_cpu(precision: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, "train.duration=60", "model.dropout=0.0", "loss=focal"]
    assert train(tmp_path / "cpu", *job) == 0
    assert train(tmp_path / "cuda", *job, "device=cuda", f"precision={precision}") == 0
    cpu, cuda = (events(tmp_path / name, "train")[-1]["loss"] for name in ("cpu", "cuda"))

    assert cuda == pytest.approx(cpu, rel={"fp32": 1e-3, "tf32": 1e-2}.get(precision, 0.05))


def test_replay_between_checkpoints_is_bitwise_equal(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *CUDA, "precision=bf16") == 0

    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0
