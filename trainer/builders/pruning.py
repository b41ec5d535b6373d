"""Pruning of a model as a job's group says."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from trainer.builders.instantiate import make
from trainer.checkpoint.snapshot import Snapshot
from trainer.config.jobs import TrainJob
from trainer.config.schema import own_keys
from trainer.config.sections import PruneKeys
from trainer.errors import ConfigError
from trainer.model.features import FeatureExtractor
from trainer.prune.masks import Masks
from trainer.prune.sparsity import sparsity, total
from trainer.prune.targets import pruned_parameters
from trainer.resume import MASKS

logger = logging.getLogger(__name__)


def build_masks(job: TrainJob, model: nn.Module, snapshot: Snapshot | None) -> Masks:
    """The masks of a job, put on its model: those of the snapshot, else from the weights that it starts with.

    Raises:
        ConfigError: It cannot be pruned so.
    """
    if job.prune is None:
        return Masks(model, {})
    if snapshot is not None:
        return Masks(model, snapshot.tensors[MASKS])
    masks = prune(job.prune, model, job.seed)
    found = total(sparsity(model, masks.names()))
    logger.info(
        "prune: %d of %d elements (%.1f %%) of %d weights are 0 and stay so",
        *(found.zeros, found.size, 100 * found.share, len(masks.names())),
    )
    return masks


def prune(part: Mapping[str, Any], model: nn.Module, seed: int) -> Masks:
    """Prunes a model in place, as the part says.

    Raises:
        ConfigError: It cannot be pruned so.
    """
    # The head on the features of other modules is new, and stands for the model's own.
    prefix, own = ("backbone.", model.backbone) if isinstance(model, FeatureExtractor) else ("", model)
    assert isinstance(own, nn.Module)
    compute = make("prune", own_keys(dict(part), PruneKeys), seed=seed)
    try:
        parameters = pruned_parameters(own, part.get("targets"))
        # On the CPU, so that a draw does not depend on the device.
        weights = {f"{prefix}{name}": parameter.detach().cpu() for name, parameter in parameters.items()}
        kept: Mapping[str, Tensor] = compute(weights)
    except ConfigError as error:
        raise ConfigError(*(f"prune.{message}" for message in error.messages)) from error
    return Masks(model, kept)
