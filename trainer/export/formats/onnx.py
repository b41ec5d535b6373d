"""The model as an ONNX graph in float32: exported by torch, written to one file, run by ONNX Runtime.

The graph is an artifact, and the formats of lower precision are converted from it, so it is exported once per model.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

import numpy as np
import onnx
import torch
from onnx import ModelProto, TensorProto
from onnx.external_data_helper import ExternalDataInfo
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from trainer.decode.onnx_session import call_graph, start_session
from trainer.export.cases import Forward
from trainer.export.compare import Dimensions, check_inputs, check_output
from trainer.export.folder import UNFINISHED, files_of, link
from trainer.export.model import ExportModel, silence
from trainer.layout import ONNX, Document

if TYPE_CHECKING:
    import onnx_ir

OUTPUT: Final = "output"
"""Name of the graph's output."""

_PROTOBUF_LIMIT = 2_000_000_000  # bytes in one file; larger weights go to a file of their own

# Field numbers in https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
_GRAPH: Final = 7  # ModelProto.graph
_INITIALIZER: Final = 5  # GraphProto.initializer
_RAW_DATA: Final = 9  # TensorProto.raw_data
_LENGTH_DELIMITED: Final = 2  # wire type


def write_onnx(path: Path, model: ExportModel) -> Document:
    """Write the model's graph.

    Args:
        path: The new file, `model.onnx`: the graph contains the name of the file with large weights next to it.
        model: The model.

    Returns:
        `opset`, the version of the operator set.
    """
    graph, details = model.compute_once(_export_graph)
    assert path.name == graph.name, "the graph contains the name of the file next to it"
    for file in files_of(graph.parent, graph.name):
        link(file, path.with_name(file.name))
    return details


def shared_graph(model: ExportModel) -> Path:
    """Return the path of the model's graph, in a folder that is removed with `model`."""
    return model.compute_once(_export_graph)[0]


def _export_graph(model: ExportModel) -> tuple[Path, Document]:
    folder = Path(mkdtemp(dir=model.scratch, prefix=UNFINISHED))
    finalize(model, shutil.rmtree, folder, ignore_errors=True)
    path = folder / ONNX
    return path, {"opset": save_graph(model.program, path, model.task.axes())}


