"""What is found where a run diverged, and that it is kept as it was found."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.test_loop import CPU, a_run, batch, data
from trainer.divergence import DivergenceReport, examine, not_finite_parameters, read_bundle, write_bundle
from trainer.ema import Ema
from trainer.errors import CheckpointError, DivergedError
from trainer.loop import Run, fit, gradients
from trainer.precision import MIN_SCALE, Precision
from trainer.protocols import Batch
from trainer.state import TrainState


def poisoned() -> list[Batch]:
    """Two micro-batches, the second with inputs that are no numbers."""
    return [*data([4], [0], torch.float32), batch(torch.full((2, 4), float("nan")), torch.tensor([0, 1]), 70)]


def found_of(group: list[Batch]) -> DivergenceReport:
    """The findings of a run whose third step is `group`."""
    good = data([4], [0], torch.float32)
    run = a_run([good, good, group])
    found: list[DivergenceReport] = []

    def autopsy(run: Run, step: int, loss: float, grad_norm: float, micro_batches: list[Batch]) -> str:
        found.append(examine(run, step, loss, grad_norm, micro_batches))
        return "what was found"

    run = replace(run, autopsy=autopsy)
    with pytest.raises(DivergedError, match="step 3: the run diverged") as caught:
        fit(run, TrainState(), lambda: False)
    assert caught.value.messages[-1] == "what was found"
    return found[0]


def test_the_step_and_what_is_not_finite_in_it() -> None:
    found = found_of(poisoned())

    assert found.step == 3
    assert found.report["step"] == 3
    assert found.report["loss"] == "nan"
    assert found.report["grad_norm"] == "nan"
    assert found.report["lr"] == 0.1
    assert found.report["samples"] == [0, 1, 2, 3, 70, 71]
    assert found.report["not_finite"] == {
        "parameters": [],
        "buffers": [],
        "gradients": ["layer.weight", "layer.bias"],
        "inputs": ["1.inputs.x"],
    }
    assert set(found.batch) == {"0.inputs.x", "0.target", "1.inputs.x", "1.target"}


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_gradients_that_are_finite_are_told_from_those_that_are_not(max_grad_norm: float | None) -> None:
    # The weight's gradient is finite, and too large for a norm in float32; the bias's is of ordinary size.
    group = [batch(torch.full((2, 4), 3e38), torch.tensor([0, 1]))]
    run = a_run([group], max_grad_norm=max_grad_norm)
    with torch.no_grad():
        run.model.layer.weight.zero_()
    loss, norm = gradients(run, group)
    found = examine(run, 1, loss, norm, group)

    assert (loss < 10, norm) == (True, float("inf"))
    assert found.report["not_finite"]["gradients"] == []
    assert found.report["grad_norms"]["layer.weight"] == "inf"
    assert 0.1 < found.report["grad_norms"]["layer.bias"] < 1


class Cusp:
    """A loss of 0 whose gradient is not a number, at any scale."""

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        return (output.float() * 0).abs().sum().sqrt()

    def num_targets(self, target: Tensor) -> Tensor:
        return torch.tensor(len(target))


def test_float16_gives_up_at_its_smallest_scale() -> None:
    run = a_run([data([4], [0], torch.float32)], loss=Cusp(), precision=Precision("fp16", CPU))
    found: list[DivergenceReport] = []
    run = replace(run, autopsy=lambda *step: found.append(examine(*step)) or "")

    with pytest.raises(DivergedError, match=r"step 1: the run diverged: loss 0\.0, gradient norm nan"):
        fit(run, TrainState(), lambda: False)
    assert (found[0].report["loss"], found[0].report["grad_norm"]) == (0.0, "nan")
    assert (found[0].report["precision"], found[0].report["scale"]) == ("fp16", MIN_SCALE)


def test_parameters_of_the_model_the_loss_and_the_average() -> None:
    run = a_run([data([4], [0], torch.float32)])
    run = replace(run, ema=Ema(run.model, 0.9))
    assert not_finite_parameters(run) == []
    with torch.no_grad():
        run.model.layer.bias[1] = float("inf")
        assert run.ema is not None
        run.ema.module.layer.weight[0, 0] = float("nan")

    assert not_finite_parameters(run) == ["model.layer.bias", "ema.layer.weight"]


def test_a_bundle_is_read_as_it_was_written(tmp_path: Path) -> None:
    found = found_of(poisoned())
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "older").touch()
    write_bundle(tmp_path / "bundle", found, "seed: 0\n", "checkpoints/step-00000002")
    read, text, checkpoint = read_bundle(tmp_path / "bundle")

    assert (read.step, read.report, text, checkpoint) == (3, found.report, "seed: 0\n", "checkpoints/step-00000002")
    assert read.batch.keys() == found.batch.keys()
    assert torch.equal(read.batch["1.inputs.x"].isnan(), torch.ones(2, 4, dtype=torch.bool))
    assert {file.name for file in (tmp_path / "bundle").iterdir()} == {
        "report.json",
        "batch.safetensors",
        "config.yaml",
    }


def test_an_altered_bundle_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", DivergenceReport(1, {"step": 1}, {}), "", None)
    (tmp_path / "bundle" / "report.json").write_text(json.dumps({"step": 1}))

    with pytest.raises(CheckpointError, match=r"bundle: cannot be read \(KeyError"):
        read_bundle(tmp_path / "bundle")
