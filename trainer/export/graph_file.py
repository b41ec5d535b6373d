"""A graph and its weights written to one ONNX file without a copy of them.

The libraries build the whole message in memory and then serialize it, which takes three times the weights. Here the
message without its weights is serialized, and the weights follow from where they are: the order of fields is free.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

if TYPE_CHECKING:
    import onnx_ir

_GRAPH = 7  # the number of ModelProto.graph in onnx.proto
_INITIALIZER = 5  # of GraphProto.initializer
_RAW_DATA = 9  # of TensorProto.raw_data
_BYTES = 2  # the wire type of what begins with its length


def write_graph(model: onnx_ir.Model, path: Path) -> None:
    """Writes a model whose weights are whole numbers of bytes an element, in one file.

    Source: https://protobuf.dev/programming-guides/encoding and https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
    """
    from onnx_ir.serde import serialize_model

    weights = dict(model.graph.initializers)
    model.graph.initializers.clear()
    try:
        rest = serialize_model(model)
    finally:
        model.graph.initializers.update(weights)
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    tensors: dict[str, Any] = {name: value.const_value for name, value in weights.items()}
    heads = [(_tensor_head(name, tensor), tensor) for name, tensor in tensors.items()]
    size = len(graph) + sum(len(head) + tensor.nbytes for head, tensor in heads)
    with path.open("wb") as file:
        file.write(rest.SerializeToString())
        file.write(_begin(_GRAPH, size))
        file.write(graph)
        for head, tensor in heads:
            file.write(head)
            file.write(_bytes(tensor))


def _tensor_head(name: str, tensor: Any) -> bytes:
    """All of an initializer before its bytes."""
    described = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy()))
    begin: bytes = described.SerializeToString() + _begin(_RAW_DATA, tensor.nbytes)
    return _begin(_INITIALIZER, len(begin) + tensor.nbytes) + begin


def _bytes(tensor: Any) -> memoryview:
    """The elements, little-endian, without a copy where they lie so in memory."""
    array = np.ascontiguousarray(tensor.numpy())
    assert array.nbytes == tensor.nbytes, "elements of less than a byte are packed otherwise"
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


def _begin(field: int, size: int) -> bytes:
    """The number and the length of a field that has one."""
    return bytes([*_varint(field << 3 | _BYTES), *_varint(size)])


def _varint(number: int) -> Iterator[int]:
    while number >= 0x80:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