def save_graph(program: ExportedProgram, path: Path, axes: Mapping[str, Mapping[int, str]]) -> int:
    """Write a graph with the input names of the program, the axis names of `axes` and one output, `output`.

    Weights of 2 GB and more, which are too large for one file, go to `<path>.data`.

    Returns:
        The version of the operator set.
    """
    with silence():
        # Names instead of Dims: the program has its dimensions already, this only makes their names readable.
        exported = torch.onnx.export(
            program,
            (),
            output_names=[OUTPUT],
            dynamic_shapes={name: dict(axes[name]) for name in axes},
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        return save_exported(exported, program, path)


def save_exported(exported: ONNXProgram, program: ExportedProgram, path: Path) -> int:
    """Save the result of torch's exporter for `program`, large weights as in `save_graph`; return the operator set."""
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of this machine, half of the size of a small graph
    remove_dead_guards(exported.model.graph)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights < _PROTOBUF_LIMIT:
        write_graph(exported.model, path)
    else:
        exported.save(str(path), external_data=True)
    return int(exported.model.opset_imports[""])


def remove_dead_guards(graph: onnx_ir.Graph) -> None:
    """Remove the replacement of NaN by 0 in attention weights if the softmax cannot return NaN.

    Where nothing may be attended to, torch returns zeros, and the exporter reproduces that for masks of minus infinity.
    A boolean mask becomes the lowest finite number instead, so the replacement costs up to a tenth of the time for
    nothing.
    """
    from onnx_ir.convenience import replace_all_uses_with

    for guard in [node for node in graph if node.op_type == "Where"]:
        condition, _, weights = guard.inputs
        is_nan = condition.producer() if condition else None
        if weights and is_nan and is_nan.op_type == "IsNaN" and is_nan.inputs[0] is weights and _is_finite(weights):
            replace_all_uses_with(guard.outputs[0], weights)
            graph.remove(guard, safe=True)
            if not is_nan.outputs[0].uses():
                graph.remove(is_nan, safe=True)


def _is_finite(weights: onnx_ir.Value) -> bool:
    """Return whether attention weights are the softmax of scores to which a finite boolean mask was added."""
    softmax = weights.producer()
    add = softmax.inputs[0].producer() if softmax and softmax.op_type == "Softmax" and softmax.inputs[0] else None
    mask = add.inputs[1].producer() if add and add.op_type == "Add" and add.inputs[1] else None
    if mask is None or mask.op_type != "Where":
        return False
    values = [value.const_value for value in mask.inputs[1:] if value]
    return all(value is not None and np.isfinite(value.numpy()).all() for value in values)


def load_onnx(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the graph into a session of its own and check its declared dimensions.

    Returns:
        The graph as a function, and `output`, its name and shape.

    Raises:
        ProofError: An input is missing or unexpected, or a dimension is frozen.
    """
    forward, inputs, outputs = open_session(path)
    check_inputs(path.name, inputs, model.task.axes(), model.task.axis_limits())
    check_output(path.name, outputs[OUTPUT], model.cases)
    return forward, {"output": {"name": OUTPUT, "shape": outputs[OUTPUT]}}


def open_session(path: Path, *, has_signals: bool = False) -> tuple[Forward, Dimensions, Dimensions]:
    """Load a graph into a CPU session with torch's number of threads; return it with its inputs and outputs.

    Args:
        path: The graph.
        has_signals: A signal ends a call, see `call_graph`. Its thread takes longer than the graph of a small model, so
            a graph whose calls are timed must run without it.
    """
    session = start_session(path)
    call = partial(call_graph, session) if has_signals else session.run

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        (output,) = call([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)

    return forward, _dimensions(session.get_inputs()), _dimensions(session.get_outputs())


def _dimensions(nodes: list[Any]) -> Dimensions:
    return {node.name: list(node.shape) for node in nodes}


def load_graph(path: Path) -> ModelProto:
    """Load a graph with its weights, also with those in a file next to it.

    onnx refuses to read such a file if it has a second hard link, which `write_onnx` creates.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            info = ExternalDataInfo(tensor)
            with (path.parent / info.location).open("rb") as file:
                file.seek(info.offset or 0)
                tensor.raw_data = file.read(info.length or -1)
            del tensor.external_data[:]
            tensor.data_location = TensorProto.DEFAULT
    return model


def has_external_weights(path: Path) -> bool:
    """Return whether weights of a graph are in a file next to it."""
    graph = onnx.load(path, load_external_data=False).graph
    return any(tensor.data_location == TensorProto.EXTERNAL for tensor in graph.initializer)


def write_graph(model: onnx_ir.Model, path: Path) -> None:
    """Write a graph and its weights to one file without copying the weights.

    The libraries build the whole message in memory and then serialize it, which takes three times the size of the
    weights. Here the message is serialized without its weights, and the weights are written from where they are: the
    order of fields is free. Elements of weights must have a whole number of bytes.

    Source: https://protobuf.dev/programming-guides/encoding.
    """
    from onnx_ir.serde import serialize_model

    weights = dict(model.graph.initializers)
    model.graph.initializers.clear()
    try:
        message = serialize_model(model)
    finally:
        model.graph.initializers.update(weights)
    graph = message.graph.SerializeToString()
    message.ClearField("graph")
    tensors: dict[str, Any] = {name: value.const_value for name, value in weights.items()}
    headers = [(_tensor_header(name, tensor), tensor) for name, tensor in tensors.items()]
    size = len(graph) + sum(len(header) + tensor.nbytes for header, tensor in headers)
    with path.open("wb") as file:
        file.write(message.SerializeToString())
        file.write(_field_header(_GRAPH, size))
        file.write(graph)
        for header, tensor in headers:
            file.write(header)
            file.write(_tensor_bytes(tensor))


def _tensor_header(name: str, tensor: Any) -> bytes:
    """Return everything of an initializer that comes before its bytes."""
    fields = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=list(tensor.shape.numpy()))
    header: bytes = fields.SerializeToString() + _field_header(_RAW_DATA, tensor.nbytes)
    return _field_header(_INITIALIZER, len(header) + tensor.nbytes) + header


def _tensor_bytes(tensor: Any) -> memoryview:
    """Return the elements in little-endian order, without a copy if memory has this order."""
    array = np.ascontiguousarray(tensor.numpy())
    assert array.nbytes == tensor.nbytes, "elements of less than a byte are packed differently"
    return array.astype(array.dtype.newbyteorder("<"), copy=False).reshape(-1).view(np.uint8).data


def _field_header(field: int, size: int) -> bytes:
    """Return the number and the length of a field that is preceded by its length."""
    return bytes([*_varint(field << 3 | _LENGTH_DELIMITED), *_varint(size)])


def _varint(number: int) -> Iterator[int]:
    while number >= 0x80:
        yield number & 0x7F | 0x80
        number >>= 7
    yield number
