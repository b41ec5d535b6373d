"""A decoder with cache inputs and outputs, run by ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from trainer.decode.graph import IDS


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """The graph in a session on the CPU with as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # what goes wrong is raised; the runtime would print it, too
    # Idle threads that spin after a step take the cores from what happens before the next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class OnnxReader:
    """A reader of an exported decoder.

    Args:
        session: Of a graph with the inputs `input_ids` (B, T) and `past_<n>` (B, heads, P, D / heads), and the outputs
            `logits` (B, V), those of the last token, and `present_<n>` (B, heads, P + T, D / heads).
    """

    def __init__(self, session: onnxruntime.InferenceSession, batch_size: int = 1) -> None:
        self._session = session
        past = [node for node in session.get_inputs() if node.name != IDS]
        self._names = [node.name for node in past]
        self._cache = [np.empty((batch_size, node.shape[1], 0, node.shape[3]), dtype=np.float32) for node in past]

    def read(self, input_ids: Tensor) -> Tensor:
        past = dict(zip(self._names, self._cache, strict=True))
        scores, *self._cache = self._session.run(None, {IDS: input_ids.numpy(), **past})
        return torch.from_numpy(scores)

    def keep(self, rows: Tensor) -> None:
        self._cache = [part[rows.numpy()] for part in self._cache]
