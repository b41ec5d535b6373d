"""The model as an ONNX graph: written by torch's exporter, run by ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.onnx import ONNXProgram

from trainer.export.cases import Forward
from trainer.export.graph_file import write_graph
from trainer.export.isolation import silence
from trainer.export.proof import Dimensions, prove_inputs, prove_output
from trainer.export.subject import Subject

if TYPE_CHECKING:
    import onnx_ir

OUTPUT = "output"
_PROTOBUF_LIMIT = 2_000_000_000  # bytes in one file; beyond it the weights go to a file of their own


def write_onnx(path: Path, subject: Subject) -> dict[str, Any]:
    """Writes the graph of the subject's program.

    Returns:
        `opset`, the version of the operator set.
    """
    return {"opset": save_graph(subject.program, path, subject.task.axes())}


def save_graph(program: ExportedProgram, path: Path, axes: Mapping[str, Mapping[int, str]]) -> int:
    """Writes a graph with the input names of the program, the names of `axes` and one output, `output`.

    Weights of 2 GB and more, which are too large for one file, go to `<path>.data`.

    Returns:
        The version of the operator set.
    """
    with silence():
        # Names instead of Dims: the program has its dimensions already, these only give them readable names.
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
    """Saves what torch's exporter made of `program`, large weights as `save_graph` does; the operator set's version."""
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces: paths of this machine, half the size of a small graph
    drop_dead_guards(exported.model.graph)
    weights = sum(tensor.nbytes for tensor in program.state_dict.values())
    if weights < _PROTOBUF_LIMIT:
        write_graph(exported.model, path)
    else:
        exported.save(str(path), external_data=True)
    return int(exported.model.opset_imports[""])


def drop_dead_guards(graph: onnx_ir.Graph) -> None:
    """Removes the pass over all attention weights that makes zeros of NaNs where a softmax has no NaN to give.

    Where no position may be attended to, torch gives zeros, and the exporter follows it for masks of minus infinity. A
    boolean mask becomes the lowest finite number instead, and the pass costs up to a tenth of the time for nothing.
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
    """Whether attention weights are the softmax of scores to which a boolean mask was added."""
    softmax = weights.producer()
    add = softmax.inputs[0].producer() if softmax and softmax.op_type == "Softmax" and softmax.inputs[0] else None
    mask = add.inputs[1].producer() if add and add.op_type == "Add" and add.inputs[1] else None
    if mask is None or mask.op_type != "Where":
        return False
    values = [value.const_value for value in mask.inputs[1:] if value]
    return all(value is not None and np.isfinite(value.numpy()).all() for value in values)


def load_onnx(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """The graph in a session of its own, and its output; its declared dimensions are those of the task.

    Raises:
        ProofError: An input is another one, or a dimension is frozen.
    """
    forward, inputs, outputs = open_session(path)
    prove_inputs(path.name, inputs, subject.task.axes(), subject.task.axis_limits())
    prove_output(path.name, outputs[OUTPUT], subject.cases)
    return forward, {"output": {"name": OUTPUT, "shape": outputs[OUTPUT]}}


def open_session(path: Path) -> tuple[Forward, Dimensions, Dimensions]:
    """The model in a fresh CPU session with as many threads as torch has, and its inputs' and outputs' dimensions."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised; the runtime would print it, too
    # Idle threads that spin after a call take the cores from whatever runs next: torch in turn was five times slower.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        (output,) = session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
        return torch.from_numpy(output)

    return forward, _dimensions(session.get_inputs()), _dimensions(session.get_outputs())


def _dimensions(nodes: list[Any]) -> Dimensions:
    return {node.name: list(node.shape) for node in nodes}
