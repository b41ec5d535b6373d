"""The float32 graph that several formats share."""

import gc
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import ExportedProgram

import trainer.export.onnx as exporter
from tests.support.export_models import ToyModel, ToyTask, publish_toy, toy_original
from trainer.export import float_graph
from trainer.export.onnx import open_session, save_graph
from trainer.export.subject import Subject


def test_the_graph_is_exported_once_whoever_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def counting(program: ExportedProgram, path: Path, axes: Any) -> int:
        written.append(path)
        return save_graph(program, path, axes)

    monkeypatch.setattr(exporter, "save_graph", counting)
    formats = ["onnx_fp16", "onnx", "onnx_int8"]
    artifacts = publish_toy(tmp_path, toy_original(ToyModel()), formats, metric_budget=1.0)
    assert {artifact.name for artifact in artifacts} == {*formats}
    (path,) = written
    assert tmp_path in path.parents  # where it can be linked
    assert not path.parent.exists()
    assert not [*tmp_path.glob(".tmp-*")]


def test_a_graph_that_cannot_be_exported_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def failing(path: Path, subject: Subject) -> dict[str, int]:
        tried.append(path)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(float_graph, "write_onnx", failing)
    subject = Subject(ToyModel(), ToyTask())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such operator"):
            float_graph.write_float(tmp_path / "model.onnx", subject)
    assert len(tried) == 1


def test_large_weights_come_along_and_what_is_shared_goes_with_the_subject(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_PROTOBUF_LIMIT", 1)
    with torch.no_grad():
        subject = Subject(ToyModel(), ToyTask())
        shared = float_graph.float_graph(subject)
        float_graph.write_float(tmp_path / "model.onnx", subject)
        forward, *_ = open_session(tmp_path / "model.onnx")
        case = subject.cases[0]
        assert torch.allclose(forward(case.inputs), case.expected, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert shared.exists()
    del subject, case
    gc.collect()
    assert not shared.parent.exists()
