"""Damages of documents: of their bytes, and of single fields of a document whose checksums are made to fit."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.support.hostile_files import reseal, reseal_document
from trainer.documents import file_entries
from trainer.export.folder import write_manifest

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "null": lambda data: b"null",
    "list": lambda data: b"[1, 2]",
    "text": lambda data: b'"text"',
    "no fields": lambda data: b"{}",
    "deep": lambda data: b"[" * 100_000,
    "nested": lambda data: b'{"a":' * 300 + b"1" + b"}" * 300,
    "not UTF-8": lambda data: b"\xff\xfe" + data,
    "long integer": lambda data: b"9" * 5000,
    "NaN": lambda data: b"NaN",
}
"""Functions that damage the bytes of a document."""

VALUES = (
    None,
    True,
    -1,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "../../x",
    "\ud800",
    [],
    [1, 2],
    {},
    {"a": [None]},
)
"""Wrong values of a field."""

_MANY = 50


def graph_of(*shape: int | None, value: float = 0.5, kind: int = TensorProto.FLOAT, name: str = "output") -> bytes:
    """Return a graph with the inputs of a text task that computes one value; a size of None is the number of rows."""
    names = ("input_ids", "attention_mask")
    inputs = [helper.make_tensor_value_info(each, TensorProto.INT64, ["b", "s"]) for each in names]
    sizes = [numpy_helper.from_array(np.array([size or 0]), f"size{place}") for place, size in enumerate(shape)]
    parts = ["rows" if size is None else f"size{place}" for place, size in enumerate(shape)]
    number = helper.make_tensor("", TensorProto.FLOAT, [1], [value])
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["shape"]),
        helper.make_node("Slice", ["shape", "zero", "one"], ["rows"]),
        helper.make_node("Concat", parts, ["sizes"], axis=0),
        helper.make_node("ConstantOfShape", ["sizes"], ["filled"], value=number),
        helper.make_node("Cast", ["filled"], [name], to=kind),
    ]
    ends = [numpy_helper.from_array(np.array([end]), each) for end, each in ((0, "zero"), (1, "one"))]
    output = helper.make_tensor_value_info(name, kind, [None] * len(shape))
    graph = helper.make_graph(nodes, "graph", inputs, [output], [*ends, *sizes])
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9
    ).SerializeToString()
    return model


def endless_graph() -> bytes:
    """Return a graph with the inputs of a text task and a loop that has no end."""
    model = onnx.load_from_string(graph_of(None, 3, name="start"))
    bools, floats = (
        partial(helper.make_tensor_value_info, elem_type=kind) for kind in (TensorProto.BOOL, TensorProto.FLOAT)
    )
    body = helper.make_graph(
        [helper.make_node("Identity", [each], [f"{each}_out"]) for each in ("more", "kept")],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            bools("more", shape=[]),
            floats("kept", shape=None),
        ],
        [bools("more_out", shape=[]), floats("kept_out", shape=None)],
    )
    model.graph.node.append(helper.make_node("Loop", ["", "always", "start"], ["output"], body=body))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "always"))
    model.graph.output[0].name = "output"
    graph: bytes = model.SerializeToString()
    return graph


def write_temperature(run: Path) -> None:
    """Write a decision rule for the best weights of a run, as if it had been found on the validation split."""
    from trainer.builders.checkpointed import load_checkpointed_model
    from trainer.decision import DecisionRule, write_rule

    origin = load_checkpointed_model(run, None, checkpoint="best", weights="auto", device="cpu").origin
    owner = {key: origin[key] for key in ("step", "weights", "checkpoint_sha256")}
    found = {"calibration": {"temperature": 0.5, "unfit": [], "nll_before": 1.0, "nll": 0.5}}
    write_rule(run, {**owner, **DecisionRule({}, 0.5).document(), "validation": found})


def variants(document: Any) -> Iterator[tuple[str, Any]]:
    """Yield a name and a document for each field and each wrong value, without the field, and with one more."""
    for path in _paths(document):
        for value in ("(missing)", *VALUES):
            changed = json.loads(json.dumps(document))
            *parents, last = path
            holder = changed
            for key in parents:
                holder = holder[key]
            if value == "(missing)":
                del holder[last]
            else:
                holder[last] = value
            yield f"{'.'.join(map(str, path))}={value!r}", changed
    if isinstance(document, dict):
        yield "one more field", {**document, "one more": {"a": [1]}}


def _paths(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = list(document.items()) if isinstance(document, dict) else list(enumerate(document))
    # The entries of lists and of large mappings, such as a vocabulary, are alike.
    items = items[:2] if isinstance(document, list) or len(items) > _MANY else items
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from _paths(value, (*path, key))


def seal_again(file: Path) -> None:
    """Make the checksums of a damaged document fit it, so that the damage is met behind them."""
    reseal(file)
    reseal_document(file)
    manifest = file.parent / "manifest.json"
    try:
        document = json.loads(manifest.read_bytes())
        for entry in file_entries(document):
            content = (file.parent / entry["file"]).read_bytes()
            entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        write_manifest(manifest, document)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return  # there is none, or it is the damaged file
