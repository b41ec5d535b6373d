import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import MetricCollection

import trainer.export.formats.onnx as exporter
from tests.export.conftest import Published
from tests.support.documents import artifact_entry, export_manifest
from tests.support.export_models import ToyModel, ToyTask, batches, publish_toy, toy_export_model
from trainer.errors import ConfigError, ProofError
from trainer.export.folder import describe, verify, write_manifest


def test_folder_contains_exactly_the_expected_files(published: Published) -> None:
    assert sorted(path.name for path in published.folder.iterdir()) == [
        "README.md",
        "answers.py",
        "check.py",
        "golden.json",
        "golden.npz",
        "golden.pt",
        "labels.json",
        "manifest.json",
        "model.onnx",
        "model.torchscript.pt",
        "predict.py",
        "rows.py",
        "shapes.py",
        "task.json",
        "texts.py",
        "tokenizer.json",
    ]


def test_model_and_global_state_are_unchanged(published: Published) -> None:
    assert published.before == published.after


def test_returned_artifacts_have_the_measured_values(published: Published) -> None:
    by_name = {artifact.name: artifact for artifact in published.artifacts}
    assert list(by_name) == ["onnx", "torchscript"]
    accuracy = ToyTask().metrics()["accuracy"]
    model = ToyModel().eval()
    for batch in batches():
        accuracy.update(model(**batch.inputs), batch.target)
    for artifact in by_name.values():
        assert artifact.path.stat().st_size == artifact.num_bytes
        assert artifact.largest_difference < 1e-5
        assert artifact.agreement == 1.0
        assert artifact.metric == artifact.pytorch_metric == accuracy.compute().item()
        assert set(artifact.timings[0].milliseconds) == {"pytorch", "onnx", "torchscript"}


def test_manifest_lists_every_file(published: Published) -> None:
    manifest = json.loads((published.folder / "manifest.json").read_text("utf-8"))
    described = [*manifest["artifacts"].values(), *manifest["files"]]
    assert {entry["file"] for entry in described} | {"manifest.json"} == {p.name for p in published.folder.iterdir()}
    for entry in described:
        content = (published.folder / entry["file"]).read_bytes()
        assert entry["bytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()


def test_manifest_records_the_proof(published: Published) -> None:
    manifest = json.loads((published.folder / "manifest.json").read_text("utf-8"))
    assert manifest["formats"] == ["onnx", "torchscript"]
    assert manifest["provenance"] == {"step": 930, "weights": "ema"}
    assert manifest["versions"]["torch"] == version("torch")
    assert manifest["axes"] == {"batch": [1, None], "sequence": [1, 24]}
    declared = {"dtype": "int64", "shape": ["batch", "sequence"]}
    assert manifest["inputs"] == {"input_ids": declared, "attention_mask": declared}
    assert manifest["outputs"] == {"output": {"dtype": "float32", "shape": ["batch", 3]}}
    assert manifest["artifacts"]["onnx"]["output"] == {"name": "output", "shape": ["batch", 3]}
    assert manifest["artifacts"]["torchscript"]["inputs"] == ["input_ids", "attention_mask"]
    for artifact in manifest["artifacts"].values():
        shapes = {(row["sizes"]["batch"], row["sizes"]["sequence"], row["padded"]) for row in artifact["shapes"]}
        assert {(1, 1, False), (1, 24, True), (3, 1, False), (3, 24, False)} <= shapes
        assert artifact["metrics"] == manifest["metrics"]
        assert artifact["largest_difference"] >= max(row["difference"] for row in artifact["shapes"])
    assert {row["sizes"]["batch"] for row in manifest["timings"]["rows"]} == {1, 8}


def test_artifact_above_the_tolerance_is_removed_and_the_other_published(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "model.onnx").write_text("of an earlier call")
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".tmp-killed").mkdir()
    with pytest.raises(ProofError) as caught:  # ONNX Runtime rounds differently from torch; a state dict cannot
        publish_toy(tmp_path, toy_export_model(ToyModel()), ["onnx", "pth"], tolerance=1e-12, force=True)
    (message,) = caught.value.messages
    assert message.startswith("model.onnx: output[")
    assert "batch=" in message
    assert "input_ids (" in message
    assert "within 1e-12, got " in message
    left = {path.name for path in tmp_path.iterdir()}
    bundle = {"golden.json", "golden.npz", "golden.pt", "labels.json", "tokenizer.json", "README.md"}
    assert left == {"model.pth", "manifest.json", *bundle}
    assert json.loads((tmp_path / "manifest.json").read_text("utf-8"))["formats"] == ["pth"]
    assert capfd.readouterr() == ("", "")
    # torch's own trace goes to a file if anywhere: it cannot be disabled and never propagates.
    others = [record for record in caplog.records if record.name != "torch.__trace"]
    assert [record.getMessage() for record in others] == [
        f"{tmp_path / 'model.onnx'}, from an earlier export, is removed: no intact manifest.json describes it"
    ]


