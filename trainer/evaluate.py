"""Loss and metrics of a model over a split; it leaves the model and every generator as they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from trainer.protocols import Batch, Loss
from trainer.state import Score
from trainer.targets import count_targets, loss_of, scores_of

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
    """The mean loss over all targets, under `loss`, and the value of each metric.

    Outputs are folded into the metrics batch by batch on the device; the host waits once, at the end.

    Args:
        model: Called on each batch's inputs, in evaluation mode.
        loss: Sum and number of targets; where it has `scores`, the metrics see those.
        batches: The split.
        metrics: Fresh ones.
        precision: Autocast as in training.
        device: Where the model is.
    """
    metrics = metrics.to(device)
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count = 0.0
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.inference_mode():
            for host_batch in batches:
                count += count_targets(loss, host_batch)
                batch = host_batch.to(device)
                with precision.autocast():
                    output = model(**batch.inputs)
                total += loss_of(loss, output, batch)
                metrics.update(scores_of(loss, output).float(), batch.target)
    finally:
        for module, training in modes.items():
            module.training = training
    mean = total.item() / max(1.0, count)
    return {"loss": mean, **{name: value.item() for name, value in metrics.compute().items()}}


def score(
    models: Mapping[str, tuple[nn.Module, Loss]],
    monitor: str,
    higher_is_better: bool,
    measure: Callable[[nn.Module, Loss], dict[str, float]],
    log: Callable[[dict[str, float | str]], None],
) -> Score:
    """Evaluates each of `models` (`raw`, and `ema` where there is one), logs it, and scores the better one.

    Args:
        models: Model and loss by the name of their weights; the first wins a tie.
        monitor: The metric that decides.
        higher_is_better: Its direction.
        measure: A model's loss and metrics on the validation split.
        log: Takes the values of one evaluation.
    """
    best: Score | None = None
    for weights, (model, loss) in models.items():
        values = measure(model, loss)
        log({"split": "validation", "weights": weights, **values})
        found = Score(monitor, values[monitor], higher_is_better, weights)
        if best is None or found.beats(best):
            best = found
    assert best is not None, "there is at least the model itself"
    return best


def directions(metrics: MetricCollection) -> dict[str, bool]:
    """Whether higher is better, for the loss and each metric that can pick a checkpoint."""
    known = {name: metric.higher_is_better for name, metric in metrics.items(keep_base=True)}
    return {"loss": False} | {str(name): better for name, better in known.items() if better is not None}
