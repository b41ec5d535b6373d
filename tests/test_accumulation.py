"""Micro-batches that share a statistic, that are halved when memory runs out, and whose number is found."""

import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.support.jobs import (
    assert_resumes,
    checkpoint_files,
    events,
    train,
    working_in,
    write_data,
    write_roles,
)
from tests.test_loop import make_run, random_batches
from trainer.accumulation import can_accumulate_more
from trainer.loop import compute_gradients
from trainer.loss.dice import Dice
from trainer.loss.info_nce import InfoNce
from trainer.loss.mse_correlation import MseCorrelation
from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batch, Loss
from trainer.step_rng import StepRng

STEPS = 12
KEEP_ALL = f"checkpoint.keep={STEPS}"
Limit = Callable[[int, int], None]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("accumulation")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1"]


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """Return a function that lets the memory of a device hold only so many samples from a step on."""
    forward, start, position = TextEncoder.forward, StepRng.start, {"step": 0}

    def set_limit(samples: int, first_step: int) -> None:
        def limited_start(self: StepRng, step: int, piece: int, stream: int) -> None:
            position["step"] = step
            start(self, step, piece, stream)

        def limited_forward(self: TextEncoder, *args: Any, token_index: Any = None, **inputs: Any) -> Any:
            # A part of the step is done before memory runs out.
            output = forward(self, *args, token_index=token_index, **inputs)
            if self.training and position["step"] >= first_step and len(token_index) > samples:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return output

        monkeypatch.setattr(StepRng, "start", limited_start)
        monkeypatch.setattr(TextEncoder, "forward", limited_forward)

    return set_limit


def test_a_run_whose_memory_runs_out_goes_on_with_smaller_micro_batches(
    data: list[str], tmp_path: Path, limit: Limit
) -> None:
    options = [*data, KEEP_ALL]
    assert train(tmp_path / "plain", *options) == 0
    limit(3, 6)
    assert train(tmp_path / "limited", *options) == 0

    assert [(line["step"], line["accumulate"]) for line in events(tmp_path / "limited", "out_of_memory")] == [
        (6, 2),
        (6, 4),
    ]
    assert checkpoint_files(tmp_path / "limited", 6) == checkpoint_files(tmp_path / "plain", 6)
    # Before and after the step; after it, the number of micro-batches comes from the checkpoint.
    for step in (4, 9):
        assert_resumes(tmp_path / "limited", step)


