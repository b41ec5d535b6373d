"""A run that is pruned at its start keeps its zeros in every checkpoint, whatever trains the other weights."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import events, train, working_in, write_data
from trainer.cli import main

STEPS = 6
BASE = [f"train.duration={STEPS}", "train.eval_every=3", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]
HALF = ["prune=l1", "prune.amount=0.5"]
WEIGHTS = {
    "blocks.0.query_key_value.weight": 768,
    "blocks.0.attention_output.weight": 256,
    "blocks.0.feed_forward.0.weight": 256,
    "blocks.0.feed_forward.2.weight": 256,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("pruned")
    with working_in(folder):
        yield [*write_data(folder), *BASE]


def checkpoints(run: Path) -> list[Path]:
    return sorted((run / "checkpoints").iterdir())


def assert_zeros_stay(run: Path, names: set[str]) -> None:
    """Every checkpoint has the same masks, pruned elements are 0 in the model and its average, and the others move."""
    folders = checkpoints(run)
    assert len(folders) == STEPS
    first = load_file(folders[0] / "masks.safetensors")
    assert first.keys() == names
    for folder in folders:
        masks = load_file(folder / "masks.safetensors")
        assert all(torch.equal(masks[name], first[name]) for name in first)
        for file in ("model", "ema"):
            weights = load_file(folder / f"{file}.safetensors")
            for name, mask in masks.items():
                assert (weights[name][~mask] == 0).all()
                assert not weights[name][~mask].signbit().any()
                assert (weights[name][mask] != 0).all()
    last, start = (load_file(folder / "model.safetensors") for folder in (folders[-1], folders[0]))
    assert all((last[name] != start[name]).any() for name in names)


OPTIONS = {
    "l1": HALF,
    "fp16, muon, accumulation": [*HALF, "precision=fp16", "optimizer=muon", "train.accumulate=3"],
    "ln, lion": ["prune=ln", "prune.dim=1", "optimizer=lion"],
    "global, noise": ["prune=global_magnitude", "model.noisy_tune=0.5", "optimizer=lamb"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_zeros_stay(name: str, data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *OPTIONS[name]) == 0

    assert_zeros_stay(tmp_path / "run", {*WEIGHTS})


def test_zeros_are_logged_at_the_start_and_at_the_end(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *HALF, "prune.targets=['*feed_forward*']") == 0

    logged = events(tmp_path / "run", "sparsity")
    assert [(event["step"], event["weights"]) for event in logged] == [(0, "raw"), (0, "ema"), (6, "raw"), (6, "ema")]
    layers = {name: 0.5 for name in WEIGHTS if "feed_forward" in name}
    assert all((event["zeros"], event["share"], event["layers"]) == (256, 0.5, layers) for event in logged)


def test_loaded_weights_are_pruned(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "first", *data, "optimizer.lr=0.01") == 0
    file = checkpoints(tmp_path / "first")[-1] / "model.safetensors"
    overrides = [f"model.weights={file}", "optimizer.lr=1e-9", "ema.decay=null"]
    assert train(tmp_path / "second", *data, *HALF, *overrides) == 0

    before, after = load_file(file), load_file(checkpoints(tmp_path / "second")[-1] / "model.safetensors")
    masks = load_file(checkpoints(tmp_path / "second")[-1] / "masks.safetensors")
    for name, size in WEIGHTS.items():
        # The rule of torch's L1Unstructured, applied to the loaded weights.
        smallest = before[name].abs().flatten().topk(size // 2, largest=False).indices
        assert (~masks[name].flatten()).nonzero().flatten().equal(smallest.sort().values)
        torch.testing.assert_close(after[name], before[name] * masks[name], rtol=0, atol=1e-6)


def test_accumulation_does_not_change_the_run(data: list[str], tmp_path: Path) -> None:
    # Dropout depends on the position in the micro-batch, so it is off here.
    overrides = [*data, *HALF, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.05"]
    assert train(tmp_path / "whole", *overrides) == 0
    assert train(tmp_path / "cut", *overrides, "train.accumulate=4") == 0

    whole, cut = (events(tmp_path / name, "train") for name in ("whole", "cut"))
    for ours, theirs in zip(cut, whole, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=2e-5)
    ours, theirs = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("whole", "cut"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-6)


def test_zeros_stay_with_frozen_layers_and_features(data: list[str], tmp_path: Path) -> None:
    overrides = ["model.features=[blocks.0]", "model.freeze=[{match:blocks.0.feed_forward,until:3}]"]
    assert train(tmp_path / "run", *data, *HALF, *overrides) == 0

    assert_zeros_stay(tmp_path / "run", {f"backbone.{name}" for name in WEIGHTS})


def test_evaluation_and_artifacts_keep_the_zeros(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *data, *HALF, "export.formats=[torchscript]") == 0
    weights = load_file(run / "model" / "model.safetensors")
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, under another category in each version
        script = dict(torch.jit.load(run / "export" / "model.torchscript.pt").state_dict())

    for name, size in WEIGHTS.items():
        assert (weights[name] == 0).sum() == (script[f"model.{name}"] == 0).sum() == size // 2
    pruning = manifest["provenance"]["pruning"]
    assert pruning["method"]["amount"] == 0.5
    assert (pruning["total"]["zeros"], pruning["total"]["size"]) == (768, 1536)
    before = (run / "eval" / "test.json").read_text()
    assert main(["eval", f"run={run}", "device=cpu"]) == 0
    assert (run / "eval" / "test.json").read_text() == before


def test_replay_from_the_start_computes_the_same_masks(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, "prune=random") == 0

    assert main(["verify", f"run={tmp_path / 'run'}", "start=step-0"]) == 0
    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune=l1", "model.lora={rank:2}"], "prune: the adapters of model.lora"),
        (["prune.amount=0.3"], "prune.amount: no prune is chosen, got 0.3. Add prune=global_magnitude or prune=l1"),
        (["prune=l1", "prune.amount=1.0"], "prune.amount: must be "),
        (["prune=ln", "prune.n=0"], "prune.n: must be "),
        (["prune=ln", "prune.dim=a"], "prune.dim: must be an integer, got 'a'"),
        (["prune=l1", "prune.targets=[head.bias]"], "prune.targets: "),
        (["prune=ln", "prune.dim=2"], "prune.dim: must be an axis"),
        (["prune=l1", "prune.amount=300"], "prune.amount: must be less than"),
        (
            ["prune=l1", "prune.amount=300", "prune.targets=['blocks.0.*']"],
            "prune.amount: prunes all of blocks.0.attention_output.weight",
        ),
    ],
)
def test_impossible_pruning_is_rejected(
    overrides: list[str], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, *overrides) == 2
    assert message in capsys.readouterr().err


def test_resume_rejects_another_amount(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *data, *HALF) == 0

    assert main(["train", f"resume={tmp_path / 'run'}", "prune.amount=0.6"]) == 2
    assert "prune.amount: cannot change when a run is resumed: 0.5 -> 0.6" in capsys.readouterr().err
