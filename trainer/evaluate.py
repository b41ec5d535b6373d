"""Loss and metrics of a model on a split. Evaluating changes neither the model nor any random number generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from trainer.protocols import Batch, Loss
from trainer.ranks import Ranks
from trainer.targets import compute_loss, compute_scores, count_targets

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from trainer.precision import Precision

_State: TypeAlias = "dict[str, Tensor | list[Tensor]]"
"""The state of a metric by name; a list has one tensor for each batch."""


def evaluate(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    metrics: MetricCollection,
    *,
    precision: Precision,
    device: torch.device,
    ranks: Ranks | None = None,
) -> dict[str, float]:
    """Return the mean loss over all targets, under the key `loss`, and the value of each metric.

    The metrics are updated batch by batch on the device; the host waits for it once, at the end.

    Args:
        model: Called with each batch's inputs, in evaluation mode.
        loss: A sum over targets; if it has a head of its own, metrics see the scores of that head.
        batches: The batches of the split; if several processes share them, those of this process, in order of rank.
        metrics: New metrics.
        precision: Autocast as in training.
        device: The device of the model.
        ranks: The processes that share the batches; None is this process alone. All get the same values.
    """
    metrics = metrics.to(device)
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    num_targets = 0.0
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            for host_batch in batches:
                num_targets += count_targets(loss, host_batch)
                batch = host_batch.to(device)
                with precision.autocast():
                    output = model(**batch.inputs)
                value, scores = compute_loss(loss, output, batch), compute_scores(loss, output)
                if batch.num_samples:  # not a filler, which only joins in: with shards, all run the model together
                    total += value
                    metrics.update(scores.float(), batch.target)
    finally:
        for module, training in modes.items():
            module.training = training
    if ranks is None or ranks.size == 1:
        return _values(total.item(), num_targets, metrics)
    parts = ranks.gather((total.item(), num_targets, _metric_states(metrics)))
    values: dict[str, float] = {}
    if ranks.is_first:
        _merge(metrics, [states for _, _, states in parts])
        values = _values(sum(part[0] for part in parts), sum(part[1] for part in parts), metrics)
    return ranks.broadcast(values)


def _values(total: float, num_targets: float, metrics: MetricCollection) -> dict[str, float]:
    mean = total / max(1.0, num_targets)
    return {"loss": mean, **{name: value.item() for name, value in metrics.compute().items()}}


def _metric_states(metrics: MetricCollection) -> list[_State]:
    """Return the state of every metric, also of metrics inside others, on the CPU."""
    # Metrics of one group share a state, which this call hands to each of them.
    metrics.items(keep_base=True, copy_state=True)
    return [_state_on(metric.metric_state, torch.device("cpu")) for metric in _all_metrics(metrics)]


def _merge(metrics: MetricCollection, states: list[list[_State]]) -> None:
    """Set each metric to the state of a process that had seen the batches of all processes, in the order of ranks."""
    for position, metric in enumerate(_all_metrics(metrics)):
        *others, last = (_state_on(state[position], metric.device) for state in states)
        for name, value in last.items():
            setattr(metric, name, value)
        for state in reversed(others):
            metric.merge_state(state)  # which puts the given state before the metric's own
        # Computing must not ask the other processes again.
        metric.distributed_available_fn = lambda: False


def _state_on(state: _State, device: torch.device) -> _State:
    return {
        name: [each.to(device) for each in value] if isinstance(value, list) else value.to(device)
        for name, value in state.items()
    }


def _all_metrics(metrics: MetricCollection) -> list[Metric]:
    return [module for module in metrics.modules() if isinstance(module, Metric)]


def metric_directions(metrics: MetricCollection) -> dict[str, bool]:
    """Return the direction of the loss and of every metric that has one: True if higher is better."""
    directions = {str(name): metric.higher_is_better for name, metric in metrics.items(keep_base=True)}
    return {"loss": False} | {name: higher for name, higher in directions.items() if higher is not None}
