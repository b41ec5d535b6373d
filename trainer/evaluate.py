"""Loss and metrics of a model on a split. Evaluating changes neither the model nor any random number generator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.protocols import Batch, Loss
from trainer.targets import compute_loss, compute_scores, count_targets

if TYPE_CHECKING:
    from torchmetrics import MetricCollection

    from trainer.precision import Precision


def evaluate(
    model: nn.Module,
    loss: Loss,
    batches: Iterable[Batch],
    metrics: MetricCollection,
    *,
    precision: Precision,
    device: torch.device,
) -> dict[str, float]:
    """Return the mean loss over all targets, under the key `loss`, and the value of each metric.

    The metrics are updated batch by batch on the device; the host waits for it once, at the end.

    Args:
        model: Called with each batch's inputs, in evaluation mode.
        loss: A sum over targets; if it has a head of its own, metrics see the scores of that head.
        batches: The batches of the split.
        metrics: New metrics.
        precision: Autocast as in training.
        device: The device of the model.
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
                total += compute_loss(loss, output, batch)
                metrics.update(compute_scores(loss, output).float(), batch.target)
    finally:
        for module, training in modes.items():
            module.training = training
    mean = total.item() / max(1.0, num_targets)
    return {"loss": mean, **{name: value.item() for name, value in metrics.compute().items()}}


def metric_directions(metrics: MetricCollection) -> dict[str, bool]:
    """Return the direction of the loss and of every metric that has one: True if higher is better."""
    directions = {str(name): metric.higher_is_better for name, metric in metrics.items(keep_base=True)}
    return {"loss": False} | {name: higher for name, higher in directions.items() if higher is not None}
