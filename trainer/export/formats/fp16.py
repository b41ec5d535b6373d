"""The ONNX graph in half precision: weights and arithmetic in float16, inputs and output in their own types."""

from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from trainer.export.folder import LARGE_WEIGHTS, UNFINISHED
from trainer.export.formats.onnx import has_external_weights, load_graph, shared_graph
from trainer.export.model import ExportModel
from trainer.layout import Document

_FP32_OPERATORS = {
    *("CumSum", "Div", "Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "Softmax", "Softplus", "Sqrt", "Tan")
}
_TYPED_OPERATORS = {"Constant", "ConstantOfShape", "Range", "Resize"}
_MAX_BATCHES = 8  # of calibration inputs: each takes a run of the model, and the margin below is wide
_LARGEST = float(np.finfo(np.float16).max) / 8  # other inputs may give larger values than the calibration inputs
_PROBES = ("ReduceMax", "ReduceMin")


def write_fp16(path: Path, model: ExportModel) -> Document:
    """Write the model's graph in half precision; inputs and outputs keep their names and types.

    As in torch's autocast, sums, powers, quotients, norms and softmax stay in float32. So does every operator that
    reads or returns a value close to the end of float16's range, in the weights or on the calibration inputs. The proof
    would not detect such values, because CPUs run most float16 operators in float32.

    Returns:
        `float16_operators` and `float32_operators`, the number of operators in each type.
    """
    source = shared_graph(model)
    inputs = model.calibration_inputs()
    large = _find_large_values(source, inputs[:: ceil(len(inputs) / _MAX_BATCHES)])
    graph_model = load_graph(source)
    large |= {weight.name for weight in graph_model.graph.initializer if _leaves_range(weight)}
    in_fp32 = [_needs_fp32(node) or bool(large & {*node.input, *node.output}) for node in graph_model.graph.node]
    _Conversion(graph_model.graph).run(in_fp32)
    data = f"{path.name}{LARGE_WEIGHTS}"
    onnx.save(graph_model, path, save_as_external_data=has_external_weights(source), location=data)
    return {"float16_operators": in_fp32.count(False), "float32_operators": in_fp32.count(True)}


def _needs_fp32(node: NodeProto) -> bool:
    """Return whether an operator leaves float16's range on usual values, or has a fixed type."""
    name = node.op_type
    return (
        name in _FP32_OPERATORS | _TYPED_OPERATORS
        or name.startswith(("Reduce", "Random"))
        or name.endswith("Normalization")
    )


class _Conversion:
    """Changes the types of a graph node by node and inserts a cast wherever the types of two neighbors differ."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._floats = {*_float_values(graph)}
        self._weights = {weight.name: weight for weight in graph.initializer if weight.data_type == TensorProto.FLOAT}
        self._types: dict[str, TensorProto.DataType] = {
            value.name: TensorProto.FLOAT for value in graph.input if value.name in self._floats
        }
        self._nodes: list[NodeProto] = []

    def run(self, in_fp32: Iterable[bool]) -> None:
        """Convert the nodes except for those with True; the graph's inputs and outputs stay in float32."""
        for node, keep in zip(self._graph.node, in_fp32, strict=True):
            self._add(node, TensorProto.FLOAT if keep else TensorProto.FLOAT16)
        for output in self._graph.output:
            if self._types.get(output.name) == TensorProto.FLOAT16:
                self._cast_output(output.name)
        # value_info has the types from before the conversion; every reader infers the new ones.
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)

    def _add(self, node: NodeProto, dtype: TensorProto.DataType) -> None:
        assert not any(attribute.HasField("g") for attribute in node.attribute), f"{node.op_type} has a graph"
        node.input[:] = [self._name_in(name, dtype) for name in node.input]
        if node.op_type == "Cast" and node.output[0] in self._floats:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", dtype))
        self._types |= {name: dtype for name in node.output if name in self._floats}
        self._nodes.append(node)

    def _name_in(self, name: str, dtype: TensorProto.DataType) -> str:
        """Return the name of a value in type `dtype`, after adding a cast if needed; other types are left alone."""
        if name in self._weights and name not in self._types:
            self._types[name] = dtype
            if dtype == TensorProto.FLOAT16:
                half = numpy_helper.to_array(self._weights[name]).astype(np.float16)
                self._weights[name].CopyFrom(numpy_helper.from_array(half, name))
        if self._types.get(name, dtype) == dtype:
            return name
        cast = f"{name}_{'half' if dtype == TensorProto.FLOAT16 else 'single'}"
        if cast not in self._types:
            self._types[cast] = dtype
            self._nodes.append(helper.make_node("Cast", [name], [cast], to=dtype))
        return cast

    def _cast_output(self, output: str) -> None:
        inner = f"{output}_half"
        for node in self._nodes:
            node.input[:] = [inner if name == output else name for name in node.input]
            node.output[:] = [inner if name == output else name for name in node.output]
        self._nodes.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))


def _float_values(graph: GraphProto) -> list[str]:
    """Return the names of a graph's float32 values except for weights."""
    weights = {weight.name for weight in graph.initializer}
    values = [*graph.input, *graph.value_info, *graph.output]
    types = {value.name: value.type.tensor_type.elem_type for value in values}
    untyped = {name for node in graph.node for name in node.output if name} - types.keys()
    assert not untyped, f"the exporter writes the type of every value, but not of {sorted(untyped)}"
    return [name for name, dtype in types.items() if dtype == TensorProto.FLOAT and name not in weights]


def _leaves_range(weight: TensorProto) -> bool:
    """Return whether a weight is too large for float16, or becomes 0 in it (a scalar such as 1e-12).

    Infinities are the same in both types.
    """
    if weight.data_type != TensorProto.FLOAT:
        return False
    magnitudes = np.abs(numpy_helper.to_array(weight))
    finite = magnitudes[np.isfinite(magnitudes)]
    largest = float(finite.max(initial=0.0))
    return largest > _LARGEST or 0.0 < largest < float(np.finfo(np.float16).smallest_normal)


def _find_large_values(source: Path, inputs: Iterable[Mapping[str, Tensor]]) -> set[str]:
    """Return the float32 values that come close to the end of float16's range on any of `inputs`, except infinities."""
    model = onnx.load(source, load_external_data=False)
    graph, names = model.graph, set(_float_values(model.graph))
    probes = {f"{operator}({name})": name for name in sorted(names) for operator in _PROBES}
    nodes = [node for name in sorted(names & {value.name for value in graph.input}) for node in _probe_nodes(name)]
    for node in graph.node:
        # Directly after the value, which then need not be kept in memory to the end.
        nodes += [node, *(probe for name in node.output if name in names for probe in _probe_nodes(name))]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []) for probe in probes)
    # In the folder of `source`, where the runtime finds the file with large weights.
    with NamedTemporaryFile(dir=source.parent, prefix=UNFINISHED, suffix=".onnx") as file:
        onnx.save(model, file.name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    large: set[str] = set()
    for batch in inputs:
        extremes = session.run([*probes], {name: value.numpy() for name, value in batch.items()})
        large |= {name for name, value in zip(probes.values(), extremes, strict=True) if _LARGEST < abs(value) < np.inf}
    return large


def _probe_nodes(name: str) -> list[NodeProto]:
    return [helper.make_node(operator, [name], [f"{operator}({name})"], keepdims=0) for operator in _PROBES]
