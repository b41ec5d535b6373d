"""A run that diverges saves a report of the cause and can be replayed to it."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.support.jobs import train, working_in, write_data
from trainer.checkpoint.manifest import find_faults
from trainer.cli import main

SGD = ["optimizer=sgd", "scheduler=constant", "train.max_grad_norm=null", "train.accumulate=2"]

LOSS = """\
import torch


class Poisoned:
    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        self.calls += output.requires_grad
        loss = torch.nn.functional.cross_entropy(output.float(), target, reduction="sum")
        return loss * float("inf") if self.calls > self.after and output.requires_grad else loss

    def num_targets(self, target: torch.Tensor) -> torch.Tensor:
        return torch.tensor(target.numel())
"""


@pytest.fixture
def data(tmp_path: Path) -> Iterator[list[str]]:
    with working_in(tmp_path):
        yield [*write_data(tmp_path), "train.duration=12", "train.eval_every=6", "checkpoint.every=1"]


def report(run: Path, step: int) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((run / f"diverged/step-{step:08d}/report.json").read_text())
    return document


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_divergence_is_reported_and_replayed(
    precision: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, *data, *SGD, "optimizer.lr=1e30", f"precision={precision}") == 5
    wrong = capsys.readouterr().err
    assert "step 2: the run diverged: loss nan" in wrong
    assert f"Report: {run}/diverged/step-00000002. Replay it with: trainer verify run={run}" in wrong

    document = report(run, 2)
    assert (document["step"], document["loss"], document["lr"], document["precision"]) == (2, "nan", 1e30, precision)
    assert len(document["samples"]) == 8
    assert document["not_finite"]["parameters"] == document["not_finite"]["inputs"] == []
    assert "model.head.weight" in document["not_finite"]["gradients"]
    assert document["grad_norms"]["model.head.weight"] == "nan"
    assert document["checkpoint"] == "checkpoints/step-00000001"
    assert find_faults(run / document["checkpoint"]) == []
    batch = load_file(run / "diverged/step-00000002/batch.safetensors")
    assert {"0.inputs.input_ids", "0.target", "1.inputs.input_ids", "1.target"} <= batch.keys()
    assert sum(len(batch[f"{position}.target"]) for position in (0, 1)) == 8

    assert main(["verify", f"run={run}"]) == 0
    page = capsys.readouterr().out
    assert "from step 1  diverged again: loss nan, gradient norm nan; all numbers equal" in page
    assert "bitwise equal" in page


def test_run_without_a_checkpoint_is_replayed_from_the_start(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, *SGD, "optimizer.lr=1e30", "checkpoint.every=10") == 5
    assert report(tmp_path / "run", 2)["checkpoint"] is None

    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0
    assert "from the start  diverged again" in capsys.readouterr().out


def test_non_finite_weights_are_not_saved(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The first update turns finite gradients, with a large weight decay, into infinite weights.
    run = tmp_path / "run"
    assert train(run, *data, *SGD, "optimizer.lr=3e38", "optimizer.weight_decay=1e4") == 5
    assert "step 1: the run diverged: model.blocks.0.query_key_value.weight, " in capsys.readouterr().err

    document = report(run, 1)
    assert not (run / "checkpoints").exists()
    assert (document["loss"], document["samples"], document["not_finite"]["gradients"]) == (None, [], [])
    assert {"model.head.weight", "ema.head.weight"} <= set(document["not_finite"]["parameters"])
    assert main(["verify", f"run={run}"]) == 0
    assert "from the start  diverged again: weights not finite" in capsys.readouterr().out


def test_divergence_that_is_not_reproduced_is_an_error(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The cause is state of the process that no checkpoint contains: the loss counts its own calls.
    (tmp_path / "poisoned_losses.py").write_text(LOSS)
    run = tmp_path / "run"
    assert train(run, *data, "loss._target_=poisoned_losses.Poisoned", "+loss.after=4") == 5
    assert (report(run, 5)["loss"], report(run, 5)["checkpoint"]) == ("inf", "checkpoints/step-00000004")

    assert main(["verify", f"run={run}", "trust=[poisoned_losses]"]) == 3
    assert "replay of the divergence at step-00000005: from step 4: step 5 did not diverge again" in (
        capsys.readouterr().err
    )
    shutil.rmtree(run / "checkpoints")
    assert main(["verify", f"run={run}", "trust=[poisoned_losses]"]) == 0


def test_altered_number_of_the_report_is_named(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert train(run, *data, *SGD, "optimizer.lr=1e30") == 5
    file = run / "diverged/step-00000002/report.json"
    file.write_text(json.dumps({**report(run, 2), "lr": 1.0}))

    assert main(["verify", f"run={run}"]) == 3
    assert "lr 1.0 recorded, 1e+30 replayed" in capsys.readouterr().err


def test_report_that_cannot_be_written_does_not_hide_the_divergence(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").touch()
    (run / "diverged").touch()
    assert train(run, *data, *SGD, "optimizer.lr=1e30") == 5
    wrong = capsys.readouterr().err
    assert "step 2: the run diverged: loss nan" in wrong
    assert "The report of the divergence could not be saved: " in wrong
