"""Decoding sessions on an exported decoder with cache inputs and outputs, run by ONNX Runtime."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
import torch
from torch import Tensor

IDS: Final = "input_ids"
SCORES: Final = "logits"
"""Names of the graph's first input and first output; the others are the cache, `past_<n>` in and `present_<n>` out."""

_PATIENCE = 2.0
"""Seconds that an ended call may take to return; the node that is being computed is completed."""


def start_session(path: Path) -> onnxruntime.InferenceSession:
    """Load a graph into ONNX Runtime on the CPU, with as many threads as torch uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # errors are raised; the runtime would print them as well
    # Idle threads that spin after a call take the cores from whatever runs next: torch was five times slower.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def call_graph(
    session: onnxruntime.InferenceSession, outputs: Sequence[str] | None, inputs: Mapping[str, np.ndarray]
) -> list[np.ndarray]:
    """Compute outputs of a graph by name, None for all; an exception of a signal ends the call.

    A graph may contain a loop that has no end. Python runs the handlers of signals in the main thread, and only when
    that thread runs Python, so another thread makes the call.
    """
    if threading.current_thread() is not threading.main_thread():
        return list(session.run(outputs, inputs))
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    called: Future[list[np.ndarray]] = Future()

    def call() -> None:
        try:
            called.set_result(session.run(outputs, inputs, options))
        except BaseException as error:
            called.set_exception(error)

    thread = threading.Thread(target=call, name="ONNX graph", daemon=True)
    try:
        thread.start()
        return called.result()
    finally:
        options.terminate = True
        if thread.is_alive():
            thread.join(_PATIENCE)


class OnnxSession:
    """A decoding session of an exported decoder.

    Args:
        graph: A graph with the inputs `input_ids` (B, T) and `past_<n>` (B, heads, P, D / heads), and the outputs
            `logits` (B, V) for the last token and `present_<n>` (B, heads, P + T, D / heads).
        batch_size: Number of sequences at the start, B.
    """

    def __init__(self, graph: onnxruntime.InferenceSession, batch_size: int = 1) -> None:
        self._graph = graph
        past = [node for node in graph.get_inputs() if node.name != IDS]
        self._names = [node.name for node in past]
        self._cache = [np.empty((batch_size, node.shape[1], 0, node.shape[3]), dtype=np.float32) for node in past]

    def feed(self, input_ids: Tensor) -> Tensor:
        past = dict(zip(self._names, self._cache, strict=True))
        scores, *self._cache = call_graph(self._graph, None, {IDS: input_ids.numpy(), **past})
        return torch.from_numpy(scores)

    def reorder(self, rows: Tensor) -> None:
        self._cache = [part[rows.numpy()] for part in self._cache]
