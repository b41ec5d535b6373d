"""The diagnosis of a run that diverged, and the folder that it is saved in."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_loop import CPU, make_batch, make_run, random_batches
from trainer.divergence import diagnose, non_finite_parameters, read_divergence, write_divergence
from trainer.ema import Ema
from trainer.errors import CheckpointError, DivergedError
from trainer.loop import compute_gradients, fit
from trainer.precision import MIN_SCALE, Precision
from trainer.protocols import Batch
from trainer.run import DivergenceReport, Run
from trainer.state import TrainState


def poisoned() -> list[Batch]:
    """Two micro-batches, the second with inputs that are NaN."""
    nan = make_batch(torch.full((2, 4), float("nan")), torch.tensor([0, 1]), 70)
    return [*random_batches([4], [0], torch.float32), nan]


def diverge(run: Run, match: str) -> DivergenceReport:
    """Fit a run that diverges; return its diagnosis."""
    saved: list[DivergenceReport] = []

    def save(divergence: DivergenceReport) -> str:
        saved.append(divergence)
        return "the diagnosis is saved"

    run = replace(run, outputs=replace(run.outputs, save_divergence=save))
    with pytest.raises(DivergedError, match=match) as caught:
        fit(run, TrainState(), lambda: False)
    assert caught.value.messages[-1] == "the diagnosis is saved"
    return saved[0]


@pytest.fixture
def diagnosis() -> DivergenceReport:
    """The diagnosis of a run whose third step is poisoned."""
    good = random_batches([4], [0], torch.float32)
    return diverge(make_run([good, good, poisoned()]), "step 3: the run diverged")


def test_the_diagnosis_lists_what_is_not_finite(diagnosis: DivergenceReport) -> None:
    assert diagnosis.step == 3
    assert diagnosis.report["step"] == 3
    assert diagnosis.report["loss"] == "nan"
    assert diagnosis.report["grad_norm"] == "nan"
    assert diagnosis.report["lr"] == 0.1
    assert diagnosis.report["samples"] == [0, 1, 2, 3, 70, 71]
    assert diagnosis.report["not_finite"] == {
        "parameters": [],
        "buffers": [],
        "gradients": ["layer.weight", "layer.bias"],
        "inputs": ["1.inputs.x"],
    }
    assert set(diagnosis.batch) == {"0.inputs.x", "0.target", "1.inputs.x", "1.target"}


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_finite_gradients_are_not_listed_if_only_their_norm_overflows(max_grad_norm: float | None) -> None:
    # The gradient of the weight is finite, but its norm overflows float32; the gradient of the bias is small.
    micro_batches = [make_batch(torch.full((2, 4), 3e38), torch.tensor([0, 1]))]
    run = make_run([micro_batches], max_grad_norm=max_grad_norm)
    with torch.no_grad():
        run.model.layer.weight.zero_()
    loss, norm = compute_gradients(run, 0, micro_batches).tolist()
    report = diagnose(run, 1, loss, norm, micro_batches).report

    assert (loss < 10, norm) == (True, float("inf"))
    assert report["not_finite"]["gradients"] == []
    assert report["grad_norms"]["layer.weight"] == "inf"
    assert 0.1 < report["grad_norms"]["layer.bias"] < 1


class Cusp:
    """A loss of 0 whose gradient is NaN at any loss scale."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.float() * 0).abs().sum().sqrt()

    def num_targets(self, target: Tensor) -> Tensor:
        return torch.tensor(len(target))


def test_float16_diverges_at_its_smallest_loss_scale() -> None:
    run = make_run(loss=Cusp(), precision=Precision("fp16", CPU))
    report = diverge(run, r"step 1: the run diverged: loss 0\.0, gradient norm nan").report

    assert (report["loss"], report["grad_norm"]) == (0.0, "nan")
    assert (report["precision"], report["scale"]) == ("fp16", MIN_SCALE)


def test_non_finite_parameters_of_the_model_and_its_average() -> None:
    run = make_run()
    run = replace(run, ema=Ema(run.model, 0.9))
    assert non_finite_parameters(run) == []
    with torch.no_grad():
        run.model.layer.bias[1] = float("inf")
        assert run.ema is not None
        run.ema.module.layer.weight[0, 0] = float("nan")

    assert non_finite_parameters(run) == ["model.layer.bias", "ema.layer.weight"]


def test_a_divergence_folder_is_read_as_it_was_written(diagnosis: DivergenceReport, tmp_path: Path) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "older").touch()
    write_divergence(tmp_path / "bundle", diagnosis, "seed: 0\n", "checkpoints/step-00000002")
    read, text, checkpoint = read_divergence(tmp_path / "bundle")

    assert (read.step, read.report, text, checkpoint) == (3, diagnosis.report, "seed: 0\n", "checkpoints/step-00000002")
    assert read.batch.keys() == diagnosis.batch.keys()
    assert torch.equal(read.batch["1.inputs.x"].isnan(), torch.ones(2, 4, dtype=torch.bool))
    assert {file.name for file in (tmp_path / "bundle").iterdir()} == {
        "report.json",
        "batch.safetensors",
        "config.yaml",
    }


def test_a_damaged_divergence_folder_is_refused(tmp_path: Path) -> None:
    write_divergence(tmp_path / "bundle", DivergenceReport(1, {"step": 1}, {}), "", None)
    (tmp_path / "bundle" / "report.json").write_text(json.dumps({"step": 1}))

    with pytest.raises(CheckpointError, match=r"bundle: cannot be read \(DocumentError"):
        read_divergence(tmp_path / "bundle")
