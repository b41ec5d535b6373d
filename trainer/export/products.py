"""A graph whose products with weights all have the one form that can be quantized, and its layers."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

_WEIGHT = {"MatMul": 1, "Conv": 1, "Gather": 0}
"""Which input of an operator is the weight of a layer."""


@dataclass(frozen=True)
class Layer:
    """A weight and what reads it.

    Attributes:
        name: The model's own, where the graph still knows it.
        weight: The weight's in the graph.
        size: How many numbers the weight has.
        kind: The operator that reads it: `MatMul`, `Conv` or `Gather`.
        nodes: Names of the operators that read it, more than one where it is tied.
    """

    name: str
    weight: str
    size: int
    kind: str
    nodes: tuple[str, ...]

    @property
    def is_tied(self) -> bool:
        """Whether more than one operator reads it."""
        return len(self.nodes) > 1


def layers_of(graph: GraphProto) -> list[Layer]:
    """The layers of a graph after `with_products`, in its order."""
    weights = {
        each.name: prod(each.dims)
        for each in graph.initializer
        if each.data_type == TensorProto.FLOAT and len(each.dims) > 1
    }
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        if node.op_type in _WEIGHT and node.input[_WEIGHT[node.op_type]] in weights:
            readers.setdefault(node.input[_WEIGHT[node.op_type]], []).append(node)
    return [
        Layer(
            name=_layer_name(graph, weight, nodes),
            weight=weight,
            size=weights[weight],
            kind=nodes[-1].op_type,
            nodes=tuple(node.name for node in nodes),
        )
        for weight, nodes in readers.items()
    ]


def with_products(graph: GraphProto) -> None:
    """Makes every product with a matrix a MatMul whose second input is that matrix as it is stored.

    A Gemm becomes MatMul and Add. A matrix that is transposed before it is used is stored transposed; embeddings tied
    to it are gathered from its columns, so that it is stored once.
    """
    matrices = {each.name: each for each in graph.initializer if len(each.dims) == 2}
    turning = {node.output[0]: node.input[0] for node in graph.node if _turns(node) and node.input[0] in matrices}
    turned = {*turning.values(), *(node.input[1] for node in graph.node if _is_linear(node) and _flag(node, "transB"))}
    turned &= matrices.keys()
    names = {output: f"{weight}.T" for output, weight in turning.items()}
    nodes: list[NodeProto] = []
    for node in graph.node:
        if node.output[0] in turning:
            continue
        node.input[:] = [names.get(name, name) for name in node.input]
        if node.op_type == "Gather" and node.input[0] in turned and _flag(node, "axis") == 0:
            nodes.extend(_columns(node, f"{node.input[0]}.T", _rank(graph, node.input[1])))
        elif _is_linear(node) and (not _flag(node, "transB") or node.input[1] in turned):
            nodes.extend(_product(node, f"{node.input[1]}.T" if _flag(node, "transB") else node.input[1]))
        else:
            nodes.append(node)
    stored = [numpy_helper.from_array(_transposed(matrices[name]), f"{name}.T") for name in sorted(turned)]
    _replace(graph, nodes, [*graph.initializer, *stored])


def _replace(graph: GraphProto, nodes: Iterable[NodeProto], weights: Iterable[TensorProto]) -> None:
    """Gives a graph other nodes and, of the weights, those they read."""
    nodes = list(nodes)
    read = {name for node in nodes for name in node.input} | {each.name for each in graph.output}
    weights = [each for each in weights if each.name in read]
    # Shapes of what was there before: the quantizer infers its own, and refuses a graph that says otherwise.
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def _product(gemm: NodeProto, weight: str) -> Iterator[NodeProto]:
    """A linear layer; the MatMul has the name of the Gemm."""
    if len(gemm.input) < 3:
        yield helper.make_node("MatMul", [gemm.input[0], weight], [*gemm.output], name=gemm.name)
        return
    product = f"{gemm.output[0]}.product"
    yield helper.make_node("MatMul", [gemm.input[0], weight], [product], name=gemm.name)
    yield helper.make_node("Add", [product, gemm.input[2]], [*gemm.output], name=f"{gemm.name}.bias")


def _columns(gather: NodeProto, weight: str, rank: int) -> Iterator[NodeProto]:
    """An embedding whose table (V, D) is stored as (D, V): gathered as (D, ...), given as (..., D)."""
    columns = f"{gather.output[0]}.columns"
    yield helper.make_node("Gather", [weight, gather.input[1]], [columns], name=gather.name, axis=1)
    order = [*range(1, rank + 1), 0]
    yield helper.make_node("Transpose", [columns], [*gather.output], name=f"{gather.name}.transpose", perm=order)


def _rank(graph: GraphProto, name: str) -> int:
    shapes = {each.name: each.type.tensor_type.shape for each in [*graph.input, *graph.value_info]}
    stored = {each.name: len(each.dims) for each in graph.initializer}
    return stored[name] if name in stored else len(shapes[name].dim)


def _is_linear(node: NodeProto) -> bool:
    """Whether a node is a Gemm that is x W + b."""
    plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
    return node.op_type == "Gemm" and all(
        helper.get_attribute_value(each) == plain.get(each.name, helper.get_attribute_value(each))
        for each in node.attribute
    )


def _turns(node: NodeProto) -> bool:
    return node.op_type == "Transpose" and all([*each.ints] == [1, 0] for each in node.attribute)


def _flag(node: NodeProto, name: str) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), 0)


def _transposed(matrix: TensorProto) -> np.ndarray:
    return np.ascontiguousarray(numpy_helper.to_array(matrix).T)


def _layer_name(graph: GraphProto, weight: str, readers: list[NodeProto]) -> str:
    """Exporters rename the weights they transpose; the bias added next still has the layer's name."""
    outputs = {node.output[0] for node in readers}
    stored = {each.name for each in graph.initializer}
    for node in graph.node:
        biases = [name for name in node.input if name in stored and name.endswith(".bias")]
        if node.op_type == "Add" and biases and outputs & {*node.input}:
            return str(biases[0].removesuffix(".bias"))
    own = weight.removesuffix(".T")
    return own.removesuffix(".weight") if "." in own else str(readers[0].name)
