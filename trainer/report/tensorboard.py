"""Scalars for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes the numbers of training and of evaluations as scalars over the step.

    Tags are `train/loss`, `validation/accuracy` (an evaluation goes under its split) and `validation-ema/accuracy`
    (of the averaged weights). A `resume` event at step N takes back what earlier processes wrote after step N, so
    the curves show one run.

    Args:
        folder: Where event files go; made at the first event.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        writer = self._writer or self._open(step + 1 if event == "resume" else None)
        if event == "train":
            _add(writer, "train", {**values, "epoch": epoch}, step)
        if event == "eval":
            _add(writer, _section(values), values, step)
        # What a checkpoint can be resumed from is on disk no later than the checkpoint's own line.
        if event == "checkpoint":
            writer.flush()

    def close(self) -> None:
        """Writes what is pending and closes the file; a second call does nothing."""
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> SummaryWriter:
        # 0.35 s on top of torch: only a run that wants it pays.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        return self._writer


def _add(writer: SummaryWriter, section: str, values: Mapping[str, Any], step: int) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            writer.add_scalar(f"{section}/{name}", value, step)


def _section(values: Mapping[str, Any]) -> str:
    return f"{values['split']}-ema" if values["weights"] == "ema" else str(values["split"])
