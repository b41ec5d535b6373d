"""The ONNX graph with the weights of its linear layers, convolutions and embeddings in int8.

Activations are quantized by the values of each call (dynamic), or by ranges measured on training samples (static).
Weights use 7 of the 8 bits: processors without VNNI add pairs of products in 16 bits, and an artifact that is proved on
one machine must be right on others.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, inf, isfinite, prod, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import Tensor

from trainer.errors import ProofError, format_error
from trainer.export.folder import LARGE_WEIGHTS
from trainer.export.formats.onnx import has_external_weights, load_graph, open_session, shared_graph
from trainer.export.model import ExportModel, silence
from trainer.layout import Document

_MAX_GROUPS = 24
"""Sensitivity is measured layer by layer; in graphs with more layers, for groups of neighboring layers."""

_NUM_MEASURED = 32
"""Approximate number of samples on which sensitivity is measured."""

_MAX_FP32_SHARE = 1 / 3
"""With a larger share of the weights in float32, the graph would be no smaller than in float16."""

_STATIC: Final = {
    "MatMulConstBOnly": True,
    # The results of products go into norms, softmax and sums, which are in float32.
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}

_WEIGHT_INPUT: Final = {"MatMul": 1, "Conv": 1, "Gather": 0}
"""Position of the weight among the inputs of an operator."""


def write_int8(path: Path, model: ExportModel, *, per_channel: bool, num_fp32_layers: int = 0) -> Document:
    """Write the model's graph with its layers in int8.

    Args:
        path: The new file.
        model: The model; its `int8` is the quantization of activations.
        per_channel: Use a scale for each output of a layer instead of one for the layer.
        num_fp32_layers: Number of the most sensitive layers (groups of neighbors, if there are many) left in float32.

    Returns:
        `activations`, their quantization, and the names of the `int8_layers` and the `float32_layers`.

    Raises:
        ProofError: There is no layer to quantize, or too few would be quantized.
    """
    quantization = model.compute_once(Quantization)
    fp32_layers = quantization.most_sensitive(num_fp32_layers) if num_fp32_layers else []
    int8_layers = [layer for layer in quantization.layers if layer not in fp32_layers]
    quantization.write(path, int8_layers, per_channel=per_channel)
    return {
        "activations": quantization.method,
        "int8_layers": [layer.name for layer in int8_layers],
        "float32_layers": [layer.name for layer in quantization.all_layers if layer not in int8_layers],
    }


@dataclass(frozen=True)
class Layer:
    """A weight and the operators that read it.

    Attributes:
        name: Name in the model, or in the graph if the exporter has dropped the former.
        weight: Name of the weight in the graph.
        size: Number of elements of the weight.
        operator: Type of the operator that reads it: `MatMul`, `Conv` or `Gather`.
        nodes: Names of the operators that read it, several if it is tied.
    """

    name: str
    weight: str
    size: int
    operator: str
    nodes: tuple[str, ...]

    @property
    def is_tied(self) -> bool:
        """True if several operators read the weight."""
        return len(self.nodes) > 1


class Quantization:
    """The quantization of a model: everything that its variants share.

    Attributes:
        all_layers: The layers of the graph.
        method: Quantization of activations: as the model requests, else static if most weights are in convolutions.
        layers: The layers that can be quantized. With dynamic quantization, convolutions would take five times their
            time in float32, so they are left out.

    Raises:
        ProofError: No layer can be quantized.
    """

    def __init__(self, model: ExportModel) -> None:
        source = shared_graph(model)
        graph_model = load_graph(source)
        normalize_linear_layers(graph_model.graph)
        self._path = source.with_name("products.onnx")
        self._has_external_weights = has_external_weights(source)
        data = f"{self._path.name}{LARGE_WEIGHTS}"
        onnx.save(graph_model, self._path, save_as_external_data=self._has_external_weights, location=data)
        self._calibration_inputs = model.calibration_inputs
        self.all_layers = find_layers(graph_model.graph)
        self.method = model.int8 or _choose_method(self.all_layers)
        self.layers = [layer for layer in self.all_layers if self.method == "static" or layer.operator != "Conv"]
        if not self.layers:
            problem = "there is no layer that dynamic int8 quantizes" if self.all_layers else "the graph has no layers"
            raise ProofError(format_error("export.int8", problem, "Set export.int8=static", value=self.method))

    def write(self, path: Path, layers: Sequence[Layer], *, per_channel: bool) -> None:
        """Write the graph with `layers` in int8."""
        settings: Document = {
            "op_types_to_quantize": ["MatMul", "Conv", "Gather", "Transpose"],
            "nodes_to_quantize": [name for layer in layers for name in layer.nodes],
            "per_channel": per_channel,
            "reduce_range": True,
            "weight_type": QuantType.QInt8,
            "use_external_data_format": self._has_external_weights,
        }
        model = onnx.load(self._path)
        with silence():
            if self.method == "dynamic":
                quantize_dynamic(model, path, **settings)
            else:
                options = {**_STATIC, "TensorQuantOverrides": {layer.weight: [{}] for layer in layers if layer.is_tied}}
                reader = _Reader(self._inputs)
                quantize_static(
                    model, path, reader, activation_type=QuantType.QUInt8, extra_options=options, **settings
                )

    def most_sensitive(self, count: int) -> list[Layer]:
        """Return the layers of the `count` most sensitive groups; groups that would leave too few in int8 are skipped.

        Raises:
            ProofError: There are fewer.
        """
        limit = _MAX_FP32_SHARE * sum(layer.size for layer in self.layers)
        fp32_layers: list[Layer] = []
        num_groups = 0
        for group in self._groups_by_sensitivity:
            if num_groups < count and sum(layer.size for layer in [*fp32_layers, *group]) < limit:
                fp32_layers, num_groups = [*fp32_layers, *group], num_groups + 1
        if num_groups < count:
            problem = f"with {count} of its {len(self.layers)} layers in float32 it is no smaller than in float16"
            raise ProofError(format_error("export.int8", problem, "Use onnx_fp16", value=self.method))
        return fp32_layers

    @cached_property
    def _groups_by_sensitivity(self) -> list[list[Layer]]:
        """Groups of neighboring layers, ordered by the change of the output when only one group is quantized."""
        size = ceil(len(self.layers) / _MAX_GROUPS)
        groups = [self.layers[start : start + size] for start in range(0, len(self.layers), size)]
        inputs = list(_first_samples(self._inputs))
        forward, *_ = open_session(self._path)
        expected = [forward(batch) for batch in inputs]
        errors = []
        with TemporaryDirectory() as folder:
            for number, group in enumerate(groups):
                path = Path(folder) / f"{number}.onnx"
                self.write(path, group, per_channel=True)
                forward, *_ = open_session(path)
                errors.append(_relative_error(expected, [forward(batch) for batch in inputs]))
        ranked = sorted(range(len(groups)), key=lambda number: -errors[number])
        return [groups[number] for number in ranked]

    @cached_property
    def _inputs(self) -> list[dict[str, Tensor]]:
        return self._calibration_inputs()


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches in the form that ONNX Runtime's calibration reads."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: value.numpy() for name, value in batch.items()}


def _choose_method(layers: Sequence[Layer]) -> Literal["dynamic", "static"]:
    convolutions = sum(layer.size for layer in layers if layer.operator == "Conv")
    return "static" if 2 * convolutions > sum(layer.size for layer in layers) else "dynamic"


def _first_samples(batches: Sequence[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    count = 0
    for batch in batches:
        yield batch
        count += len(next(iter(batch.values())))
        if count >= _NUM_MEASURED:
            return


def _relative_error(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Return the norm of the differences divided by the norm of `expected`; infinity if the result is not finite."""
    pairs = zip(expected, outputs, strict=True)
    differences = sum(float((ours - theirs).double().square().sum()) for theirs, ours in pairs)
    squares = sum(float(theirs.double().square().sum()) for theirs in expected)
    return sqrt(differences / squares) if isfinite(differences) and squares else inf


