"""What is told of a run as a whole: how it starts, what of it is pruned, that it ended early."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trainer.config.jobs import TrainJob

if TYPE_CHECKING:
    from trainer.builders.training import Training

logger = logging.getLogger(__name__)


def announce_start(job: TrainJob, training: Training, first: bool) -> None:
    """What a step is, and where the run runs; `first` where nothing of it has been told before."""
    run, state = training.run, training.state
    size, uneven = divmod(job.train.batch_size, job.train.accumulate)
    micro_batch = f"at most {size + 1}" if uneven else str(size)
    logger.info(
        "a step is %d samples = %d micro-batch%s of %s; %d steps an epoch, %d in all; %s, %s, %d parameters",
        *(job.train.batch_size, job.train.accumulate, "" if job.train.accumulate == 1 else "es", micro_batch),
        *(run.steps.per_epoch, run.steps.total, run.device, job.precision),
        sum(parameter.numel() for parameter in run.model.parameters()),
    )
    if job.precision == "fp16" and run.device.type == "cpu":
        logger.warning(
            "precision=fp16 is many times as slow as fp32 on a CPU; use fp32 here, or a device that has float16"
        )
    # Also where an earlier process left events but no checkpoint: a resume takes back what came after its step.
    event = "start" if first else "resume"
    run.log(event, state.step, {"seed": job.seed})
    announce_sparsity(training)


def announce_early_end(training: Training) -> None:
    """That and why a run ended before its last step."""
    run, state = training.run, training.state
    if state.step == run.steps.total:
        return
    best = (
        "no score was finite" if state.best is None else f"the best {state.best.name} is that of step {state.best_step}"
    )
    logger.info("train.patience: the run ends after step %d of %d; %s", state.step, run.steps.total, best)
    run.log("early_end", state.step, {"best_step": state.best_step})


def announce_sparsity(training: Training) -> None:
    """An event for each kind of weights where some are pruned."""
    from trainer.prune.masks import measure_sparsity, total_sparsity

    run, state = training.run, training.state
    names = run.masks.names()
    models = {"raw": run.model} | ({} if run.ema is None else {"ema": run.ema.module})
    for weights, model in models.items() if names else ():
        layers = measure_sparsity(model, names)
        zeros = {"zeros": total_sparsity(layers).zeros, "share": total_sparsity(layers).share}
        values = {"weights": weights, **zeros, "layers": {layer.name: layer.share for layer in layers}}
        run.log("sparsity", state.step, values)
