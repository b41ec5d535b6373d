"""Artifacts of an earlier export that are reused."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.support.export_models import ToyModel, publish_toy, toy_export_model
from trainer.errors import ProofError
from trainer.export.folder import verify
from trainer.export.manifest import reuse_artifacts

MODEL = toy_export_model(ToyModel(), provenance={"step": 930, "weights": "ema", "score": float("nan")})


def manifest(folder: Path) -> Any:
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def test_artifacts_of_the_same_model_are_reused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish_toy(tmp_path, MODEL, ["torchscript", "safetensors"])
    before = manifest(tmp_path)
    inode = (tmp_path / "model.torchscript.pt").stat().st_ino

    artifacts = publish_toy(tmp_path, MODEL, ["pth"])
    now = manifest(tmp_path)
    assert [(each.name, each.reused) for each in artifacts] == [
        ("torchscript", True),
        ("safetensors", True),
        ("pth", False),
    ]
    assert (tmp_path / "model.torchscript.pt").stat().st_ino == inode
    assert now["formats"] == ["torchscript", "safetensors", "pth"]
    assert now["kept"] == ["torchscript", "safetensors"]
    for name in now["kept"]:
        assert now["artifacts"][name] == before["artifacts"][name]
    assert set(now["timings"]["rows"][0]["milliseconds"]) == {"pytorch", "torchscript"}
    readme = (tmp_path / "README.md").read_text("utf-8")
    assert "An earlier export of the same model wrote `model.torchscript.pt`, `safetensors/model.safetensors`" in readme
    assert set(verify(tmp_path).values()) == {""}

    publish_toy(tmp_path, MODEL, ["torchscript", "safetensors"])
    assert manifest(tmp_path)["kept"] == ["pth"]
    assert set(verify(tmp_path).values()) == {""}
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


class Broken(ToyModel):
    """Its program is right only at the length that it is traced at; its weights are not affected."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return super().forward(*inputs, **named) * len(str(named["input_ids"].shape[1]))


def test_folder_is_unchanged_if_nothing_is_proved(tmp_path: Path) -> None:
    publish_toy(tmp_path, MODEL, ["pth", "torchscript"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for provenance in (MODEL.provenance, {"step": 931}):
        with pytest.raises(ProofError, match=r"model\.torchscript\.pt"):
            publish_toy(tmp_path, toy_export_model(Broken(), provenance=provenance), ["torchscript"])
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_earlier_artifact_stays_if_its_replacement_fails(tmp_path: Path) -> None:
    publish_toy(tmp_path, MODEL, ["torchscript"])
    with pytest.raises(ProofError, match=r"model\.torchscript\.pt"):
        publish_toy(tmp_path, toy_export_model(Broken(), provenance=MODEL.provenance), ["torchscript", "pth"])
    assert (manifest(tmp_path)["formats"], manifest(tmp_path)["kept"]) == (["torchscript", "pth"], ["torchscript"])
    assert set(verify(tmp_path).values()) == {""}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"provenance": {"step": 931, "weights": "raw"}}, "this export differs in step, weights"),
        ({"tolerance": 1e-5}, "this export differs in tolerance"),
    ],
)
def test_artifacts_of_another_model_are_removed_with_a_warning(
    change: dict[str, Any], reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish_toy(tmp_path, MODEL, ["pth", "safetensors"])
    model = toy_export_model(ToyModel(), provenance=change.pop("provenance", MODEL.provenance))
    publish_toy(tmp_path, model, ["pth_legacy"], **change)
    assert manifest(tmp_path)["formats"] == ["pth_legacy"]
    assert set(verify(tmp_path).values()) == {""}
    assert not (tmp_path / "safetensors").exists()
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert messages == [
        f"{tmp_path / name}, from an earlier export, is removed: {reason}" for name in ("safetensors", "model.pth")
    ]


def lost(folder: Path, stage: Path, **changed: Any) -> dict[str, str]:
    """Return the artifacts that cannot be reused next to a new `pth_legacy`, with the reasons."""
    document = manifest(folder)
    shutil.rmtree(stage, ignore_errors=True)
    conditions = {key: document[key] for key in ("provenance", "versions", "tolerance", "metric_budget")}
    return reuse_artifacts(folder, stage, ["pth_legacy"], conditions | changed).lost


def test_changed_artifacts_are_not_reused(tmp_path: Path) -> None:
    folder, stage = tmp_path / "export", tmp_path / "stage"
    publish_toy(folder, MODEL, ["pth", "safetensors", "pth_legacy"])
    text = (folder / "manifest.json").read_text("utf-8")
    (folder / "safetensors" / "config.json").write_text("{}")
    assert lost(folder, stage) == {"safetensors": "it has 2 bytes instead of 3"}
    assert {path.name for path in stage.iterdir()} == {"model.pth"}
    (folder / "model.onnx").write_text("somebody's")
    assert lost(folder, stage)["model.onnx"] == "manifest.json does not describe it"
    assert lost(folder, stage, tolerance=1.0) == lost(folder, stage, metric_budget=1.0) == lost(folder, stage)
    torch = {**manifest(folder)["versions"], "torch": "1"}
    assert lost(folder, stage, versions=torch)["model.pth"] == "this export differs in torch"
    for wrong in ("", "[]", text.replace('"metrics"', '"scores"'), text.replace('"tolerance"', '"x"')):
        conditions = {"provenance": {}, "versions": {}, "tolerance": 1.0, "metric_budget": 1.0}
        (folder / "manifest.json").write_text(wrong)
        assert (
            reuse_artifacts(folder, stage, [], conditions).lost["model.pth"] == "no intact manifest.json describes it"
        )


def test_files_are_copied_on_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_to_link(*paths: Any) -> None:
        raise PermissionError("not here")

    publish_toy(tmp_path, MODEL, ["safetensors"])
    monkeypatch.setattr(os, "link", refuse_to_link)
    publish_toy(tmp_path, MODEL, ["pth"])
    assert manifest(tmp_path)["kept"] == ["safetensors"]
    assert set(verify(tmp_path).values()) == {""}
