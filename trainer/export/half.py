"""The ONNX graph in half precision: weights and arithmetic in float16, inputs and output as they were."""

from collections.abc import Iterable, Mapping
from math import ceil
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor

from trainer.export.float_graph import float_graph, is_split, load_graph
from trainer.export.subject import Subject

_SINGLE = {"CumSum", "Div", "Exp", "Log", "LogSoftmax", "Pow", "Reciprocal", "Softmax", "Softplus", "Sqrt", "Tan"}
_TYPED = {"Constant", "ConstantOfShape", "Range", "Resize"}
_MOST_PARTS = 8  # of the calibration inputs; the margin below is wide, and each takes a run of the model
_LARGEST = float(np.finfo(np.float16).max) / 8  # values of other inputs may be larger than those looked at


def write_half(path: Path, subject: Subject) -> dict[str, Any]:
    """Writes the subject's graph in half precision; inputs and outputs keep their names and types.

    In float32 stay sums, powers, quotients, norms and softmax, as in torch's autocast, and whatever reads or gives a
    value near the end of float16's range, in the weights or on the subject's calibration inputs. The proof would not
    find these: a CPU runs most operators of float16 in float32.

    Returns:
        How many operators are in float16 and in float32, for the manifest.
    """
    source = float_graph(subject)
    inputs = subject.calibration()
    large = _large_values(source, inputs[:: ceil(len(inputs) / _MOST_PARTS)])
    model = load_graph(source)
    large |= {each.name for each in model.graph.initializer if _leaves_range(each)}
    kept = [_is_single(node) or bool(large & {*node.input, *node.output}) for node in model.graph.node]
    _Conversion(model.graph).run(kept)
    onnx.save(model, path, save_as_external_data=is_split(source), location=f"{path.name}.data")
    return {"float16_operators": kept.count(False), "float32_operators": kept.count(True)}


def _is_single(node: NodeProto) -> bool:
    """Whether an operator leaves float16's range on usual values, or is bound to a type."""
    kind = node.op_type
    return kind in _SINGLE | _TYPED or kind.startswith(("Reduce", "Random")) or kind.endswith("Normalization")


class _Conversion:
    """Changes the types of a graph node by node, in order, with a cast wherever those of two neighbours differ."""

    def __init__(self, graph: GraphProto) -> None:
        self._graph = graph
        self._floats = {*_floats(graph)}
        self._weights = {each.name: each for each in graph.initializer if each.data_type == TensorProto.FLOAT}
        self._types: dict[str, TensorProto.DataType] = {
            each.name: TensorProto.FLOAT for each in graph.input if each.name in self._floats
        }
        self._nodes: list[NodeProto] = []

    def run(self, kept: Iterable[bool]) -> None:
        """Nodes that are `kept` stay in float32, and so do the graph's inputs and outputs."""
        for node, single in zip(self._graph.node, kept, strict=True):
            self._add(node, TensorProto.FLOAT if single else TensorProto.FLOAT16)
        for output in self._graph.output:
            if self._types.get(output.name) == TensorProto.FLOAT16:
                self._return(output.name)
        # The types in value_info are those of before; every reader infers the new ones.
        del self._graph.node[:], self._graph.value_info[:]
        self._graph.node.extend(self._nodes)

    def _add(self, node: NodeProto, wanted: TensorProto.DataType) -> None:
        assert not any(attribute.HasField("g") for attribute in node.attribute), f"{node.op_type} has a graph"
        node.input[:] = [self._as(name, wanted) for name in node.input]
        if node.op_type == "Cast" and node.output[0] in self._floats:
            del node.attribute[:]
            node.attribute.append(helper.make_attribute("to", wanted))
        self._types |= {name: wanted for name in node.output if name in self._floats}
        self._nodes.append(node)

    def _as(self, name: str, wanted: TensorProto.DataType) -> str:
        """The name under which a value is there in the type wanted; one that is no float has only its own."""
        if name in self._weights and name not in self._types:
            self._types[name] = wanted
            if wanted == TensorProto.FLOAT16:
                half = numpy_helper.to_array(self._weights[name]).astype(np.float16)
                self._weights[name].CopyFrom(numpy_helper.from_array(half, name))
        if self._types.get(name, wanted) == wanted:
            return name
        cast = f"{name}_{'half' if wanted == TensorProto.FLOAT16 else 'single'}"
        if cast not in self._types:
            self._types[cast] = wanted
            self._nodes.append(helper.make_node("Cast", [name], [cast], to=wanted))
        return cast

    def _return(self, output: str) -> None:
        inner = f"{output}_half"
        for node in self._nodes:
            node.input[:] = [inner if name == output else name for name in node.input]
            node.output[:] = [inner if name == output else name for name in node.output]
        self._nodes.append(helper.make_node("Cast", [inner], [output], to=TensorProto.FLOAT))


def _floats(graph: GraphProto) -> list[str]:
    """The values of a graph that are float32 tensors, its weights left out."""
    weights = {each.name for each in graph.initializer}
    every = [*graph.input, *graph.value_info, *graph.output]
    typed = {each.name: each.type.tensor_type.elem_type for each in every}
    untyped = {name for node in graph.node for name in node.output if name} - typed.keys()
    assert not untyped, f"write_onnx writes the type of every value, but not of {sorted(untyped)}"
    return [name for name, kind in typed.items() if kind == TensorProto.FLOAT and name not in weights]


def _leaves_range(weight: TensorProto) -> bool:
    """Whether a weight is too large for float16, or vanishes in it (a scalar such as 1e-12). Infinities are kept."""
    if weight.data_type != TensorProto.FLOAT:
        return False
    sizes = np.abs(numpy_helper.to_array(weight))
    finite = sizes[np.isfinite(sizes)]
    largest = float(finite.max(initial=0.0))
    return largest > _LARGEST or 0.0 < largest < float(np.finfo(np.float16).smallest_normal)


def _large_values(source: Path, inputs: Iterable[Mapping[str, Tensor]]) -> set[str]:
    """The float32 values of a graph that come near the end of float16's range on any of `inputs`; infinities may."""
    model = onnx.load(source, load_external_data=False)
    graph, names = model.graph, set(_floats(model.graph))
    probes = {f"{kind}({name})": name for name in sorted(names) for kind in ("ReduceMax", "ReduceMin")}
    nodes = [node for name in sorted(names & {each.name for each in graph.input}) for node in _probed(name)]
    for node in graph.node:
        # Right behind the value, which then need not be kept to the end.
        nodes += [node, *(probe for name in node.output if name in names for probe in _probed(name))]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.extend(helper.make_tensor_value_info(probe, TensorProto.FLOAT, []) for probe in probes)
    # In the folder of `source`, so that weights beside it are found.
    with NamedTemporaryFile(dir=source.parent, prefix=".tmp-", suffix=".onnx") as file:
        onnx.save(model, file.name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(file.name, options, providers=["CPUExecutionProvider"])
    found: set[str] = set()
    for each in inputs:
        sizes = session.run([*probes], {name: value.numpy() for name, value in each.items()})
        found |= {name for name, size in zip(probes.values(), sizes, strict=True) if _LARGEST < abs(size) < np.inf}
    return found


def _probed(name: str) -> list[NodeProto]:
    return [helper.make_node(kind, [name], [f"{kind}({name})"], keepdims=0) for kind in ("ReduceMax", "ReduceMin")]
