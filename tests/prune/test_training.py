"""A run that is pruned at its start: the zeros stay at every checkpoint, whatever trains the rest."""

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
    """At every checkpoint the masks are the same, and what they prune is 0 in every kind of weights; the rest moves."""
    folders = checkpoints(run)
    assert len(folders) == STEPS
    first = load_file(folders[0] / "masks.safetensors")
    assert first.keys() == names
    for folder in folders:
        masks = load_file(folder / "masks.safetensors")
        assert all(torch.equal(masks[name], first[name]) for name in first)
        for kind in ("model", "ema"):
            weights = load_file(folder / f"{kind}.safetensors")
            for name, mask in masks.items():
                assert (weights[name][~mask] == 0).all()
                assert not weights[name][~mask].signbit().any()
                assert (weights[name][mask] != 0).all()
    last, start = (load_file(folder / "model.safetensors") for folder in (folders[-1], folders[0]))
    assert all((last[name] != start[name]).any() for name in names)


OPTIONS = {
    "l1": HALF,
    "fp16, muon, accumulation": [*HALF, "precision=fp16", "optimizer=muon", "train.accumulate=3"],
    "random, sgd": ["prune=random", "optimizer=sgd", "optimizer.momentum=0.9"],
    "ln, lion": ["prune=ln", "prune.dim=1", "optimizer=lion"],
    "global, noise": ["prune=global_magnitude", "model.noisy_tune=0.5", "optimizer=lamb"],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_the_zeros_stay(name: str, data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *OPTIONS[name]) == 0

    assert_zeros_stay(tmp_path / "run", {*WEIGHTS})


def test_zeros_are_counted_at_the_start_and_at_the_end(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, *HALF, "prune.targets=['*feed_forward*']") == 0

    found = events(tmp_path / "run", "sparsity")
    assert [(event["step"], event["weights"]) for event in found] == [(0, "raw"), (0, "ema"), (6, "raw"), (6, "ema")]
    layers = {name: 0.5 for name in WEIGHTS if "feed_forward" in name}
    assert all((event["zeros"], event["share"], event["layers"]) == (256, 0.5, layers) for event in found)


def test_weights_that_are_loaded_are_pruned_as_they_are(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "first", *data, "optimizer.lr=0.01") == 0
    file = checkpoints(tmp_path / "first")[-1] / "model.safetensors"
    given = [f"model.weights={file}", "optimizer.lr=1e-9", "ema.decay=null"]
    assert train(tmp_path / "second", *data, *HALF, *given) == 0

    before, after = load_file(file), load_file(checkpoints(tmp_path / "second")[-1] / "model.safetensors")
    masks = load_file(checkpoints(tmp_path / "second")[-1] / "masks.safetensors")
    for name, size in WEIGHTS.items():
        # torch's own rule, on what was loaded.
        smallest = before[name].abs().flatten().topk(size // 2, largest=False).indices
        assert (~masks[name].flatten()).nonzero().flatten().equal(smallest.sort().values)
        torch.testing.assert_close(after[name], before[name] * masks[name], rtol=0, atol=1e-6)


def test_accumulation_changes_nothing(data: list[str], tmp_path: Path) -> None:
    # Dropout draws by position in the micro-batch, so it is off here.
    without = [*data, *HALF, "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.05"]
    assert train(tmp_path / "whole", *without) == 0
    assert train(tmp_path / "cut", *without, "train.accumulate=4") == 0

    whole, cut = (events(tmp_path / name, "train") for name in ("whole", "cut"))
    for ours, theirs in zip(cut, whole, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=2e-5)
    ours, theirs = (load_file(checkpoints(tmp_path / name)[-1] / "model.safetensors") for name in ("whole", "cut"))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=2e-6)


def test_with_frozen_layers_and_features(data: list[str], tmp_path: Path) -> None:
    given = ["model.features=[blocks.0]", "model.freeze=[{match:blocks.0.feed_forward,until:3}]"]
    assert train(tmp_path / "run", *data, *HALF, *given) == 0

    assert_zeros_stay(tmp_path / "run", {f"backbone.{name}" for name in WEIGHTS})


def test_evaluation_and_artifacts_keep_the_zeros(data: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(run, *data, *HALF, "export.formats=[torchscript]") == 0
    left = load_file(run / "model" / "model.safetensors")
    manifest = json.loads((run / "export" / "manifest.json").read_text())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, under another category in each version
        script = dict(torch.jit.load(run / "export" / "model.torchscript.pt").state_dict())

    assert {name: int((left[name] == 0).sum()) for name in WEIGHTS} == {n: size // 2 for n, size in WEIGHTS.items()}
    assert {name: int((script[f"model.{name}"] == 0).sum()) for name in WEIGHTS} == {
        n: s // 2 for n, s in WEIGHTS.items()
    }
    pruning = manifest["provenance"]["pruning"]
    assert pruning["method"]["amount"] == 0.5
    assert (pruning["total"]["zeros"], pruning["total"]["size"]) == (768, 1536)
    before = (run / "eval" / "test.json").read_text()
    assert main(["eval", f"run={run}", "device=cpu"]) == 0
    assert (run / "eval" / "test.json").read_text() == before


def test_a_replay_from_the_start_prunes_the_same(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, "prune=random") == 0

    assert main(["verify", f"run={tmp_path / 'run'}", "start=step-0"]) == 0
    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["prune=l1", "model.lora={rank:2}"], "prune: the adapters of model.lora would fill in what is pruned"),
        (["prune.amount=0.3"], "prune.amount: no prune is chosen, got 0.3. Add prune=global_magnitude or prune=l1"),
        (["prune=l3"], "prune: there is no such option, got 'l3'. Known: global_magnitude, l1, ln, random"),
        (["prune=l1", "prune.amount=1.0"], "prune.amount: must be a share, at least 0 and below 1, or a count"),
        (["prune=l1", "prune.amount=-2"], "prune.amount: must be a share, at least 0 and below 1, or a count"),
        (["prune=ln", "prune.n=0"], "prune.n: must be above 0, got 0"),
        (["prune=ln", "prune.dim=a"], "prune.dim: must be an integer, got 'a'"),
        (
            ["prune=l1", "prune.target=[head]"],
            "prune.target: there is no such key, got ['head']. Did you mean prune.targets",
        ),
        (["prune=l1", "prune.targets=[head.bias]"], "prune.targets: fits no parameter with two axes or more"),
        (["prune=ln", "prune.dim=2"], "prune.dim: there is no such axis in weights of 2, got 2"),
        (["prune=l1", "prune.amount=300"], "prune.amount: leaves nothing of the smallest weights of this model"),
        (
            ["prune=l1", "prune.amount=300", "prune.targets=['blocks.0.*']"],
            "prune.amount: leaves nothing of blocks.0.attention_output.weight",
        ),
    ],
)
def test_what_cannot_be_pruned_so(
    overrides: list[str], told: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, *overrides) == 2
    assert told in capsys.readouterr().err


def test_a_resumed_run_keeps_its_pruning(data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", *data, *HALF) == 0

    assert main(["train", f"resume={tmp_path / 'run'}", "prune.amount=0.6"]) == 2
    assert "prune.amount: a resumed run keeps it: 0.5 -> 0.6" in capsys.readouterr().err
