"""The diagnosis of a run that diverged: a report about its last step, from which the step can be replayed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path

import torch
from torch import Tensor

from trainer.checkpoint.tensors import decode, encode
from trainer.display import list_some
from trainer.distributed.sharding import gather_shards, own_rows
from trainer.documents import DIVERGENCE
from trainer.errors import CheckpointError, DivergedError, format_error
from trainer.files.atomic_io import replaced_folder
from trainer.layout import CONFIG, DIVERGENCE_BATCH, DIVERGENCE_REPORT
from trainer.model.weights import not_finite
from trainer.protocols import Batch
from trainer.run import DivergenceReport, Run
from trainer.shapes import parse_json, read_bytes, to_json

_MAX_SAMPLES = 16
_MAX_NAMES = 3


def diagnose(
    run: Run, step: int, loss: float | None, grad_norm: float | None, micro_batches: list[Batch]
) -> DivergenceReport:
    """Return the numbers of a step that diverged; the run is not changed.

    Args:
        run: The parts, still with the gradients of the step.
        step: The step, counted from 1.
        loss: The loss of the step; None if the weights diverged.
        grad_norm: The 2-norm of the gradient before clipping; None if the weights diverged.
        micro_batches: The micro-batches of the step.
    """
    gradients = {
        name: parameter.grad
        for group in run.optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
        if parameter.grad is not None
    }
    batch = dict(_batch_tensors(micro_batches))
    buffers = [
        (f"{part}.{name}", buffer) for part, module in run.modules().items() for name, buffer in module.named_buffers()
    ]
    report = {
        "step": step,
        "loss": _json_float(loss),
        "grad_norm": _json_float(grad_norm),
        "lr": _json_float(max(group["lr"] for group in run.optimizer.param_groups)),
        "precision": run.precision.name,
        "scale": _json_float(run.precision.scale),
        "samples": [sample for micro_batch in micro_batches for sample in micro_batch.ids],
        "not_finite": {
            "parameters": non_finite_parameters(run),
            "buffers": not_finite(dict(buffers)),
            "gradients": _non_finite_of_all(run, gradients.items()),
            "inputs": not_finite(batch),
        },
        "grad_norms": {
            name: _json_float(float(gather_shards(torch.linalg.vector_norm(gradient.float()))))
            for name, gradient in gradients.items()
        },
    }
    return DivergenceReport(step, report, batch)


def diverged_step_error(run: Run, step: int, loss: float, grad_norm: float, own_batches: list[Batch]) -> DivergedError:
    """Save the diagnosis of a step, counted from 1, and return the error that names its loss, gradient and samples.

    Args:
        run: The parts, still with the gradients of the step.
        step: The step.
        loss: The loss of the step.
        grad_norm: The 2-norm of the gradient before clipping.
        own_batches: The micro-batches of this process; the diagnosis shows the ones of all processes.
    """
    all_batches = [batch for batches in run.ranks.gather(own_batches) for batch in batches if batch.num_samples]
    micro_batches = sorted(all_batches, key=lambda batch: batch.piece)
    ids = [sample for batch in micro_batches for sample in batch.ids]
    shown = ", ".join(map(str, ids[:_MAX_SAMPLES])) + (f", ... ({len(ids)} in all)" if len(ids) > _MAX_SAMPLES else "")
    return DivergedError(
        f"step {step}: the run diverged: loss {loss}, gradient norm {grad_norm}; the weights were not updated.\n"
        f"  samples of the step (positions in the training split): {shown}\n"
        f"{_remedy(run)}",
        run.outputs.save_divergence(diagnose(run, step, loss, grad_norm, micro_batches)),
    )


def diverged_weights_error(run: Run, step: int, names: list[str]) -> DivergedError:
    """Save the diagnosis of weights that are not finite, and return the error that names them."""
    shown = list_some(names, _MAX_NAMES)
    verb = "is" if len(names) == 1 else "are"
    return DivergedError(
        f"step {step}: the run diverged: {shown} {verb} not finite; no checkpoint was saved.",
        _remedy(run),
        run.outputs.save_divergence(diagnose(run, step, None, None, [])),
    )


def _remedy(run: Run) -> str:
    is_perturbed = run.moved_weights is not None or run.consistency is not None
    sizes = "the sizes in perturb, lower " if is_perturbed else ""
    return f"  Lower {sizes}optimizer.lr, lengthen scheduler.warmup or set train.max_grad_norm, and start a new run."


def non_finite_parameters(run: Run) -> list[str]:
    """Return the parameters with a value that is not finite: `model.<name>`, `loss.<name>`, `ema.<name>`.

    With shards, every process must call this.
    """
    return _non_finite_of_all(
        run,
        (
            (f"{part}.{name}", parameter)
            for part, module in run.modules().items()
            for name, parameter in module.named_parameters()
        ),
    )


def write_divergence(folder: Path, divergence: DivergenceReport, config_text: str, checkpoint: str | None) -> None:
    """Write a folder with `report.json`, `batch.safetensors` and `config.yaml`; an older folder is replaced.

    Args:
        folder: The folder.
        divergence: The diagnosis.
        config_text: The run's config.
        checkpoint: The last intact checkpoint before the step; None if there is none.

    Raises:
        CheckpointError: The folder cannot be written.
    """
    report = {**divergence.report, "checkpoint": checkpoint}
    with replaced_folder(folder) as stage:
        with (stage / DIVERGENCE_BATCH).open("wb") as file:
            file.writelines(encode(divergence.batch))
        (stage / CONFIG).write_text(config_text, encoding="utf-8")
        text = to_json(report, indent=1) + "\n"
        (stage / DIVERGENCE_REPORT).write_text(text, encoding="utf-8")


def read_divergence(folder: Path) -> tuple[DivergenceReport, str, str | None]:
    """Read what `write_divergence` wrote: the diagnosis, the config, and the last checkpoint before the step.

    Raises:
        CheckpointError: The folder is damaged.
    """
    try:
        report = parse_json(read_bytes(folder / DIVERGENCE_REPORT), DIVERGENCE)
        checkpoint = report.pop("checkpoint")
        batch = decode((folder / DIVERGENCE_BATCH).read_bytes(), DIVERGENCE_BATCH)
        divergence = DivergenceReport(int(report["step"]), report, batch)
        return divergence, (folder / CONFIG).read_text(encoding="utf-8"), checkpoint
    except Exception as error:  # a damaged file may lead to any
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise CheckpointError(format_error(str(folder), problem)) from error


def _batch_tensors(micro_batches: list[Batch]) -> Iterator[tuple[str, Tensor]]:
    for position, host_batch in enumerate(micro_batches):
        batch = host_batch.to(torch.device("cpu"))
        for name, tensor in batch.inputs.items():
            yield f"{position}.inputs.{name}", tensor
        if batch.target is not None:
            yield f"{position}.target", batch.target


def _non_finite_of_all(run: Run, named: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Return the names of tensors with a value that is not finite, in any process's rows of them."""
    rows = {name: own_rows(tensor.detach()) for name, tensor in named}
    names = set(not_finite(rows))
    if run.sharding is not None:
        names = set().union(*run.ranks.gather(names))
    return [name for name in rows if name in names]


def _json_float(value: float | None) -> float | str | None:
    """Return a value that JSON can hold: a string if it is not finite."""
    return value if value is None or isfinite(value) else str(float(value))
