"""The ONNX graph: its file, its weights, its session."""

import gc
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from onnx_ir.tensor_adapters import TorchTensor
from torch import Tensor
from torch.export import ExportedProgram

import trainer.export.formats.onnx as exporter
from tests.export.conftest import Published
from tests.support.export_models import ToyModel, ToyTask, publish_toy, toy_export_model
from trainer.export.formats.onnx import open_session, save_graph, shared_graph, write_graph, write_onnx
from trainer.export.model import ExportModel


def test_graph_has_readable_axes(published: Published) -> None:
    _, inputs, outputs = exporter.open_session(published.folder / "model.onnx")
    assert inputs == {"input_ids": ["batch", "sequence"], "attention_mask": ["batch", "sequence"]}
    assert outputs == {"output": ["batch", 3]}


def test_timed_graph_runs_in_the_thread_that_calls_it(published: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread takes longer than a small graph, and its time looks as if something else used the processor."""
    forward, *_ = exporter.open_session(published.folder / "model.onnx")

    def refuse(thread: threading.Thread) -> None:
        raise AssertionError(thread.name)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    ids = torch.ones(2, 3, dtype=torch.int64)
    assert forward({"input_ids": ids, "attention_mask": ids}).shape == (2, 3)


def test_graph_is_valid_and_contains_no_path_of_this_machine(published: Published) -> None:
    path = published.folder / "model.onnx"
    onnx.checker.check_model(path, full_check=True)
    assert b".py" not in path.read_bytes()
    assert str(Path.cwd()).encode() not in path.read_bytes()


class Attention(torch.nn.Module):
    """Attention of positions (B, H, T, D) to themselves."""

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(hidden, hidden, hidden, attn_mask=mask)


def test_dead_guard_is_removed_from_attention(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden, mask = torch.randn(2, 3, 5, 4), torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    model, axes = Attention(), {"hidden": {0: "batch"}, "mask": {0: "batch"}}
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (hidden, mask), dynamic_shapes={name: {0: batch} for name in axes})
    exporter.save_graph(program, tmp_path / "model.onnx", axes)
    graph = onnx.load(tmp_path / "model.onnx").graph
    nodes = [node.op_type for node in graph.node]
    # torch 2.11 masks with minus infinity, for which the guard is needed.
    masks = [numpy_helper.to_array(each) for each in graph.initializer]
    assert (nodes.count("Softmax"), nodes.count("IsNaN")) == (1, any(np.isneginf(each).any() for each in masks))
    forward, *_ = exporter.open_session(tmp_path / "model.onnx")
    torch.testing.assert_close(forward({"hidden": hidden, "mask": mask}), model(hidden, mask))


@pytest.mark.parametrize(("masked", "guards"), [("-3e38", 0), ("-inf", 1)])
def test_guard_stays_if_the_softmax_can_return_nan(masked: str, guards: int) -> None:
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
    exporter.remove_dead_guards(graph)
    assert sum(node.op_type == "IsNaN" for node in graph) == guards


WEIGHTS = {
    "matrix": np.arange(600, dtype=np.float32).reshape(20, 30),  # its length takes more than one byte
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "numbers": np.array([[1, -(2**40)]], dtype=np.int64),
    "flags": np.array([True, False, True]),
    "scalar": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
}


def model_of(weights: dict[str, np.ndarray]) -> onnx_ir.Model:
    """Return a graph that outputs each of its weights."""
    nodes = [onnx.helper.make_node("Identity", [name], [f"out_{name}"]) for name in weights]
    outputs = [
        onnx.helper.make_tensor_value_info(
            f"out_{name}", onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in weights.items()
    ]
    initializers = [onnx.numpy_helper.from_array(np.array(value, order="C"), name) for name, value in weights.items()]
    graph = onnx.helper.make_graph(nodes, "weights", [], outputs, initializers)
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    return onnx_ir.from_proto(made)


def test_written_file_equals_the_librarys(tmp_path: Path) -> None:
    model = model_of(WEIGHTS)
    write_graph(model, tmp_path / "model.onnx")
    expected = onnx_ir.to_proto(model)
    expected.graph.ClearField("value_info")  # shapes of weights, which the weights have themselves
    assert onnx.load(tmp_path / "model.onnx") == expected
    assert list(model.graph.initializers) == list(WEIGHTS)
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_runtime_reads_weights_of_every_type(tmp_path: Path) -> None:
    write_graph(model_of(WEIGHTS), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for output, weight in zip(session.run(None, {}), WEIGHTS.values(), strict=True):
        assert output.dtype == weight.dtype
        np.testing.assert_array_equal(output, weight)


def test_transposed_weights_are_written_in_order(tmp_path: Path) -> None:
    model = model_of({"matrix": WEIGHTS["matrix"]})
    turned = torch.from_numpy(WEIGHTS["matrix"]).T.contiguous().T
    assert not turned.is_contiguous()
    model.graph.initializers["matrix"].const_value = TorchTensor(turned, "matrix")
    write_graph(model, tmp_path / "model.onnx")
    (found,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), WEIGHTS["matrix"])


def test_exported_graph_is_one_file(published: Published) -> None:
    graph = onnx.load(published.folder / "model.onnx", load_external_data=False).graph
    sizes = sum(len(weight.raw_data) for weight in graph.initializer)
    assert sizes >= sum(parameter.nbytes for parameter in published.model.parameters())
    assert not list(published.folder.glob("model.onnx.*"))


def test_graph_is_exported_once_for_all_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def counting(program: ExportedProgram, path: Path, axes: Any) -> int:
        written.append(path)
        return save_graph(program, path, axes)

    monkeypatch.setattr(exporter, "save_graph", counting)
    formats = ["onnx_fp16", "onnx", "onnx_int8"]
    artifacts = publish_toy(tmp_path, toy_export_model(ToyModel()), formats, metric_budget=1.0)
    assert {artifact.name for artifact in artifacts} == {*formats}
    (path,) = written
    assert tmp_path in path.parents  # where it can be linked
    assert not path.parent.exists()
    assert not [*tmp_path.glob(".tmp-*")]


def test_failed_export_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def failing(*arguments: Any) -> int:
        calls.append(arguments)
        raise RuntimeError("no such operator")

    monkeypatch.setattr(exporter, "save_graph", failing)
    with torch.no_grad():
        model = ExportModel(ToyModel(), ToyTask())
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no such operator"):
            write_onnx(tmp_path / "model.onnx", model)
    assert len(calls) == 1


def test_large_weights_are_linked_and_the_shared_graph_is_removed_with_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporter, "_PROTOBUF_LIMIT", 1)
    with torch.no_grad():
        model = ExportModel(ToyModel(), ToyTask())
        assert write_onnx(tmp_path / "model.onnx", model)["opset"] >= 18
        shared = shared_graph(model)
        moved = tmp_path / "moved"
        moved.mkdir()
        for name in ("model.onnx", "model.onnx.data"):
            (tmp_path / name).rename(moved / name)
        forward, *_ = open_session(moved / "model.onnx")
        inputs = model.task.example({"batch": 5, "sequence": 9}, np.random.default_rng(3))
        torch.testing.assert_close(forward(inputs), model.module(**inputs), atol=1e-5, rtol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
    assert shared.exists()
    del model
    gc.collect()
    assert not shared.parent.exists()
