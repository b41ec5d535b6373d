from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import trainer.export.onnx as exporter
from tests.export.conftest import Published
from tests.export.toy import ToyModel, ToyTask
from trainer.export.subject import Subject


def test_graph_has_readable_axes(published: Published) -> None:
    _, inputs, outputs = exporter.open_session(published.folder / "model.onnx")
    assert inputs == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    assert outputs == {"output": ["batch", 3]}


def test_graph_is_valid_and_holds_no_path_of_this_machine(published: Published) -> None:
    path = published.folder / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert b".py" not in path.read_bytes()
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_large_weights_lie_beside_the_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "_PROTOBUF_LIMIT", 1)
    subject, path = Subject(ToyModel(), ToyTask()), tmp_path / "model.onnx"
    with torch.no_grad():
        assert exporter.write_onnx(path, subject)["opset"] >= 18
        assert sorted(each.name for each in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
        moved = tmp_path / "published"
        tmp_path.joinpath("published").mkdir()
        for each in ("model.onnx", "model.onnx.data"):
            (tmp_path / each).rename(moved / each)
        forward, *_ = exporter.open_session(moved / "model.onnx")
        inputs = subject.task.example({"batch": 5, "sequence": 9}, np.random.default_rng(3))
        torch.testing.assert_close(forward(inputs), subject.model(**inputs), atol=1e-5, rtol=0)
