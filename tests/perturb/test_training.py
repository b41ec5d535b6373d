"""Runs whose steps move weights: what they save, how they are divided, and what is refused."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import TINY, events, train, working_in, write_data
from trainer.cli import main

STEPS = 6
BASE = [f"train.duration={STEPS}", "train.eval_every=6", "checkpoint.every=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("perturbed")
    with working_in(folder):
        yield [*write_data(folder), *BASE]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / f"checkpoints/step-{STEPS:08d}/model.safetensors")


def test_micro_batches_and_packing_do_not_change_the_run(data: list[str], tmp_path: Path) -> None:
    # Dropout depends on the position in the micro-batch, so it is off here.
    job = [*data, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.05"]
    moved = [*job, "perturb=pgd", "perturb.moves=2"]
    assert train(tmp_path / "plain", *job) == 0
    assert train(tmp_path / "whole", *moved) == 0
    assert train(tmp_path / "divided", *moved, "train.accumulate=3", "loader.batching=padded") == 0

    divided, whole, plain = (events(tmp_path / name, "train") for name in ("divided", "whole", "plain"))
    for ours, theirs in zip(divided, whole, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=2e-5)
    assert whole[0]["loss"] == plain[0]["loss"]
    assert whole[0]["grad_norm"] > 1.5 * plain[0]["grad_norm"]
    torch.testing.assert_close(weights(tmp_path / "divided"), weights(tmp_path / "whole"), rtol=0, atol=2e-6)
    assert not torch.equal(weights(tmp_path / "plain")["head.weight"], weights(tmp_path / "whole")["head.weight"])


def test_without_moves_the_run_is_the_plain_run(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tmp_path / "late", *data, "perturb=fgm", f"perturb.start={STEPS}") == 0
    assert f"perturb.start: {STEPS} is the end of the run: no step is left" in caplog.text
    assert "perturb: each step" not in caplog.text
    assert train(tmp_path / "plain", *data) == 0

    assert all(
        torch.equal(weights(tmp_path / "late")[name], tensor) for name, tensor in weights(tmp_path / "plain").items()
    )


def test_moves_that_are_too_large_are_named_as_the_cause(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, "perturb=fgm", "perturb.epsilon=1e30") == 5
    assert "\n  Lower the sizes in perturb, lower optimizer.lr, lengthen" in capsys.readouterr().err


def test_two_passes_differ_by_the_dropout_of_the_head(data: list[str], tmp_path: Path) -> None:
    overrides = ["perturb=r_drop", "model.dropout=0", "model.head_dropout=0.5"]
    assert train(tmp_path / "run", *data, *overrides) == 0
    assert main(["eval", f"run={tmp_path / 'run'}", "device=cpu"]) == 0


def test_plan_shows_the_passes_and_the_memory(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *TINY, *data, "perturb=pgd", "perturb.start=50%"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["passes", "4", "forward", "and", "backward", "passes", "a", "step", "after", "step", "3"] in lines
    assert any(line[:1] == ["moved"] for line in lines)
    assert main(["plan", *TINY, *data]) == 0
    assert "passes" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.dropout=0.0"], "model.dropout: without dropout the two passes of a step are equal, got 0"),
        (["loss=dice"], "perturb: compares targets one by one, but the loss is a statistic of the whole batch, got"),
        (["task=regression"], "perturb: takes classes or shares of classes or sets of labels as targets, but the"),
        (["perturb.alpha=0"], "perturb.alpha: must be greater than 0, got 0"),
    ],
)
def test_impossible_comparisons_are_rejected(
    overrides: list[str], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, "perturb=r_drop", *overrides) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task=image_classification"], "perturb: moves the embeddings of tokens, but the model reads images, got"),
        (["model.lora={}"], "perturb: moves the embeddings of tokens, but model.lora does not train them, got 'fgm'"),
        (["model.freeze=['*embedding*']"], "perturb.targets: the weights to move are frozen: token_embedding.weight"),
        (["perturb.targets=[nothing]"], "perturb.targets: matches no parameter, got 'nothing'"),
        (["perturb.epsilon=0"], "perturb.epsilon: must be greater than 0, got 0"),
        (["perturb.weight=1e308"], "perturb.weight: must be greater than 0 and at most 3.4e38, got 1e+308"),
        (["perturb=pgd", "perturb.moves=0"], "perturb.moves: must be at least 1, got 0"),
        (["perturb.start=-1"], "perturb.start: must be "),
        (["~perturb", "perturb.epsilon=1"], "perturb.epsilon: no perturb is chosen, got 1"),
    ],
)
def test_impossible_perturbations_are_rejected(
    overrides: list[str], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = [] if "~perturb" in overrides else ["perturb=fgm"]
    if overrides[0].startswith("task="):
        assert main(["train", *chosen, *overrides, "data=digits"]) == 2
    else:
        assert train(tmp_path / "run", *data, *chosen, *(each for each in overrides if each != "~perturb")) == 2
    assert message in capsys.readouterr().err