def find_layers(graph: GraphProto) -> list[Layer]:
    """Return the layers of a graph after `normalize_linear_layers`, in the order of the graph."""
    sizes = {
        weight.name: prod(weight.dims)
        for weight in graph.initializer
        if weight.data_type == TensorProto.FLOAT and len(weight.dims) > 1
    }
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type in _WEIGHT_INPUT and node.input[_WEIGHT_INPUT[node.op_type]] in sizes:
            readers.setdefault(node.input[_WEIGHT_INPUT[node.op_type]], []).append(node)
    return [
        Layer(
            name=_layer_name(graph, weight, nodes),
            weight=weight,
            size=sizes[weight],
            operator=nodes[-1].op_type,
            nodes=tuple(node.name for node in nodes),
        )
        for weight, nodes in readers.items()
    ]


def normalize_linear_layers(graph: GraphProto) -> None:
    """Turn every product with a matrix into a MatMul whose second input is the stored matrix.

    A Gemm becomes MatMul and Add. A matrix that is transposed before it is used is stored transposed; embeddings tied
    to it are gathered from its columns, so that it is stored once.
    """
    matrices = {weight.name: weight for weight in graph.initializer if len(weight.dims) == 2}
    transposes = {
        node.output[0]: node.input[0] for node in graph.node if _is_transpose(node) and node.input[0] in matrices
    }
    gemm_weights = (node.input[1] for node in graph.node if _is_linear(node) and _int_attribute(node, "transB"))
    transposed = {*transposes.values(), *gemm_weights} & matrices.keys()
    names = {output: f"{weight}.T" for output, weight in transposes.items()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in transposes:
            continue
        node.input[:] = [names.get(name, name) for name in node.input]
        if node.op_type == "Gather" and node.input[0] in transposed and _int_attribute(node, "axis") == 0:
            nodes.extend(_gather_columns(node, f"{node.input[0]}.T", _rank(graph, node.input[1])))
        elif _is_linear(node) and (not _int_attribute(node, "transB") or node.input[1] in transposed):
            weight = f"{node.input[1]}.T" if _int_attribute(node, "transB") else node.input[1]
            nodes.extend(_matmul_and_add(node, weight))
        else:
            nodes.append(node)
    stored = [numpy_helper.from_array(_transpose(matrices[name]), f"{name}.T") for name in sorted(transposed)]
    _replace_nodes(graph, nodes, [*graph.initializer, *stored])


def _replace_nodes(graph: GraphProto, nodes: Sequence[NodeProto], weights: Iterable[TensorProto]) -> None:
    """Replace the nodes of a graph; its weights become the `weights` that the new nodes read."""
    read = {name for node in nodes for name in node.input} | {output.name for output in graph.output}
    weights = [weight for weight in weights if weight.name in read]
    # The quantizer infers shapes and rejects a graph whose old ones differ.
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _matmul_and_add(gemm: NodeProto, weight: str) -> Iterator[NodeProto]:
    """Yield a linear layer; the MatMul has the name of the Gemm."""
    if len(gemm.input) < 3:
        yield helper.make_node("MatMul", [gemm.input[0], weight], [*gemm.output], name=gemm.name)
        return
    product = f"{gemm.output[0]}.product"
    yield helper.make_node("MatMul", [gemm.input[0], weight], [product], name=gemm.name)
    yield helper.make_node("Add", [product, gemm.input[2]], [*gemm.output], name=f"{gemm.name}.bias")


def _gather_columns(gather: NodeProto, weight: str, rank: int) -> Iterator[NodeProto]:
    """Yield an embedding whose table (V, D) is stored as (D, V): gathered as (D, ...), transposed to (..., D)."""
    columns = f"{gather.output[0]}.columns"
    yield helper.make_node("Gather", [weight, gather.input[1]], [columns], name=gather.name, axis=1)
    order = [*range(1, rank + 1), 0]
    yield helper.make_node("Transpose", [columns], [*gather.output], name=f"{gather.name}.transpose", perm=order)


def _rank(graph: GraphProto, name: str) -> int:
    shapes = {value.name: value.type.tensor_type.shape for value in [*graph.input, *graph.value_info]}
    stored = {weight.name: len(weight.dims) for weight in graph.initializer}
    return stored[name] if name in stored else len(shapes[name].dim)


def _is_linear(node: NodeProto) -> bool:
    """Return whether a node is a Gemm that computes x W + b."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type == "Gemm" and all(
        helper.get_attribute_value(attribute) == plain.get(attribute.name, helper.get_attribute_value(attribute))
        for attribute in node.attribute
    )


def _is_transpose(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and all([*attribute.ints] == [1, 0] for attribute in node.attribute)


def _int_attribute(node: NodeProto, name: str) -> int:
    return next((int(attribute.i) for attribute in node.attribute if attribute.name == name), 0)


def _transpose(matrix: TensorProto) -> np.ndarray:
    return np.ascontiguousarray(numpy_helper.to_array(matrix).T)


def _layer_name(graph: GraphProto, weight: str, readers: list[NodeProto]) -> str:
    """Return a layer's name in the model: exporters rename transposed weights, but not the bias added next."""
    outputs = {node.output[0] for node in readers}
    stored = {each.name for each in graph.initializer}
    for node in graph.node:
        biases = [name for name in node.input if name in stored and name.endswith(".bias")]
        if node.op_type == "Add" and biases and outputs & {*node.input}:
            return str(biases[0].removesuffix(".bias"))
    name = weight.removesuffix(".T")
    return name.removesuffix(".weight") if "." in name else str(readers[0].name)
