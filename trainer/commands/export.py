"""`trainer export`: the weights of a checkpoint as artifacts, each proved equal to the model, pruned on request."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.commands.decision import with_kept_rule
from trainer.commands.run_folders import find_run_folder, select_checkpoint
from trainer.config.compatibility import validate_formats
from trainer.config.groups import Groups, own_folder
from trainer.config.jobs import ExportJob
from trainer.config.stored import load_stored_config, parse_stored_config, with_overrides
from trainer.errors import raise_if_any
from trainer.export.timing import describe_disturbed
from trainer.layout import EXPORT, PRUNED_EXPORT, Document
from trainer.progress import phase
from trainer.report.console import format_bytes, open_console, print_sentence, print_table
from trainer.report.screen import phases_shown
from trainer.signals import exit_on_sigterm

if TYPE_CHECKING:
    from torch import nn

    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.export.artifacts import Artifact


def run(job: ExportJob, config: Document) -> None:
    """Write and prove the artifacts of a run and print the proofs; a pruned copy gets a folder of its own."""
    console = open_console("auto")
    with phases_shown(console):
        artifacts, pruning = export_run(job)
    if pruning is not None:
        print_pruning(console, pruning)
    print_artifacts(console, artifacts)


def export_run(job: ExportJob) -> tuple[list[Artifact], Document | None]:
    """Write and prove the artifacts of a run; return them, and how the copy was pruned if it was."""
    folder = find_run_folder(job.run)
    raise_if_any(
        *validate_formats({**load_stored_config(folder, "run"), "export": job.export}, Groups((own_folder(),)))
    )
    with phase("loading PyTorch"):
        from trainer.builders.checkpointed import load_checkpointed_model, resolve_split
    with phase("loading the model"):
        checkpointed = load_checkpointed_model(
            folder,
            job.trust,
            job.stored_overrides,
            checkpoint=select_checkpoint(job.run, job.checkpoint),
            weights=job.weights,
            device="cpu",
            needs_loss=job.prune is not None,
        )
    split = resolve_split(job.split, checkpointed.job)
    checkpointed = with_kept_rule(checkpointed) if job.prune is None else prune_copy(checkpointed, job.prune, split)
    name = EXPORT if job.prune is None else pruned_folder_name(job.prune)
    with exit_on_sigterm():
        artifacts = export_artifacts(checkpointed, job.export, split, name, job.stored_overrides, force=job.force)
    return artifacts, checkpointed.origin["pruning"] if job.prune is not None else None


def pruned_folder_name(prune: Document) -> str:
    """Return the folder for the artifacts of a pruned copy, next to the model's own: `export-pruned-l1-0.3`."""
    amount = [str(prune["amount"])] if "amount" in prune else []
    return PRUNED_EXPORT + "-".join([prune["_target_"].rpartition(".")[2], *amount])


def export_artifacts(
    checkpointed: CheckpointedModel,
    export: Document,
    split: str,
    name: str = EXPORT,
    overrides: Sequence[tuple[str, Any]] = (),
    *,
    force: bool = False,
) -> list[Artifact]:
    """Write the artifacts of a checkpoint, proved on a split.

    Args:
        checkpointed: The model.
        export: The group `export`.
        split: The split of the proof.
        name: The folder for the artifacts in the run folder.
        overrides: Full keys and values that replace keys of the run's config.
        force: Files in the folder that no export has written may be replaced and removed.
    """
    from trainer.builders.instantiate import instantiate
    from trainer.commands.predict import prediction_config
    from trainer.export.model import ExportModel

    task = checkpointed.task
    # As it is written and not as the job has it: an artifact must not contain values of the environment.
    written = with_overrides(parse_stored_config(checkpointed.config_text), overrides)
    config = prediction_config(written, checkpointed.job, task)
    model = ExportModel(
        checkpointed.inference_model().cpu(),
        task,
        evaluation=lambda: checkpointed.proof_batches(split),
        training=lambda count: checkpointed.split_batches("train", "padded", count),
        samples=checkpointed.encoded.samples(split),
        architecture={"model": written["model"], "facts": task.info().arguments()},
        provenance=checkpointed.provenance | {"split": split, "config": config},
    )
    artifacts: list[Artifact] = instantiate("export", export)(checkpointed.folder / name, model, force)
    return artifacts


