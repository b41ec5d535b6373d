"""`trainer export`: a checkpoint's weights as artifacts, each proved equal to the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from trainer.commands.folders import existing_run_folder, named_checkpoint
from trainer.config.jobs import ExportJob
from trainer.config.pairing import format_faults
from trainer.config.stored import job_from_text, load_stored_config
from trainer.errors import raise_if_any
from trainer.layout import EXPORT, PRUNED_EXPORT
from trainer.report.console import open_console, table
from trainer.signals import exit_on_sigterm

if TYPE_CHECKING:
    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.export.artifacts import Artifact


def run(job: ExportJob, config: dict[str, Any]) -> None:
    """Writes and proves the artifacts of a run, of a pruned copy in a folder of its own, and prints what was proved.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.
    """
    folder = existing_run_folder(job.run)
    raise_if_any(*format_faults({**load_stored_config(folder, "run"), "export": job.export}))
    from trainer.builders.checkpointed import load_checkpointed_model

    trained = load_checkpointed_model(
        folder,
        lambda text: job_from_text(text, trust=job.trust, overrides=job.stored_overrides),
        checkpoint=named_checkpoint(job.run, job.checkpoint),
        weights=job.weights,
        device="cpu",
    )
    console = open_console("auto")
    if job.prune is not None:
        from trainer.commands.pruned import prune_trained, show_pruning

        trained = prune_trained(trained, job.prune, job.split)
        show_pruning(console, trained.origin["pruning"])
    name = EXPORT if job.prune is None else pruned_name(job.prune)
    with exit_on_sigterm():
        artifacts = export_trained(trained, job.export, job.split, name)
    show_artifacts(console, artifacts)


def pruned_name(prune: Mapping[str, Any]) -> str:
    """The folder of a pruned copy's artifacts, so that those of the model itself stay: `export-pruned-l1-0.3`."""
    amount = [str(prune["amount"])] if "amount" in prune else []
    return PRUNED_EXPORT + "-".join([prune["_target_"].rpartition(".")[2], *amount])


def export_trained(
    trained: CheckpointedModel, export: dict[str, Any], split: str, name: str = EXPORT
) -> list[Artifact]:
    """The artifacts that the group `export` asks for, proved on a split, in the folder `name` of the run."""
    from trainer.builders.instantiate import instantiate
    from trainer.commands.answering import answering_config
    from trainer.export.original import Original

    original = Original(
        model=trained.inference_model().cpu(),
        task=trained.task,
        evaluation=lambda: trained.split_batches(split, "padded"),
        training=lambda count: trained.split_batches("train", "padded", count),
        samples=trained.encoded.samples(split),
        architecture={"model": trained.job.model, "facts": trained.task.info().arguments()},
        provenance=trained.provenance | {"split": split, "config": answering_config(trained.job, trained.task)},
    )
    artifacts: list[Artifact] = instantiate("export", export)(trained.folder / name, original)
    return artifacts


def show_artifacts(console: Console, artifacts: list[Artifact]) -> None:
    """Two tables: what was proved of each artifact, and how long each takes beside PyTorch."""
    if not artifacts:
        return
    table(
        console,
        f"artifacts in {artifacts[0].path.parent}",
        ["artifact", "bytes", "largest difference", "decisions agree", "metric", "PyTorch's"],
        [[a.path.name, a.num_bytes, a.largest_difference, a.agreement, a.metric, a.pytorch_metric] for a in artifacts],
    )
    if kept := [artifact.path.name for artifact in artifacts if artifact.kept]:
        console.out(f"kept from an earlier export of the same model: {', '.join(kept)}", highlight=False)
    timings = artifacts[0].timings
    if not timings:
        return
    table(
        console,
        "milliseconds a call on this CPU, medians, and how many times as fast as eager PyTorch",
        [*timings[0].sizes, *timings[0].milliseconds],
        [
            [
                *row.sizes.values(),
                *(f"{each:.3g} ({row.speedup(name):.1f}x)" for name, each in row.milliseconds.items()),
            ]
            for row in timings
        ],
    )
