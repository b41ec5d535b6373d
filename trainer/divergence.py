"""Why a run diverged: what is known of the step that ended it, kept in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainer.checkpoint.tensors import decode, encode
from trainer.errors import CheckpointError, format_error
from trainer.loop import Run
from trainer.protocols import Batch

REPORT = "report.json"
BATCH = "batch.safetensors"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class DivergenceReport:
    """What was found.

    Attributes:
        step: The step that was not completed or not kept, counted from 1 as in the messages and the events.
        report: Its numbers, as JSON has them: a float that is not finite is the string "nan", "inf" or "-inf".
        batch: The inputs and the target of each micro-batch, `<micro-batch>.inputs.<name>` and `<micro-batch>.target`.
    """

    step: int
    report: dict[str, Any]
    batch: dict[str, Tensor]


def examine(run: Run, step: int, loss: float | None, grad_norm: float | None, group: list[Batch]) -> DivergenceReport:
    """Looks at the run where it stopped; changes nothing.

    Args:
        run: The parts, the gradients of the step still in them.
        step: The step, counted from 1.
        loss: Its loss; None where the loss is not what diverged.
        grad_norm: The 2-norm of its gradient before clipping; None as with the loss.
        group: Its micro-batches.
    """
    gradients = {
        name: parameter.grad
        for entry in run.optimizer.param_groups
        for name, parameter in zip(entry["param_names"], entry["params"], strict=True)
        if parameter.grad is not None
    }
    batch = dict(_tensors(group))
    buffers = [(f"{name}.{inner}", buffer) for name, part in _modules(run) for inner, buffer in part.named_buffers()]
    report = {
        "step": step,
        "loss": _plain(loss),
        "grad_norm": _plain(grad_norm),
        "lr": _plain(max(group["lr"] for group in run.optimizer.param_groups)),
        "precision": run.precision.name,
        "scale": _plain(run.precision.scale),
        "samples": [sample for part in group for sample in part.ids],
        "not_finite": {
            "parameters": not_finite_parameters(run),
            "buffers": _not_finite(buffers),
            "gradients": _not_finite(gradients.items()),
            "inputs": _not_finite(batch.items()),
        },
        "grad_norms": {name: _plain(float(torch.linalg.vector_norm(grad.float()))) for name, grad in gradients.items()},
    }
    return DivergenceReport(step, report, batch)


def not_finite_parameters(run: Run) -> list[str]:
    """The parameters with a value that is not finite: `model.<name>`, `loss.<name>`, `ema.<name>`."""
    return _not_finite(
        (f"{name}.{inner}", parameter) for name, part in _modules(run) for inner, parameter in part.named_parameters()
    )


def write_bundle(folder: Path, findings: DivergenceReport, config_text: str, checkpoint: str | None) -> None:
    """Writes a folder with `report.json`, `batch.safetensors` and `config.yaml`; an older one is replaced.

    Args:
        folder: The folder.
        findings: What was found.
        config_text: The config the run went by.
        checkpoint: The last intact checkpoint before the step; None where there is none.

    Raises:
        OSError: It cannot be written.
    """
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    with (folder / BATCH).open("wb") as file:
        file.writelines(encode(findings.batch))
    (folder / CONFIG).write_text(config_text, encoding="utf-8")
    # Last: a folder with a report is complete.
    report = {**findings.report, "checkpoint": checkpoint}
    (folder / REPORT).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def read_bundle(folder: Path) -> tuple[DivergenceReport, str, str | None]:
    """What `write_bundle` wrote: the findings, the config, and the last checkpoint there was.

    Raises:
        CheckpointError: It is not what was written.
    """
    try:
        report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        checkpoint = report.pop("checkpoint")
        findings = DivergenceReport(int(report["step"]), report, decode((folder / BATCH).read_bytes()))
        return findings, (folder / CONFIG).read_text(encoding="utf-8"), checkpoint
    except Exception as error:  # whatever an altered file leads to
        problem = f"cannot be read ({type(error).__name__}: {error})"
        raise CheckpointError(format_error(str(folder), problem)) from error


def _modules(run: Run) -> Iterator[tuple[str, nn.Module]]:
    yield "model", run.model
    if isinstance(run.loss, nn.Module):
        yield "loss", run.loss
    if run.ema is not None:
        yield "ema", run.ema.module
        if run.ema.loss is not run.loss and isinstance(run.ema.loss, nn.Module):
            yield "ema_loss", run.ema.loss


def _tensors(group: list[Batch]) -> Iterator[tuple[str, Tensor]]:
    for position, batch in enumerate(group):
        for name, tensor in batch.inputs.items():
            yield f"{position}.inputs.{name}", tensor
        if batch.target is not None:
            yield f"{position}.target", batch.target


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    tensors = dict(named)
    if not tensors:
        return []
    # One wait for the device, not one a tensor: this runs before every save.
    finite = torch.stack([torch.isfinite(tensor.detach()).all() for tensor in tensors.values()]).tolist()
    return [name for name, good in zip(tensors, finite, strict=True) if not good]


def _plain(value: float | None) -> float | str | None:
    return value if value is None or isfinite(value) else str(float(value))
