"""A causal language model with its cache as inputs and outputs, as an ONNX graph: what generates token by token."""

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
from trainer.decode.onnx_session import IDS, SCORES, OnnxSession, load_graph
from trainer.errors import ProofError, format_error
from trainer.export.cases import BATCH, Forward
from trainer.export.isolation import silence
from trainer.export.onnx import save_exported
from trainer.export.proof import prove_inputs
from trainer.export.subject import Subject
from trainer.protocols import Cache, HasEndToken

NEW, PAST = "new", "past"
"""The axes of the tokens that are read and of those that were read before."""

_NUM_GOLDEN = 16
_TRACED = (2, 5, 3)  # sequences, tokens read before, tokens read now


class Step(nn.Module):
    """A model's step as the forward of a module."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return cached_step(self.model, input_ids, cache)


def write_cached_decoder(path: Path, subject: Subject) -> dict[str, Any]:
    """Writes the graph of a step.

    Inputs are `input_ids` (batch, new) and, for each layer, `past_<n>` (batch, heads, past, D / heads), keys and values
    in turn; outputs `logits` (batch, V) of the token after the last one, and `present_<n>`, which are the next step's
    `past_<n>`. A text begins with `past` 0.

    Returns:
        `opset`, the version of the operator set.

    Raises:
        ProofError: The model cannot read token by token.
    """
    if not has_cache(subject.model):
        problem = "needs a causal language model that can read token by token"
        raise ProofError(format_error(path.name, problem, "Those of model=decoder and GPT-2 can; leave out onnx_cache"))
    program = _captured(subject)
    parts = range(len(_no_cache(subject.model, 1)))
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


def load_cached_decoder(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    """The graph, read through its cache, as a function of the whole model's inputs; its dimensions are symbolic.

    Every position is proved, those of prompts and those of steps: the first half of the tokens is read one by one, then
    again as a prompt, and the rest one by one after it. No text that is generated holds padding, so that at padding the
    model's own outputs stand.

    Raises:
        ProofError: An input is another one, or a dimension is frozen.
    """
    session = load_graph(path)
    dims = {node.name: list(node.shape) for node in session.get_inputs()}
    _, max_length = subject.task.axis_limits()["sequence"]
    axes = {name: {0: BATCH, 1: NEW} if name == IDS else {0: BATCH, 2: PAST} for name in dims}
    prove_inputs(path.name, dims, axes, {NEW: (1, max_length), PAST: (0, max_length - 1)})
    outputs = {node.name: list(node.shape) for node in session.get_outputs()}
    frozen = [name for name, sizes in outputs.items() if any(isinstance(size, int) for size in (sizes[0], *sizes[2:3]))]
    if frozen:
        raise ProofError(format_error(path.name, "dimensions 0 and 2 of its outputs must be symbolic", value=frozen))

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        output = _read_through(session, inputs["input_ids"])
        hidden = inputs["attention_mask"] == 0
        return torch.where(hidden[..., None], subject.pytorch(inputs), output) if hidden.any() else output

    end_id = subject.task.end_id if isinstance(subject.task, HasEndToken) else None
    return forward, {"inputs": dims, "outputs": outputs, "end_id": end_id, "golden": _golden(subject, end_id)}


def _golden(subject: Subject, end_id: int | None) -> dict[str, list[int]]:
    """A prompt and what the model itself, not the graph, makes of it; for whoever receives the graph."""
    _, max_length = subject.task.axis_limits()["sequence"]
    sizes = {BATCH: 1, "sequence": min(_NUM_GOLDEN, max_length - 1)}
    ids = subject.task.example(sizes, np.random.default_rng(0))[IDS][0]
    decode = Greedy(max_new_tokens=_NUM_GOLDEN, min_new_tokens=0, repetition_penalty=1.0, no_repeat_ngram=0, stop=[])
    (greedily,) = decode(UncachedSession(subject.model), Prompt(ids, end_id, max_length, lambda tokens: ""))
    return {"prompt": ids.tolist(), "tokens": list(greedily.ids)}


def _read_through(session: Any, input_ids: Tensor) -> Tensor:
    """Scores after each token (B, T, V)."""
    batch_size, length = input_ids.shape
    prompt = (length + 1) // 2
    one_by_one, after_prompt = OnnxSession(session, batch_size), OnnxSession(session, batch_size)
    singles = [input_ids[:, place : place + 1] for place in range(length)]
    scores = [one_by_one.feed(token) for token in singles[: prompt - 1]]
    scores.append(after_prompt.feed(input_ids[:, :prompt]))
    scores += [after_prompt.feed(token) for token in singles[prompt:]]
    return torch.stack(scores, dim=1)


def _captured(subject: Subject) -> ExportedProgram:
    """The program of a step whose axes are symbolic."""
    batch_size, past, new = _TRACED
    _, max_length = subject.task.axis_limits()["sequence"]
    generator = np.random.default_rng(0)
    # Two examples, not parts of one: a part has the strides of the whole, and the program would be bound to them.
    seen, ids = (subject.task.example({BATCH: batch_size, "sequence": size}, generator)[IDS] for size in (past, new))
    _, cache = cached_step(subject.model, seen, _no_cache(subject.model, batch_size))
    batch = Dim(BATCH, min=1)
    of_cache = {0: batch, 2: Dim(PAST, min=0, max=max_length - 1)}
    shapes = {IDS: {0: batch, 1: Dim(NEW, min=1, max=max_length)}, "cache": tuple(of_cache for _ in cache)}
    with silence():
        return torch.export.export(Step(subject.model), (), {IDS: ids, "cache": cache}, dynamic_shapes=shapes)


def _no_cache(model: Any, batch_size: int) -> Cache:
    cache: Cache = model.empty_cache(batch_size)
    return cache