def print_artifacts(console: Console, artifacts: list[Artifact]) -> None:
    """Print two tables: the proof of each artifact, and their latency compared with PyTorch."""
    if not artifacts:
        return
    print_table(
        console,
        f"artifacts in {artifacts[0].path.parent}",
        ["artifact", "size", "largest difference", "equal answers", "metric", "metric in PyTorch"],
        [
            [a.path.name, format_bytes(a.num_bytes), a.largest_difference, a.agreement, a.metric, a.pytorch_metric]
            for a in artifacts
        ],
    )
    if reused := [artifact.path.name for artifact in artifacts if artifact.reused]:
        print_sentence(console, f"reused from an earlier export of the same model: {', '.join(reused)}")
    timings = [row for row in artifacts[0].timings if not row.disturbed]
    if disturbed := len(artifacts[0].timings) - len(timings):
        print_sentence(console, f"note: {describe_disturbed(disturbed, len(artifacts[0].timings))}")
    if not timings:
        return
    print_table(
        console,
        "median latency per call on this CPU (ms) and speed-up over eager PyTorch",
        [*timings[0].sizes, *timings[0].milliseconds],
        [
            [
                *row.sizes.values(),
                *(f"{each:.3g} ({row.speedup(name):.1f}x)" for name, each in row.milliseconds.items()),
            ]
            for row in timings
        ],
    )


def prune_copy(checkpointed: CheckpointedModel, prune: Document, split: str) -> CheckpointedModel:
    """Return a pruned copy; its origin records the zeros, and the sizes and metrics before and after.

    Args:
        checkpointed: The model, which is not changed; adapters are merged into the copy's weights first.
        prune: The group `prune`.
        split: The split on which the metrics are computed.

    Raises:
        ConfigError: The model cannot be pruned this way.
    """
    from trainer.builders.model import merge_adapters, prune_model
    from trainer.prune.masks import measure_bytes, measure_sparsity, sparsity_report

    before = merge_adapters(checkpointed.job, checkpointed.model)
    after = deepcopy(before)
    masks = prune_model(prune, after, checkpointed.job.seed)
    models = {"before": before, "after": after}
    sizes = {name: dict(zip(("weights", "compressed"), measure_bytes(m), strict=True)) for name, m in models.items()}
    document = {
        "method": dict(prune),
        **sparsity_report(measure_sparsity(after, masks.names())),
        "metrics": {name: _evaluate(checkpointed, model, split) for name, model in models.items()},
        "bytes": sizes,
    }
    return replace(checkpointed, model=after, origin=checkpointed.origin | {"pruning": document})


def _evaluate(checkpointed: CheckpointedModel, model: nn.Module, split: str) -> dict[str, float]:
    from trainer.evaluate import evaluate
    from trainer.precision import Precision
    from trainer.targets import calibrated_scores

    assert checkpointed.loss is not None
    device = checkpointed.device
    batches = checkpointed.split_batches(split, "padded")
    metrics = checkpointed.task.metrics()
    with calibrated_scores(model, checkpointed.loss, checkpointed.task) as loss:
        return evaluate(model, loss, batches, metrics, precision=Precision("fp32", device), device=device)


def print_pruning(console: Console, document: Document) -> None:
    """Print two tables: the zeros of each weight, and the model before and after pruning."""
    print_sparsity(console, document)
    rows = [
        [when, *document["bytes"][when].values(), *document["metrics"][when].values()] for when in ("before", "after")
    ]
    columns = ["pruning", "bytes", "compressed bytes", *document["metrics"]["before"]]
    print_table(console, "model before and after pruning", columns, rows)


def print_sparsity(console: Console, document: Document) -> None:
    """Print the zeros of each weight."""
    rows = [
        [each["name"], " x ".join(map(str, each["shape"])), each["zeros"], f"{each['share']:.1%}"]
        for each in (*document["layers"], document["total"])
    ]
    print_table(console, "pruned weights", ["weight", "shape", "zeros", "share"], rows)
