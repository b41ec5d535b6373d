"""The parts of a run that only several devices need: weights in shards, and a loss that can be divided."""

from __future__ import annotations

import torch
from torch import nn

from trainer.config.jobs import TrainJob
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import Sharding, count_shards
from trainer.ema import Ema, has_weights
from trainer.errors import ConfigError, format_error
from trainer.model.finetuning import is_frozen, mark_frozen
from trainer.protocols import HasBatchStatistic, Loss, UsesInputs


def check_statistic(loss: Loss, ranks: Ranks, num_shards: int, tokens: int | None = None) -> None:
    """Raise ConfigError if the loss is a statistic of the whole batch that this job cannot compute."""
    if not (isinstance(loss, HasBatchStatistic) and loss.is_batch_statistic):
        return
    name = type(loss).__qualname__
    if tokens is not None and isinstance(loss, UsesInputs) and loss.needs_inputs:
        problem = "a statistic of the batch that needs the inputs cannot merge the micro-batches of loader.tokens"
        raise ConfigError(format_error("loss", problem, "Set loader.tokens=null", value=name))
    if ranks.size == 1:
        return
    if isinstance(loss, UsesInputs) and loss.needs_inputs:
        problem = "a statistic of the batch that needs the inputs works only on one device"
        raise ConfigError(format_error("loss", problem, "Set devices=1", value=name))
    if num_shards > 1 and has_weights(loss):
        problem = "a statistic of the batch that has weights cannot be divided"
        raise ConfigError(format_error("loss", problem, "Set shard=false", value=name))


def shard_run(
    job: TrainJob, model: nn.Module, loss: Loss, ema: Ema | None, ranks: Ranks, device: torch.device
) -> Sharding | None:
    """Divide the model, the average and the loss's own weights among the processes, as the key `shard` says.

    Every process builds the complete model once, before this.

    Raises:
        ConfigError: A part of the job does not work in shards.
    """
    count = count_shards(job.shard, ranks)
    if count == 1:
        return None
    models = [model] if ema is None else [ema.module, model]
    losses: list[object] = [loss] if ema is None or ema.loss is loss else [ema.loss, loss]
    with_weights = [each for each in losses if isinstance(each, nn.Module) and has_weights(each)]
    ranks.broadcast_weights([*models, *with_weights])
    frozen = [name for name, parameter in model.named_parameters() if is_frozen(parameter)]
    sharding = Sharding(ranks, count, device)
    for model_or_average in models:
        sharding.shard(model_or_average)
    mark_frozen(model.get_parameter(name) for name in frozen)  # the shards are other objects
    for loss_or_average in with_weights:
        sharding.shard_loss(loss_or_average)
    return sharding
