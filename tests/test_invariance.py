"""Logging, evaluating, saving, loading, splitting and compiling do not change what a run learns."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.support.jobs import TINY, checkpoint_files, events, train, working_in, write_data, write_roles
from tests.support.sources import ON_SOURCES, write_job_sources
from tests.test_resume import SAMPLES
from trainer import deferred_logits
from trainer.cli import main

STEPS = 20
BASE = [f"train.duration={STEPS}", "train.log_every=1", "train.eval_every=8", "checkpoint.every=8"]
LEARNED = ("model.safetensors", "ema.safetensors", "optimizer.safetensors")


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
        ["train.eval_every=1", "loader.eval_batch_size=3", "checkpoint.monitor=loss"],
        ["train.eval_every=20", "train.log_every=7", "logger.tensorboard=true", "logger.console=plain"],
        ["checkpoint.every=1", "checkpoint.keep=5", "export.formats=[torchscript]"],
        ["loader.workers=1"],
        ["loader.workers=2", "loader.prefetch=1", "loader.persistent_workers=false"],
    ],
    ids=["evaluation", "logging", "saving", "worker", "workers"],
)
def test_weights_are_bitwise_equal(changes: list[str], data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, *changes) == 0

    logged, expected = losses(tmp_path / "run"), losses(reference)
    assert logged
    assert all(logged[step] == expected[step] for step in logged)
    ours, theirs = checkpoint_files(tmp_path / "run", STEPS), checkpoint_files(reference, STEPS)
    assert {name: ours[name] for name in LEARNED} == {name: theirs[name] for name in LEARNED}


def test_averaging_does_not_change_the_weights(data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, "ema.decay=null") == 0

    ours, theirs = checkpoint_files(tmp_path / "run", STEPS), checkpoint_files(reference, STEPS)
    assert "ema.safetensors" not in ours
    assert ours["model.safetensors"] == theirs["model.safetensors"]


@pytest.mark.parametrize("changes", [["train.accumulate=2"], ["train.accumulate=8"], ["loader.batching=padded"]])
def test_weights_are_equal_up_to_rounding(changes: list[str], data: list[str], tmp_path: Path) -> None:
    # Dropout draws by the position in the micro-batch, so it is off here.
    job = [*data, *BASE, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.05"]
    assert train(tmp_path / "whole", *job) == 0
    assert train(tmp_path / "split", *job, *changes) == 0

    whole, split = losses(tmp_path / "whole"), losses(tmp_path / "split")
    for step, values in whole.items():
        assert split[step] == pytest.approx(values, rel=2e-5), step
    name = f"checkpoints/step-{STEPS:08d}/model.safetensors"
    ours, theirs = load_file(tmp_path / "split" / name), load_file(tmp_path / "whole" / name)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


CHOICES = {
    **SAMPLES,
    **ON_SOURCES,
    "fgm": ["perturb=fgm"],
    "pgd": ["perturb=pgd", "perturb.start=3"],
    "awp": ["perturb=awp"],
    "r_drop": ["perturb=r_drop"],
    "masks of the head": ["model.head_dropout=1e-9", "model.multi_sample_dropout=3"],
    "noise at the start": ["model.noisy_tune=0.15"],
    "crf": ["task=token_classification", "loss=crf"],
    "spans": ["task=span_classification", "loss.head_size=8"],
    "cuts": ["task=causal_lm", "model=decoder", "model.gradient_checkpointing=selective"],
}
"""Options that choose the samples of a step, how often a step runs them, and with which weights."""


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOICES)
def test_no_choice_depends_on_how_a_run_is_executed(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("choices")
    with working_in(folder):
        write_job_sources(folder)
        source = TINY[6:] if name in ON_SOURCES else [*TINY, *write_roles(folder)]
        job = ["train", *source, "optimizer=sgd", "optimizer.lr=0.05", "ema.decay=0.9", *CHOICES[name]]
        job += ["train.duration=12", "train.eval_every=6", "checkpoint.every=6"]
        if "task=image_classification" not in job:
            # Such a small dropout drops nothing, but losses that compare two dropout masks accept it.
            job.append("model.dropout=1e-9")
        watching = ["train.eval_every=1", "loader.eval_batch_size=3", "train.log_every=5", "checkpoint.every=1"]
        watching += ["logger.tensorboard=true", "loader.workers=1"]
        for run, changes in {"whole": [], "watched": watching, "divided": ["train.accumulate=3"]}.items():
            assert main([*job, *changes, f"run.dir={tmp_path / run}"]) == 0

    watched, whole = checkpoint_files(tmp_path / "watched", 12), checkpoint_files(tmp_path / "whole", 12)
    assert {file: watched[file] for file in LEARNED} == {file: whole[file] for file in LEARNED}
    steps, expected = losses(tmp_path / "divided"), losses(tmp_path / "whole")
    assert steps == {step: pytest.approx(values, rel=1e-4) for step, values in expected.items()}
    file = "checkpoints/step-00000012/model.safetensors"
    ours, theirs = load_file(tmp_path / "divided" / file), load_file(tmp_path / "whole" / file)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


def test_another_seed_is_another_run(data: list[str], reference: Path, tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *BASE, "seed=1") == 0

    assert losses(tmp_path / "run") != losses(reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    "parts",
    [
        ["model.gradient_checkpointing=blocks"],
        ["task=causal_lm", "model=decoder", "model.gradient_checkpointing=selective"],
        [],
    ],
    ids=["blocks", "selective", "none"],
)
def test_compiled_training_has_the_losses_and_names_of_eager_training(
    parts: list[str],
    data: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # A language model's loss is computed in chunks of 3 rows.
    monkeypatch.setattr(deferred_logits, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(deferred_logits, "MIN_ROWS", 3)
    job = [*data, *parts, "train.duration=6", "model.dropout=0.0"]
    assert train(tmp_path / "eager", *job) == 0
    capfd.readouterr()
    assert train(tmp_path / "compiled", *job, "compile=true") == 0

    assert "context_fn" not in capfd.readouterr().err  # torch prints its own warnings
    is_selective = "model.gradient_checkpointing=selective" in parts
    assert ("compile: with model.gradient_checkpointing=selective" in caplog.text) == is_selective
    eager, compiled = ([loss for loss, _ in losses(tmp_path / name).values()] for name in ("eager", "compiled"))
    assert compiled == pytest.approx(eager, rel=1e-5)
    names = []
    for name in ("eager", "compiled"):
        file = tmp_path / name / "checkpoints" / "step-00000006" / "model.safetensors"
        with safe_open(file, framework="numpy") as weights:
            names.append(set(weights.keys()))
    assert names[0] == names[1]
