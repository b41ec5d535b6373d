"""Micro-batches of a step: their number, and losses that are statistics of all of them.

The number is found before a run, and doubled when memory runs out in a step.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from trainer.errors import ConfigError, format_error, is_out_of_memory
from trainer.protocols import Batch, HasBatchStatistic, Loss, UsesInputs
from trainer.run import Run
from trainer.targets import compute_shared_loss

logger = logging.getLogger(__name__)

_STATE = 2
"""Values per weight that an optimizer may allocate in its first update."""


def can_accumulate_more(run: Run, error: Exception) -> bool:
    """Return whether memory ran out in a step that smaller micro-batches can repeat, with the same result to rounding.

    The processes of several devices would wait for the one whose memory ran out. A statistic that micro-batches do not
    share changes with their size. A run of an earlier version draws random numbers in sequence, and has used some.
    """
    is_shared = not _is_statistic(run.loss) or _can_merge(run)
    return is_out_of_memory(error) and run.ranks.size == 1 and is_shared and run.rng.keyed


def accumulate_more(run: Run) -> int:
    """Free the memory of a step that failed, double the micro-batches of each step, and return their number.

    Raises:
        ConfigError: A micro-batch has a single sample already, or the number of its tokens is fixed.
    """
    if run.loader.tokens is not None:
        problem = "a micro-batch does not fit into memory"
        smaller = run.loader.fewer_tokens()
        remedy = "Use a smaller model, shorter samples (task.max_length), or precision=bf16"
        if smaller is not None:
            remedy = f"Set loader.tokens={smaller}, with which the run learns the same"
        raise ConfigError(format_error("loader.tokens", problem, remedy, value=run.loader.tokens))
    if run.loader.accumulate >= run.batch_size:
        problem = "a single sample does not fit into memory"
        remedy = "Use a smaller model, shorter samples (task.max_length), or precision=bf16"
        raise ConfigError(format_error("train.accumulate", problem, remedy, value=run.loader.accumulate))
    run.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    run.loader.accumulate = min(2 * run.loader.accumulate, run.batch_size)
    return run.loader.accumulate


def find_accumulate(run: Run, compute_gradients: Callable[[Run, int, list[Batch]], object]) -> None:
    """Set the smallest number of micro-batches, of 1, 2, 4, ..., for which a step of the longest samples fits.

    The run is not changed otherwise: no weight is updated, and the buffers of the model are restored.

    Args:
        run: The parts; the optimizer may still have no state, so its memory is reserved.
        compute_gradients: Computes the gradients of a step.
    """
    buffers = {name: buffer.clone() for name, buffer in run.model.named_buffers()}
    run.model.train()
    while not _fits(run, compute_gradients):
        accumulate_more(run)
    run.optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in run.model.named_buffers():
            buffer.copy_(buffers[name])
    logger.info("train.accumulate: auto uses %d for %d samples", run.loader.accumulate, run.batch_size)


def _fits(run: Run, compute_gradients: Callable[[Run, int, list[Batch]], object]) -> bool:
    """Return whether memory suffices for a step of the longest samples and for the state of the optimizer."""
    weights = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    try:
        state = [torch.empty_like(weight) for weight in weights for _ in range(_STATE)]
        # At the last step, when everything that starts later has started.
        compute_gradients(run, run.steps.total - 1, run.loader.load_largest())
        return bool(state)
    except (RuntimeError, MemoryError) as error:
        if not can_accumulate_more(run, error):
            raise
        return False


def _is_statistic(loss: Loss) -> bool:
    return isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic


def _can_merge(run: Run) -> bool:
    """Return whether a statistic can be computed from the outputs and targets of all micro-batches together."""
    needs_inputs = isinstance(run.loss, UsesInputs) and run.loss.needs_inputs
    return run.rng.keyed and not needs_inputs


def merges_statistic(run: Run, micro_batches: list[Batch]) -> bool:
    """Return whether the loss of a step is a statistic of several micro-batches."""
    return len(micro_batches) > 1 and _is_statistic(run.loss) and _can_merge(run)


def backward_through_statistic(
    run: Run, step: int, micro_batches: list[Batch], num_targets: Callable[[], float]
) -> Tensor:
    """Add the gradients of a loss that is a statistic of all micro-batches; return this process's share, shape ().

    Source: Gao et al. 2021, "Scaling deep contrastive learning batch size under memory limited setup",
    https://arxiv.org/abs/2101.06983. The outputs of all micro-batches are computed without a graph; the loss gives
    their gradients; then each micro-batch is computed again, with the same random numbers, and the gradient of its
    output goes back through it. It takes the memory of one micro-batch, for a second forward pass.
    """
    batches = [batch.to(run.device) for batch in micro_batches]
    buffers = [(buffer, buffer.clone()) for buffer in run.model.buffers()]
    with torch.no_grad():
        outputs = [run.forward(step, batch).requires_grad_() for batch in batches]
        for buffer, before in buffers:  # the second pass updates statistics of batch norm
            buffer.copy_(before)
    total, counts = compute_shared_loss(run.loss, *_merge(outputs, batches), run.ranks)
    loss = total / max(1.0, num_targets())
    run.precision.backward(loss)
    for output, batch in zip(outputs, batches, strict=True):
        gradient = torch.zeros_like(output) if output.grad is None else output.grad
        torch.autograd.backward(run.forward(step, batch), gradient)
    return loss.detach() if counts else torch.zeros_like(loss)


def _merge(outputs: list[Tensor], batches: list[Batch]) -> tuple[Tensor, Batch]:
    """Return the outputs and the targets of micro-batches as one; fillers have none."""
    rows = [(output, batch) for output, batch in zip(outputs, batches, strict=True) if batch.num_samples]
    if not rows:
        return outputs[0], batches[0]
    flat = outputs[0].ndim > 2  # (B, T, C) of one micro-batch may be longer than in another
    targets = [batch.target for _, batch in rows if batch.target is not None]
    return torch.cat([output.flatten(0, -2) if flat else output for output, _ in rows]), replace(
        batches[0],
        target=torch.cat([target.flatten() if flat else target for target in targets]),
        num_samples=sum(batch.num_samples for _, batch in rows),
        ids=tuple(sample for _, batch in rows for sample in batch.ids),
    )
