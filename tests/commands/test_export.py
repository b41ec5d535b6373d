"""`trainer export prune=...`: artifacts of a pruned copy; the run does not change."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.numpy import load_file
from torch import nn
from torch.nn.utils import prune

from tests.support.jobs import checkpoint_files, train, working_in, write_data
from trainer.builders.checkpointed import load_checkpointed_model
from trainer.cli import main

WEIGHTS = [
    "blocks.0.query_key_value.weight",
    "blocks.0.attention_output.weight",
    "blocks.0.feed_forward.0.weight",
    "blocks.0.feed_forward.2.weight",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("pruned")
    with working_in(made):
        options = ["train.duration=40", "optimizer.lr=0.02", "train.eval_every=20", "ema.decay=null"]
        assert train(made / "run", *write_data(made), *options) == 0
        yield made


def export(run: Path, *overrides: str, name: str = "export") -> dict[str, Any]:
    """Export and return the manifest in the folder `name`."""
    assert main(["export", f"run={run}", *overrides]) == 0
    content: dict[str, Any] = json.loads((run / name / "manifest.json").read_text(encoding="utf-8"))
    return content


def test_artifacts_contain_the_pruned_model(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    before = checkpoint_files(run, 40)
    name = "export-pruned-l1-0.3"
    manifest = export(run, "prune=l1", "prune.amount=0.3", "export.formats=[torchscript]", name=name)
    shown = capsys.readouterr().out
    pruning = manifest["provenance"]["pruning"]
    kept = load_file(run / "model" / "model.safetensors")

    assert manifest["formats"] == ["torchscript"]
    assert max(entry["largest_difference"] for entry in manifest["artifacts"].values()) < 1e-4
    # PyTorch computed both scores on the same split.
    score = json.loads((run / "eval" / "test.json").read_text(encoding="utf-8"))
    assert pruning["metrics"]["before"]["accuracy"] == score["accuracy"]
    assert pruning["metrics"]["before"]["loss"] == pytest.approx(score["loss"], rel=1e-5)
    assert pruning["metrics"]["after"]["accuracy"] == manifest["metrics"]["accuracy"]
    assert pruning["metrics"]["after"]["loss"] != pruning["metrics"]["before"]["loss"]
    assert [layer["name"] for layer in pruning["layers"]] == WEIGHTS
    for layer in pruning["layers"]:
        assert layer["zeros"] == round(0.3 * layer["size"])
        assert layer["shape"] == list(kept[layer["name"]].shape)
        assert f"{layer['name']:<32}  {layer['shape'][0]} x {layer['shape'][1]}" in shown
    assert pruning["total"]["zeros"] == sum(layer["zeros"] for layer in pruning["layers"])
    sizes = pruning["bytes"]
    assert sizes["before"]["weights"] == sizes["after"]["weights"]
    assert 0 < sizes["after"]["weights"] - sum(value.nbytes for value in kept.values()) < 2000
    assert sizes["after"]["compressed"] < sizes["before"]["compressed"] < sizes["before"]["weights"]
    assert "model before and after pruning" in shown
    # Neither the checkpoints nor `model/` change.
    assert checkpoint_files(run, 40) == before
    assert all((kept[name] != 0).all() for name in WEIGHTS)


@pytest.mark.slow
def test_graph_contains_the_weights_that_torch_would_prune(folder: Path) -> None:
    run = folder / "run"
    export(run, "prune=ln", "prune.amount=0.25", "export.formats=[onnx]", name="export-pruned-ln-0.25")
    graph = onnx.load(run / "export-pruned-ln-0.25" / "model.onnx").graph
    stored = [numpy_helper.to_array(value) for value in graph.initializer]
    weights = load_file(run / "model" / "model.safetensors")

    for name in WEIGHTS:
        layer = nn.Linear(*weights[name].shape[::-1])
        layer.weight.data = torch.from_numpy(weights[name])
        prune.ln_structured(layer, "weight", 0.25, n=2, dim=0)
        expected = layer.weight.detach().numpy()
        # A graph may contain a matrix or its transpose.
        same = [
            np.array_equal(value, each)
            for value in stored
            for each in (expected, expected.T)
            if value.shape == each.shape
        ]
        assert any(same), name


def test_artifacts_of_the_unpruned_model_are_kept(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "run"
    pruning = ["prune=l1", "prune.amount=0.6"]
    whole = export(run, "export.formats=[torchscript,pth]")
    assert "pruning" not in whole["provenance"]
    pruned = export(run, *pruning, "export.formats=[pth]", name="export-pruned-l1-0.6")
    total = pruned["provenance"]["pruning"]["total"]
    said = (run / "export-pruned-l1-0.6" / "README.md").read_text(encoding="utf-8")
    assert f"{total['zeros']} of the {total['size']} weights of its layers are 0" in said
    assert main(["verify", f"run={run}"]) == 0
    assert export(run, "export.formats=[safetensors]")["artifacts"].keys() == {"safetensors", "torchscript", "pth"}
    export(run, *pruning, "export.formats=[pth]")
    assert main(["verify", f"run={run}"]) == 0

    page = run / "export" / "README.md"
    page.write_text("mine", encoding="utf-8")
    options = ["export", f"run={run}", "export.formats=[pth]"]
    assert main(options) == 2
    assert f"{page}: was not written by an export" in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "mine"
    assert main([*options, "force=true"]) == 0
    assert main(["verify", f"run={run}"]) == 0

    (run / "export-pruned-l1-0.6" / "model.pth").write_bytes(b"")
    capsys.readouterr()
    assert main(["verify", f"run={run}"]) == 3
    assert "export-pruned-l1-0.6/model.pth: has 0 bytes" in capsys.readouterr().err


def test_random_pruning_follows_the_seed_of_the_run(folder: Path) -> None:
    options = ["prune=random", "prune.amount=0.5", "export.formats=[torchscript]"]
    manifests = [export(folder / "run", *options, name="export-pruned-random-0.5") for _ in range(2)]
    first, second = (manifest["provenance"]["pruning"] for manifest in manifests)

    assert first == second
    assert first["total"]["share"] == 0.5


def test_pruned_model_can_be_pruned_again(folder: Path, tmp_path: Path) -> None:
    options = ["train.duration=4", "prune=l1", "prune.amount=0.5"]
    assert train(tmp_path / "run", *write_data(folder), *options) == 0
    options = ["prune=l1", "prune.amount=0.75", "export.formats=[torchscript]"]
    manifest = export(tmp_path / "run", *options, name="export-pruned-l1-0.75")

    assert manifest["provenance"]["pruning"]["total"]["zeros"] == 1536 * 3 // 4


def test_adapters_are_merged_before_pruning(folder: Path, tmp_path: Path) -> None:
    options = ["train.duration=4", "model.lora={rank:2}"]
    assert train(tmp_path / "run", *write_data(folder), *options) == 0
    options = ["prune=l1", "prune.amount=0.5", "export.formats=[torchscript]"]
    manifest = export(tmp_path / "run", *options, name="export-pruned-l1-0.5")

    assert [layer["name"] for layer in manifest["provenance"]["pruning"]["layers"]] == WEIGHTS
    assert manifest["provenance"]["pruning"]["total"]["share"] == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prune=l2"], "prune: unknown option, got 'l2'"),
        (["prune.amount=0.3"], "prune.amount: no prune is chosen, got 0.3"),
        (["prune=l1", "prune.amount=2.5"], "prune.amount: must be "),
        (
            ["prune=l1", "prune.targets=[nothing]"],
            "prune.targets: matches no parameter with two axes or more, got 'nothing'",
        ),
    ],
)
def test_invalid_pruning_is_refused(
    overrides: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", f"run={folder / 'run'}", *overrides]) == 2
    assert message in capsys.readouterr().err


def test_a_copy_of_a_run_keeps_its_artifacts(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "run", tmp_path / "copy")
    export(tmp_path / "copy", "export.formats=[torchscript]", name="export")
    (tmp_path / "copy").rename(tmp_path / "renamed")

    # The run may have other artifacts from earlier tests.
    artifacts = export(tmp_path / "renamed", "export.formats=[pth]")["artifacts"]
    assert artifacts.keys() >= {"torchscript", "pth"}


def test_the_proof_reads_every_sample_once_with_little_padding(folder: Path) -> None:
    loaded = load_checkpointed_model(
        folder / "run", [], [("loader.eval_batch_size", 8)], checkpoint="best", weights="auto", device="cpu"
    )
    in_order = list(loaded.split_batches("train", "padded"))
    by_length = list(loaded.proof_batches("train"))

    assert sorted(sample for batch in by_length for sample in batch.ids) == [
        sample for batch in in_order for sample in batch.ids
    ]
    assert {batch.num_samples for batch in by_length[:-1]} == {8}
    shares = [
        float(torch.cat([batch.inputs["attention_mask"].flatten() for batch in batches]).float().mean())
        for batches in (in_order, by_length)
    ]
    assert shares[0] < 0.85 < 0.95 < shares[1]
