"""A trained model with weights pruned, and what that did to it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from typing import Any

from rich.console import Console
from torch import nn

from trainer.builders.checkpointed import CheckpointedModel
from trainer.builders.model import merge_adapters, prune_model
from trainer.evaluate import evaluate
from trainer.precision import Precision
from trainer.prune.masks import measure_bytes, measure_sparsity, sparsity_report
from trainer.report.console import table


def prune_trained(trained: CheckpointedModel, part: Mapping[str, Any], split: str) -> CheckpointedModel:
    """A copy of a trained model, pruned; its provenance says how, the zeros, sizes and metrics before and after.

    Args:
        trained: It stays as it is; adapters are merged into the copy's weights first.
        part: The group `prune`.
        split: What the metrics are taken on.

    Raises:
        ConfigError: It cannot be pruned so.
    """
    before = merge_adapters(trained.job, trained.model)
    model = deepcopy(before)
    masks = prune_model(part, model, trained.job.seed)
    document = {
        "method": dict(part),
        **sparsity_report(measure_sparsity(model, masks.names())),
        "metrics": {name: _metrics(trained, each, split) for name, each in (("before", before), ("after", model))},
        "bytes": {name: _bytes(each) for name, each in (("before", before), ("after", model))},
    }
    return replace(trained, model=model, origin=trained.origin | {"pruning": document})


def _metrics(trained: CheckpointedModel, model: nn.Module, split: str) -> dict[str, float]:
    batches = trained.split_batches(split, "padded")
    precision = Precision("fp32", trained.device)
    metrics = trained.task.metrics()
    return evaluate(model, trained.loss, batches, metrics, precision=precision, device=trained.device)


def _bytes(model: nn.Module) -> dict[str, int]:
    plain, compressed = measure_bytes(model)
    return {"weights": plain, "compressed": compressed}


def show_pruning(console: Console, document: Mapping[str, Any]) -> None:
    """Two tables: the zeros of each weight, and the model before and after."""
    show_sparsity(console, document)
    rows = [
        [when, *document["bytes"][when].values(), *document["metrics"][when].values()] for when in ("before", "after")
    ]
    columns = ["pruning", "bytes", "compressed", *document["metrics"]["before"]]
    table(console, "the model before and after", columns, rows)


def show_sparsity(console: Console, document: Mapping[str, Any]) -> None:
    """The zeros of each weight."""
    rows = [
        [each["name"], " x ".join(map(str, each["shape"])), each["zeros"], f"{each['share']:.1%}"]
        for each in (*document["layers"], document["total"])
    ]
    table(console, "pruned weights", ["weight", "shape", "zeros", "share"], rows)