def test_smaller_micro_batches_learn_the_same(data: list[str], tmp_path: Path, limit: Limit) -> None:
    options = [*data, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.1"]
    assert train(tmp_path / "plain", *options) == 0
    limit(3, 2)
    assert train(tmp_path / "limited", *options) == 0

    plain, limited = (
        load_file(tmp_path / name / f"checkpoints/step-{STEPS:08d}/model.safetensors") for name in ("plain", "limited")
    )
    for name, weight in plain.items():
        torch.testing.assert_close(limited[name], weight, rtol=0, atol=1e-6)


def test_auto_finds_the_fewest_micro_batches_and_learns_as_with_that_number(
    data: list[str], tmp_path: Path, limit: Limit
) -> None:
    limit(3, 0)
    assert train(tmp_path / "auto", *data, KEEP_ALL, "train.accumulate=auto") == 0
    assert train(tmp_path / "four", *data, KEEP_ALL, "train.accumulate=4") == 0

    assert events(tmp_path / "auto", "out_of_memory") == []
    found, four = (checkpoint_files(tmp_path / name, STEPS) for name in ("auto", "four"))
    assert found.pop("state.json") != four.pop("state.json")
    assert found == four
    assert_resumes(tmp_path / "auto", 5)


def test_auto_uses_one_micro_batch_if_it_fits(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "auto", *data, KEEP_ALL, "train.accumulate=auto") == 0
    assert train(tmp_path / "one", *data, KEEP_ALL) == 0

    found, one = (checkpoint_files(tmp_path / name, STEPS) for name in ("auto", "one"))
    assert json.loads(found.pop("state.json"))["accumulate"] == {"requested": "auto", "used": 1}
    assert "accumulate" not in json.loads(one.pop("state.json"))
    assert found == one


def test_an_evaluation_whose_memory_runs_out_runs_its_batches_in_halves(
    data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TextEncoder.forward

    def limited(self: TextEncoder, *args: Any, token_index: Any = None, **inputs: Any) -> Any:
        if not self.training and len(token_index) > 6:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, *args, token_index=token_index, **inputs)

    assert train(tmp_path / "plain", *data) == 0
    monkeypatch.setattr(TextEncoder, "forward", limited)
    assert train(tmp_path / "limited", *data) == 0

    plain, halved = (tmp_path / name for name in ("plain", "limited"))
    assert events(halved, "out_of_memory") == []
    log = (halved / "trainer.log").read_text(encoding="utf-8")
    assert "memory ran out for a batch of 20 samples" in log
    assert "memory ran out for a batch of 10 samples" in log
    for name in ("model", "ema", "optimizer"):
        weights = [run / f"checkpoints/step-{STEPS:08d}/{name}.safetensors" for run in (plain, halved)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    scores = [[line for line in events(run, "eval") if line["split"] == "validation"] for run in (plain, halved)]
    for one, other in zip(*scores, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert other["accuracy"] == one["accuracy"]
    rows = [pq.read_table(run / "eval/test.predictions.parquet") for run in (plain, halved)]
    assert rows[0].column_names == rows[1].column_names
    assert rows[0].num_rows == rows[1].num_rows == 20


def test_a_sample_that_does_not_fit_is_an_error(
    data: list[str], tmp_path: Path, limit: Limit, capsys: pytest.CaptureFixture[str]
) -> None:
    limit(0, 3)
    assert train(tmp_path / "run", *data) == 2

    assert "train.accumulate: a single sample does not fit into memory, got 8" in capsys.readouterr().err
    assert [line["accumulate"] for line in events(tmp_path / "run", "out_of_memory")] == [2, 4, 8]


def test_auto_needs_one_device(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *data, "train.accumulate=auto", "devices=2") == 2
    assert "train.accumulate: is found on one device" in capsys.readouterr().err


STATISTICS: dict[str, tuple[Loss, Callable[[int], Tensor], int]] = {
    "info_nce": (InfoNce(temperature=0.5, symmetric=True), lambda size: torch.randint(12, (size, 1)).repeat(1, 2), 2),
    "dice": (Dice(smooth=1.0, per="batch", ignore_index=-100), lambda size: torch.arange(size) % 3, 1),
    "dice of classes": (Dice(smooth=1.0, per="class", ignore_index=-100), lambda size: torch.arange(size) % 3, 1),
    "mse_correlation": (MseCorrelation(correlation=1.0), lambda size: torch.randn(size, 3, dtype=torch.float64), 1),
}


@pytest.mark.parametrize("name", STATISTICS)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_statistic_is_that_of_the_whole_step(name: str, dropout: float) -> None:
    loss, make_target, rows = STATISTICS[name]
    torch.manual_seed(0)
    sizes = [3, 5, 1]
    parts = [
        Batch(
            {"x": torch.randn(size * rows, 4, dtype=torch.float64)}, make_target(size), size, tuple(range(size)), piece
        )
        for piece, size in enumerate(sizes)
    ]
    run = make_run([parts], dtype=torch.float64, loss=loss)
    model = nn.Sequential(OrderedDict(layer=run.model.layer, dropout=nn.Dropout(dropout)))
    run = replace(run, model=OneInput(model).train())
    loss_value, norm = compute_gradients(run, 0, parts).tolist()

    # The definition: the graph of all micro-batches at once.
    gradients = [parameter.grad for parameter in run.model.parameters()]
    outputs = torch.cat([run.forward(0, part) for part in parts])
    expected = loss(outputs, torch.cat([part.target for part in parts if part.target is not None])) / sum(sizes)
    wanted = torch.autograd.grad(expected, list(run.model.parameters()))
    assert loss_value == pytest.approx(expected.item(), rel=1e-6)
    assert norm > 0
    torch.testing.assert_close(gradients, list(wanted), rtol=0, atol=1e-14)


class OneInput(nn.Module):
    """A model with an input `x`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.model(x)
        return output


def test_statistics_of_batch_norm_are_updated_once_per_micro_batch() -> None:
    torch.manual_seed(0)
    parts = [
        Batch({"x": torch.randn(6, 4)}, torch.zeros(3, 2, dtype=torch.int64), 3, (0, 1, 2), piece) for piece in (0, 1)
    ]
    run = make_run([parts], loss=InfoNce(temperature=0.5, symmetric=False))
    norm = nn.BatchNorm1d(3)
    run = replace(run, model=OneInput(nn.Sequential(run.model.layer, norm)).train())
    compute_gradients(run, 0, parts)

    assert norm.num_batches_tracked == 2


def test_a_run_with_merged_micro_batches_resumes_and_learns_as_with_one(tmp_path: Path) -> None:
    with working_in(tmp_path):
        data = [*write_roles(tmp_path), "task=sentence_embedding", "task.supervision=pairs", f"train.duration={STEPS}"]
        data += ["train.eval_every=4", "checkpoint.every=1", "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.1"]
        assert train(tmp_path / "whole", *data, KEEP_ALL) == 0
        assert train(tmp_path / "split", *data, KEEP_ALL, "train.accumulate=3") == 0
        whole, split = (
            load_file(tmp_path / name / f"checkpoints/step-{STEPS:08d}/model.safetensors")
            for name in ("whole", "split")
        )
        torch.testing.assert_close(split, whole, rtol=0, atol=1e-5)
        assert_resumes(tmp_path / "split", 5)


def test_only_what_gives_the_same_result_is_computed_again_in_parts() -> None:
    run = make_run([random_batches([4], [0])])
    error = torch.OutOfMemoryError("out of memory")

    assert can_accumulate_more(run, error)
    assert can_accumulate_more(
        run, RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes")
    )
    assert can_accumulate_more(run, MemoryError())
    assert not can_accumulate_more(run, RuntimeError("shapes do not fit"))
    assert can_accumulate_more(replace(run, loss=InfoNce(temperature=0.1, symmetric=True)), error)
    unkeyed = replace(run, rng=StepRng(0, run.device, keyed=False))
    assert not can_accumulate_more(unkeyed, error)
