"""Loss and metrics of a model on a split. Evaluating changes neither the model nor any random number generator."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn

from trainer.deferred_logits import DeferredLogits
from trainer.distributed.ranks import Ranks
from trainer.errors import format_error, is_out_of_memory, raise_if_any
from trainer.model.modes import evaluation_mode
from trainer.protocols import Batch, HalvesBatches, HasBatchStatistic, Loss
from trainer.targets import compute_loss, compute_scores, count_targets

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from trainer.precision import Precision
    from trainer.row_recorder import RowRecorder

logger = logging.getLogger(__name__)


def evaluate(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    metrics: MetricCollection,
    *,
    precision: Precision,
    device: torch.device,
    ranks: Ranks | None = None,
    recorder: RowRecorder | None = None,
) -> dict[str, float]:
    """Return the mean loss over all targets, under the key `loss`, and the value of each metric.

    The metrics are updated batch by batch on the device; the host waits for it once, at the end. A batch for which
    memory runs out in the model or the loss is run in halves, and so are the later batches of that size, unless
    several processes share the batches or the loss is a statistic of a batch.

    Args:
        model: Called with each batch's inputs, in evaluation mode.
        loss: A sum over targets; if it has a head of its own, metrics see the scores of that head.
        batches: The batches of the split; if several processes share them, this process's share, in order of rank. A
            plain iterable cannot be halved; see `HalvesBatches`.
        metrics: New metrics.
        precision: Autocast as in training.
        device: The device of the model.
        ranks: The processes that share the batches; None is this process alone. All get the same values.
        recorder: Records what the model says about each row; it changes no value.
    """
    metrics = metrics.to(device)
    ranks = ranks or Ranks()
    halve = batches.halves if isinstance(batches, HalvesBatches) and ranks.size == 1 else None
    if isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic:
        halve = None
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    num_targets = 0.0
    run = partial(_run, model, loss, precision=precision, device=device, halve=halve, too_large=set())

    def count(part: _Scored) -> Tensor:
        value, scores, target = part
        metrics.update(scores, target)
        return value

    with evaluation_mode(model), torch.inference_mode():
        for host_batch, batch, output, scored in itertools.chain.from_iterable(map(run, batches)):
            num_targets += count_targets(loss, host_batch)
            if batch.num_samples:  # not a filler, which only joins in: with shards, all run the model together
                for value in map(count, scored):  # `map` holds no scores while the next ones are computed
                    total += value
            if recorder is not None:
                recorder.add(host_batch, batch, output)
    if ranks.size > 1:
        share_states(metrics, ranks)
    parts = ranks.gather((total.item(), num_targets))
    mean = sum(part for part, _ in parts) / max(1.0, sum(count for _, count in parts))
    with warnings.catch_warnings():
        if ranks.size > 1:
            # If there are fewer batches than processes, some have none, but compute the values of all.
            warnings.filterwarnings("ignore", "The ``compute`` method of metric", UserWarning)
        values = {"loss": mean, **{name: value.item() for name, value in metrics.compute().items()}}
    return ranks.broadcast(values)


_Scored: TypeAlias = tuple[Tensor, Tensor, Tensor | None]
"""Sum of the losses (), scores in float32 and target of some rows."""


def _run(
    model: nn.Module,
    loss: Loss,
    host_batch: Batch,
    *,
    precision: Precision,
    device: torch.device,
    halve: Callable[[Batch], list[Batch]] | None,
    too_large: set[int],
) -> Iterator[tuple[Batch, Batch, Tensor | DeferredLogits, Iterable[_Scored]]]:
    """Yield a batch on the host and on the device, its output and what is scored of it.

    If memory runs out, the halves of the batch are in its place. `too_large` has the sizes for which memory has run
    out before: batches that are as large are halved at once.
    """
    size = host_batch.num_samples
    if halve is None or all(size < known for known in too_large):
        batch = host_batch
        try:
            batch = host_batch.to(device)
            with precision.autocast():
                output = model(**batch.inputs)
            parts = _score(loss, output, batch)
        except (RuntimeError, MemoryError) as error:
            if halve is None or size < 2 or not is_out_of_memory(error):
                raise
        else:
            yield host_batch, batch, output, parts
            return
        # Outside of the handler, which keeps the tensors of the failed call.
        batch = output = None  # type: ignore[assignment]
        too_large.add(size)
        message = "loader.eval_batch_size: memory ran out for a batch of %d samples; batches of this size run in halves"
        logger.warning(message, size)
    for half in halve(host_batch) if halve is not None else []:
        yield from _run(model, loss, half, precision=precision, device=device, halve=halve, too_large=too_large)


def _score(loss: Loss, output: Tensor | DeferredLogits, batch: Batch) -> Iterable[_Scored]:
    """Return the parts of a batch: itself; of deferred logits, some rows at a time, one part in memory at a time.

    The first part is computed here, so that memory runs out here if it does: no later part is larger. The later parts
    are computed when they are read.
    """

    def score(rows: Tensor, target: Tensor | None) -> _Scored:
        value = compute_loss(loss, rows, replace(batch, target=target))
        return value, compute_scores(loss, rows, target).float(), target

    if not isinstance(output, DeferredLogits):
        return [score(output, batch.target)]
    assert batch.target is not None, "a batch to evaluate needs a target"
    parts = itertools.starmap(score, output.chunks(batch.target))
    return itertools.chain(iter([next(parts)]), parts)  # a list itself would stay in memory until the last part


def share_states(metrics: MetricCollection, ranks: Ranks) -> None:
    """Make the metrics compute their values from the states of all processes, in the order of ranks.

    A list, such as the outputs of each batch, is then in the order of one process that had read all batches.
    """

    from torchmetrics import Metric

    def gather(state: Tensor, group: object) -> list[Tensor]:
        states = [each.to(state.device) for each in ranks.gather(state.cpu())]
        # torchmetrics stands in for the list of a process without batches with an empty tensor of any type.
        return [each for each in states if each.numel()] or states

    for metric in (module for module in metrics.modules() if isinstance(module, Metric)):
        metric.dist_sync_fn = gather
        metric.distributed_available_fn = lambda: True


def check_shareable(metrics: MetricCollection) -> None:
    """Raise ConfigError if a value cannot be computed from the states of several processes, as of a user's metric."""
    from torchmetrics import Metric
    from torchmetrics.utilities import dim_zero_cat, dim_zero_mean

    problems = []
    for name, metric in metrics.items(keep_base=True):
        for part in (module for module in metric.modules() if isinstance(module, Metric)):
            for state, reduction in part._reductions.items():
                is_list = isinstance(part._defaults[state], list)
                own_reduction = type(part).__module__.startswith("torchmetrics.") and not is_list
                if is_list and reduction is not dim_zero_cat:
                    problem, remedy = "is a list that is not joined", "Give it dist_reduce_fx='cat'"
                elif reduction is dim_zero_mean or (reduction is None and not own_reduction):
                    problem, remedy = "is not a sum", "Give it dist_reduce_fx='sum', 'min', 'max' or a function"
                else:
                    continue
                text = f"several devices cannot share the metric {name}, because its state {state} {problem}"
                problems.append(format_error("devices", text, f"{remedy}, or set devices=1"))
    raise_if_any(*problems)


def metric_directions(metrics: MetricCollection) -> dict[str, bool]:
    """Return the direction of the loss and of every metric that has one: True if higher is better."""
    directions = {str(name): metric.higher_is_better for name, metric in metrics.items(keep_base=True)}
    return {"loss": False} | {name: higher for name, higher in directions.items() if higher is not None}
