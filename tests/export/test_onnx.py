from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import trainer.export.onnx as exporter
from tests.export.conftest import Published
from tests.support.export_models import ToyModel, ToyTask
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


class Attention(torch.nn.Module):
    """Attention of positions (B, H, T, D) to themselves."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(hidden, hidden, hidden, attn_mask=mask)


def test_attention_weights_are_not_searched_for_nans(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 3, 5, 4), torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    model, axes = Attention(), {"hidden": {0: "batch"}, "mask": {0: "batch"}}
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (hidden, mask), dynamic_shapes={name: {0: batch} for name in axes})
    exporter.save_graph(program, tmp_path / "model.onnx", axes)
    nodes = [node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node]
    assert (nodes.count("Softmax"), nodes.count("IsNaN")) == (1, 0)
    forward, *_ = exporter.open_session(tmp_path / "model.onnx")
    torch.testing.assert_close(forward({"hidden": hidden, "mask": mask}), model(hidden, mask))


@pytest.mark.parametrize(("masked", "guards"), [("-3e38", 0), ("-inf", 1)])
def test_a_softmax_that_can_give_nan_keeps_its_guard(masked: str, guards: int) -> None:
    graph = onnx.parser.parse_graph(f"""
        attention (float[2, 2] scores, bool[2, 2] mask) => (float[2, 2] kept)
        <float zero = {{0.0}}, float masked = {{{masked}}}>
        {{
            bias = Where(mask, zero, masked)
            sum = Add(scores, bias)
            weights = Softmax(sum)
            nan = IsNaN(weights)
            guarded = Where(nan, zero, weights)
            kept = Neg(guarded)
        }}
    """)
    graph = onnx_ir.from_proto(graph)
    exporter.drop_dead_guards(graph)
    assert sum(node.op_type == "IsNaN" for node in graph) == guards
