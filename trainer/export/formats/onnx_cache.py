"""A causal language model as an ONNX graph with its key-value cache as inputs and outputs, for generating text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from trainer.decode.generation import Prompt
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import UncachedSession, cached_step, has_cache
from trainer.decode.onnx_session import IDS, SCORES, OnnxSession, start_session
from trainer.errors import ProofError, format_error
from trainer.export.cases import BATCH, Forward
from trainer.export.compare import check_inputs
from trainer.export.formats.onnx import save_exported
from trainer.export.model import ExportModel, silence
from trainer.layout import Document
from trainer.protocols import Cache, HasEndToken, TokenByTokenModel

NEW, PAST = "new", "past"
"""The axes of the tokens that a step reads and of the tokens in the cache."""

_NUM_GOLDEN = 16  # tokens
_TRACED = (2, 5, 3)  # sequences, tokens in the cache, new tokens


class Step(nn.Module):
    """A model's step as the forward of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Return the scores (B, V) after the last token of `input_ids` (B, T), and the extended cache."""
        return cached_step(self.model, input_ids, cache)


def write_onnx_cache(path: Path, model: ExportModel) -> Document:
    """Write the graph of a step.

    Inputs are `input_ids` (batch, new) and `past_<n>` (batch, heads, past, D / heads), keys and values of each layer in
    turn. Outputs are `logits` (batch, V) for the last token, and `present_<n>`, the `past_<n>` of the next step. The
    first step has `past` 0.

    Returns:
        `opset`, the version of the operator set.

    Raises:
        ProofError: The model cannot read token by token.
    """
    if not has_cache(model.module):
        problem = "needs a causal language model that can read token by token"
        remedy = "model=decoder and GPT-2 can; leave out onnx_cache"
        raise ProofError(format_error(path.name, problem, remedy))
    program = _capture_step(model)
    parts = range(len(_empty_cache(model.module, 1)))
    with silence():
        exported = torch.onnx.export(
            program,
            (),
            input_names=[IDS, *(f"past_{n}" for n in parts)],
            output_names=[SCORES, *(f"present_{n}" for n in parts)],
            dynamic_shapes={IDS: {0: BATCH, 1: NEW}, "cache": tuple({0: BATCH, 2: PAST} for _ in parts)},
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        return {"opset": save_exported(exported, program, path)}


def load_onnx_cache(path: Path, model: ExportModel) -> tuple[Forward, Document]:
    """Load the graph as a function of the whole model's inputs that reads them through the cache.

    Every position is compared, as part of a prompt and as a step: the first half of the tokens is read one by one, then
    again as a prompt, and the rest one by one after it. Generated text has no padding, so the model's own outputs are
    returned for padded positions.

    Raises:
        ProofError: An input is missing or unexpected, or a dimension is frozen.
    """
    session = start_session(path)
    inputs = {node.name: list(node.shape) for node in session.get_inputs()}
    _, max_length = model.task.axis_limits()["sequence"]
    axes = {name: {0: BATCH, 1: NEW} if name == IDS else {0: BATCH, 2: PAST} for name in inputs}
    check_inputs(path.name, inputs, axes, {NEW: (1, max_length), PAST: (0, max_length - 1)})
    outputs = {node.name: list(node.shape) for node in session.get_outputs()}
    frozen = [name for name, sizes in outputs.items() if any(isinstance(size, int) for size in (sizes[0], *sizes[2:3]))]
    if frozen:
        raise ProofError(format_error(path.name, "dimensions 0 and 2 of its outputs must be symbolic", value=frozen))

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = _read_through_cache(session, inputs["input_ids"])
        padding = inputs["attention_mask"] == 0
        return torch.where(padding[..., None], model.eager_forward(inputs), output) if padding.any() else output

    end_id = model.task.end_id if isinstance(model.task, HasEndToken) else None
    return forward, {"inputs": inputs, "outputs": outputs, "end_id": end_id, "golden": _golden_text(model, end_id)}


def _golden_text(model: ExportModel, end_id: int | None) -> dict[str, list[int]]:
    """Return a prompt and the tokens that the model itself, not the graph, generates: a check for recipients."""
    _, max_length = model.task.axis_limits()["sequence"]
    sizes = {BATCH: 1, "sequence": min(_NUM_GOLDEN, max_length - 1)}
    ids = model.task.example(sizes, np.random.default_rng(0))[IDS][0]
    decode = Greedy(max_new_tokens=_NUM_GOLDEN, min_new_tokens=0, repetition_penalty=1.0, no_repeat_ngram=0, stop=[])
    (generated,) = decode(UncachedSession(model.module), Prompt(ids, end_id, max_length, lambda tokens: ""))
    return {"prompt": ids.tolist(), "tokens": list(generated.ids)}


def _read_through_cache(session: Any, input_ids: Tensor) -> Tensor:
    """Return the scores after each token (B, T, V)."""
    batch_size, length = input_ids.shape
    prompt = (length + 1) // 2
    one_by_one, after_prompt = OnnxSession(session, batch_size), OnnxSession(session, batch_size)
    tokens = [input_ids[:, place : place + 1] for place in range(length)]
    scores = [one_by_one.feed(token) for token in tokens[: prompt - 1]]
    scores.append(after_prompt.feed(input_ids[:, :prompt]))
    scores += [after_prompt.feed(token) for token in tokens[prompt:]]
    return torch.stack(scores, dim=1)


def _capture_step(model: ExportModel) -> ExportedProgram:
    """Capture the program of a step with symbolic axes."""
    batch_size, past, new = _TRACED
    _, max_length = model.task.axis_limits()["sequence"]
    generator = np.random.default_rng(0)
    # Two examples, not slices of one: a slice has the strides of the whole, and the program would require them.
    seen, ids = (model.task.example({BATCH: batch_size, "sequence": size}, generator)[IDS] for size in (past, new))
    _, cache = cached_step(model.module, seen, _empty_cache(model.module, batch_size))
    batch = Dim(BATCH, min=1)
    cache_axes = {0: batch, 2: Dim(PAST, min=0, max=max_length - 1)}
    shapes = {IDS: {0: batch, 1: Dim(NEW, min=1, max=max_length)}, "cache": tuple(cache_axes for _ in cache)}
    with silence():
        return torch.export.export(Step(model.module), (), {IDS: ids, "cache": cache}, dynamic_shapes=shapes)


def _empty_cache(model: nn.Module, batch_size: int) -> Cache:
    assert isinstance(model, TokenByTokenModel)
    return model.empty_cache(batch_size)
