"""The number of micro-batches of a step: found before a run, and doubled when memory runs out in a step."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable

import torch

from trainer.errors import ConfigError, format_error, is_out_of_memory
from trainer.protocols import Batch, HasBatchStatistic
from trainer.run import Run

logger = logging.getLogger(__name__)

_STATE = 2
"""Values per weight that an optimizer may allocate in its first update."""


def can_accumulate_more(run: Run, error: Exception) -> bool:
    """Return whether memory ran out in a step that smaller micro-batches can repeat, with the same result to rounding.

    The processes of several devices would wait for the one whose memory ran out. A statistic of a micro-batch changes
    with its size. A run of an earlier version draws random numbers in sequence, and has used some.
    """
    is_statistic = isinstance(run.loss, HasBatchStatistic) and run.loss.is_batch_statistic
    return is_out_of_memory(error) and run.ranks.size == 1 and not is_statistic and run.rng.keyed


def accumulate_more(run: Run) -> int:
    """Free the memory of a step that failed, double the micro-batches of each step, and return their number.

    Raises:
        ConfigError: A micro-batch has a single sample already.
    """
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
        compute_gradients(run, 0, run.loader.load_largest())
        return bool(state)
    except (RuntimeError, MemoryError) as error:
        if not can_accumulate_more(run, error):
            raise
        return False