class Frozen(ToyModel):
    """Reads a size as a Python number, which tracing records as a constant."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Any = None) -> Tensor:
        positions = torch.arange(int(input_ids.shape[1]))
        return super().forward(input_ids, attention_mask, positions)


def test_frozen_dimension_in_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"model\.torchscript\.pt: output\[0, \d\] at batch=1, sequence=1, without"):
        publish_toy(tmp_path, toy_export_model(Frozen()), ["torchscript"])
    assert list(tmp_path.iterdir()) == []


class Constant(ToyModel):
    """Is right only at the length that it is traced at."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Any = None) -> Tensor:
        if input_ids.shape[1] == 12:
            return super().forward(input_ids, attention_mask)
        return super().forward(input_ids, attention_mask) * 2


def test_frozen_dimension_in_onnx_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"model\.onnx: cannot be exported .*input_ids .*sequence"):
        publish_toy(tmp_path, toy_export_model(Constant()), ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_branch_on_the_traced_shape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"model\.torchscript\.pt: output\[\d, \d\] at batch=1, sequence=1"):
        publish_toy(tmp_path, toy_export_model(Constant()), ["torchscript"])


def test_no_formats_write_nothing(tmp_path: Path) -> None:
    assert publish_toy(tmp_path / "export", toy_export_model(ToyModel()), []) == []
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tolerance", -1e-9),
        ("tolerance", 0.0),
        ("metric_budget", -1e-9),
        ("metric_budget", float("nan")),
        ("golden", 5),
    ],
)
def test_limits_out_of_range_are_rejected(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: must be "):
        publish_toy(tmp_path, toy_export_model(ToyModel()), ["torchscript"], **{name: value})


def test_large_weights_are_listed_verified_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_PROTOBUF_LIMIT", 1)
    (artifact,) = publish_toy(tmp_path, toy_export_model(ToyModel()), ["onnx"])
    main, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    (external,) = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["artifacts"]["onnx"]["beside"]
    assert external["file"] == "model.onnx.data"
    assert external["sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    assert artifact.num_bytes == main.stat().st_size + data.stat().st_size
    assert set(verify(tmp_path).values()) == {""}
    data.write_bytes(data.read_bytes()[:-1])
    assert {name for name, fault in verify(tmp_path).items() if fault} == {"model.onnx.data"}
    publish_toy(tmp_path, toy_export_model(ToyModel(), provenance={"step": 2}), ["torchscript"], force=True)
    assert not main.exists()
    assert not data.exists()


def test_artifact_that_is_a_folder_is_published_listed_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "safetensors").mkdir()
    (tmp_path / "safetensors" / "old.bin").write_text("of an earlier call")
    old = artifact_entry(**describe(tmp_path / "safetensors" / "old.bin", tmp_path))
    write_manifest(tmp_path / "manifest.json", export_manifest(artifacts={"safetensors": old}))
    (artifact,) = publish_toy(tmp_path, toy_export_model(ToyModel()), ["safetensors"])
    files = {path.name for path in (tmp_path / "safetensors").iterdir()}
    assert files == {"model.safetensors", "config.json", "labels.json", "tokenizer.json"}
    entry = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["artifacts"]["safetensors"]
    assert {each["file"] for each in (entry, *entry["beside"])} == {f"safetensors/{name}" for name in files}
    assert artifact.num_bytes == sum(each["bytes"] for each in (entry, *entry["beside"]))
    assert artifact.largest_difference == 0.0
    assert artifact.timings == []
    publish_toy(tmp_path, toy_export_model(ToyModel(), provenance={"step": 2}), ["pth"])
    assert not (tmp_path / "safetensors").exists()


def test_half_precision_weights_are_judged_by_the_metric(tmp_path: Path) -> None:
    whole = publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth", "safetensors"])
    half = publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth", "safetensors"], half=True)
    for before, after in zip(whole, half, strict=True):
        assert after.largest_difference > before.largest_difference == 0.0
        assert after.num_bytes < before.num_bytes
    entries = json.loads((tmp_path / "manifest.json").read_text("utf-8"))["artifacts"].values()
    assert [(entry["variant"], entry["exact"]) for entry in entries] == [("fp16", False)] * 2


def test_foreign_files_stay(tmp_path: Path) -> None:
    names = ("model.pth.notes", "golden-mine.txt", "notes/model.onnx")
    (tmp_path / "notes").mkdir()
    for name in names:
        (tmp_path / name).write_text("mine")
    for provenance in ({}, {"step": 2}):
        publish_toy(tmp_path, toy_export_model(ToyModel(), provenance=provenance), ["pth"])
    assert [(tmp_path / name).read_text() for name in names] == ["mine"] * 3


def test_foreign_files_in_the_way_are_reported_before_any_work(tmp_path: Path) -> None:
    publish_toy(tmp_path, toy_export_model(ToyModel()), ["safetensors"])
    (tmp_path / "tokenizer.json").unlink()
    for name in ("model.pth", "manifest.json.d", "tokenizer.json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    (tmp_path / "safetensors" / "mine").write_text("mine")

    def work(**inputs: Tensor) -> Tensor:
        raise AssertionError("the model ran")

    model = ToyModel()
    model.forward = work  # type: ignore[assignment, method-assign]
    with pytest.raises(ConfigError) as caught:
        publish_toy(tmp_path, toy_export_model(model), ["pth"])
    assert caught.value.messages == (
        f"{tmp_path / 'model.pth'}: is a folder where an export writes a file. Move it away, or delete it.",
        f"{tmp_path / 'tokenizer.json'}: is a folder where an export writes a file. Move it away, or delete it.",
        f"{tmp_path / 'safetensors/mine'}: was not written by an export, or has been changed since. "
        "Move it away, or set force=true of trainer export to replace it.",
    )
    shutil.rmtree(tmp_path / "safetensors")
    (tmp_path / "safetensors").touch()
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ConfigError, match=r"manifest\.json: is a folder[^\0]*safetensors: is a file where an export"):
        publish_toy(tmp_path, toy_export_model(model), ["pth"])


def test_files_that_no_export_has_written_are_replaced_only_by_force(tmp_path: Path) -> None:
    publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth"])
    (tmp_path / "README.md").write_text("mine")
    names = ["README.md", "README.md.data", "model.pt2", "model.onnx.data", "predict.py", "safetensors/mine"]
    (tmp_path / "safetensors").mkdir()
    for name in names:
        (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError) as caught:
        publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth"])
    assert sorted(message.split(": ")[0] for message in caught.value.messages) == sorted(
        str(tmp_path / name) for name in names
    )
    assert {(tmp_path / name).read_text() for name in names} == {"mine"}
    publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth"], force=True)
    assert set(verify(tmp_path).values()) == {""}
    assert not any((tmp_path / name).exists() for name in names[1:])
    publish_toy(tmp_path, toy_export_model(ToyModel()), ["pth"])


class Unsupervised(ToyTask):
    """Selects its best checkpoint by the loss."""

    monitor = "loss"


class Unscored(Unsupervised):
    """A task without metrics."""

    def metrics(self) -> MetricCollection:
        return MetricCollection({})


def test_task_that_monitors_the_loss_is_judged_by_its_first_metric(tmp_path: Path) -> None:
    (artifact,) = publish_toy(tmp_path, toy_export_model(ToyModel(), Unsupervised()), ["pth"])
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert manifest["monitor"] == "accuracy"
    assert artifact.metric == artifact.pytorch_metric == manifest["metrics"]["accuracy"]


def test_task_without_metrics_is_judged_by_its_outputs(tmp_path: Path) -> None:
    (artifact,) = publish_toy(tmp_path, toy_export_model(ToyModel(), Unscored()), ["pth"])
    manifest = json.loads((tmp_path / "manifest.json").read_text("utf-8"))
    assert (manifest["monitor"], manifest["metrics"]) == (None, {})
    assert (artifact.metric, artifact.agreement, artifact.largest_difference) == (None, 1.0, 0.0)


class TooLarge(ToyModel):
    """Has weights beyond the range of float16."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.head.weight.mul_(1e6)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ProofError, match=r"model\.pth: cannot be loaded: weights: head\.weight contains NaN.*half=false"
    ):
        publish_toy(tmp_path, toy_export_model(TooLarge()), ["pth"], half=True)
    assert list(tmp_path.iterdir()) == []
