from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from onnx_ir.tensor_adapters import TorchTensor

from tests.export.conftest import Published
from trainer.export.graph_file import write_graph

WEIGHTS = {
    "matrix": np.arange(600, dtype=np.float32).reshape(20, 30),  # longer than what a length of one byte says
    "half": np.array([1.5, -2.0], dtype=np.float16),
    "numbers": np.array([[1, -(2**40)]], dtype=np.int64),
    "flags": np.array([True, False, True]),
    "scalar": np.array(2.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "columns": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
}


def model_of(weights: dict[str, np.ndarray]) -> onnx_ir.Model:
    """A graph that gives each of its weights."""
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


def test_file_is_what_the_library_would_write(tmp_path: Path) -> None:
    model = model_of(WEIGHTS)
    write_graph(model, tmp_path / "model.onnx")
    expected = onnx_ir.to_proto(model)
    expected.graph.ClearField("value_info")  # the shapes of the weights, which the weights say themselves
    assert onnx.load(tmp_path / "model.onnx") == expected
    assert list(model.graph.initializers) == list(WEIGHTS)
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)


def test_runtime_reads_every_kind_of_weight(tmp_path: Path) -> None:
    write_graph(model_of(WEIGHTS), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for got, wanted in zip(session.run(None, {}), WEIGHTS.values(), strict=True):
        assert got.dtype == wanted.dtype
        np.testing.assert_array_equal(got, wanted)


def test_weights_of_torch_that_do_not_lie_in_order(tmp_path: Path) -> None:
    model = model_of({"matrix": WEIGHTS["matrix"]})
    turned = torch.from_numpy(WEIGHTS["matrix"]).T.contiguous().T
    assert not turned.is_contiguous()
    model.graph.initializers["matrix"].const_value = TorchTensor(turned, "matrix")
    write_graph(model, tmp_path / "model.onnx")
    (found,) = onnx.load(tmp_path / "model.onnx").graph.initializer
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), WEIGHTS["matrix"])


def test_exported_graph_has_one_file(published: Published) -> None:
    graph = onnx.load(published.folder / "model.onnx", load_external_data=False).graph
    sizes = sum(len(weight.raw_data) for weight in graph.initializer)
    assert sizes >= sum(parameter.nbytes for parameter in published.model.parameters())
    assert not list(published.folder.glob("model.onnx.*"))
