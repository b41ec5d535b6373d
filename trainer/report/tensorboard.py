"""TensorBoard: scalars, distributions, confusions, samples, and hyper-parameters with the final scores of a run."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from trainer.display import displayable, join_items
from trainer.documents import flatten
from trainer.files.storage_errors import naming_errors
from trainer.layout import Document
from trainer.report.events import name_scalars
from trainer.report.statistics import Confusion

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.tensorboard import SummaryWriter

_MAX_TEXT: Final = 300
"""Characters of a cell of a table."""

_MAX_NAMED: Final = 25
"""Confusions of up to this number of classes have names and counts."""

MAX_DRAWN: Final = 1_000
"""Confusions of more classes are not drawn."""


class TensorBoard:
    """Writes the numbers of training and evaluation events as scalars over the step, and what else it is given.

    Tags are `train/loss`, `validation/accuracy` (an evaluation under its split) and `validation-ema/accuracy` (an
    evaluation of the averaged weights). A `resume` event at step N cancels what earlier processes wrote after step N,
    so the curves show one run.

    Args:
        folder: The folder of the event files, created at the first event.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._excepthook = threading.excepthook

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        with naming_errors(self._folder):
            if self._writer is None and event not in ("train", "eval", "resume"):
                return  # nothing to draw yet: the library takes 0.35 s to load
            writer = self._writer or self._open(step + 1 if event == "resume" else None)
            position = {"epoch": epoch} if event == "train" else {}
            for tag, value in name_scalars(event, {**values, **position}).items():
                writer.add_scalar(tag, value, step)
            # The curves up to a checkpoint are on disk no later than the checkpoint's own event.
            if event == "checkpoint":
                writer.flush()

    def add_histogram(self, tag: str, values: Tensor, step: int) -> None:
        """Write the distribution of the finite values of a tensor."""
        finite = values.detach().float()
        finite = finite[finite.isfinite()]
        if len(finite):
            with naming_errors(self._folder):
                (self._writer or self._open()).add_histogram(tag, finite.cpu(), step)

    def add_image(self, tag: str, image: np.ndarray, step: int) -> None:
        """Write an image, uint8 (H, W, 3)."""
        with naming_errors(self._folder):
            (self._writer or self._open()).add_image(tag, image, step, dataformats="HWC")

    def add_table(self, tag: str, columns: Sequence[str], rows: Iterable[Sequence[object]], step: int) -> None:
        """Write a table of texts."""
        lines = [[_cell(cell) for cell in line] for line in (columns, *rows)]
        lines.insert(1, ["---"] * len(columns))
        text = "\n".join(" | ".join(["", *line, ""]).strip() for line in lines)
        with naming_errors(self._folder):
            (self._writer or self._open()).add_text(tag, text, step)

    def add_result(self, config: Document, scores: Mapping[str, float]) -> None:
        """Write the hyper-parameters of a run, its config without secrets, with its final scores."""
        from torch.utils.tensorboard.summary import hparams

        metrics = {f"final/{name}": value for name, value in scores.items()}
        parameters = {name: value for name, value in flatten(config) if isinstance(value, str | int | float)}
        with naming_errors(self._folder):
            writer = self._writer or self._open()
            # `SummaryWriter.add_hparams` would write into a folder of its own, as another run.
            for summary in hparams(parameters, metrics):  # type: ignore[no-untyped-call]
                writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
            for tag, value in metrics.items():
                writer.add_scalar(tag, value)

    def close(self) -> None:
        """Write pending values and close the file; a second call does nothing."""
        if self._writer is not None:
            with naming_errors(self._folder):
                try:
                    self._writer.flush()  # reports a failed write, which close does not
                finally:
                    self._writer.close()
                    threading.excepthook = self._excepthook

    def _open(self, purge_step: int | None = None) -> SummaryWriter:
        # The import takes 0.35 s on top of torch, so only runs that log to TensorBoard do it.
        from torch.utils.tensorboard import SummaryWriter

        # The library's thread passes its error on to `flush`, so Python need not print a traceback of the thread.
        threading.excepthook = self._print_errors_of_others
        self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
        return self._writer

    def _print_errors_of_others(self, arguments: threading.ExceptHookArgs) -> None:
        if type(arguments.thread).__module__.partition(".")[0] != "tensorboard":
            self._excepthook(arguments)


def _cell(value: object) -> str:
    text = join_items(value)
    text = displayable(text[:_MAX_TEXT] + ("..." if len(text) > _MAX_TEXT else ""), keep_lines=False)
    # TensorBoard renders Markdown.
    return "".join(f"\\{char}" if char in "\\`*_{}[]<>()#+-!|" else char for char in text)


def draw_confusion(confusion: Confusion) -> np.ndarray:
    """Return the confusion matrix as an image, uint8 (H, W, 3): targets down, predictions across.

    The darker a cell, the larger its share of the targets of its row.
    """
    from PIL import Image, ImageDraw, ImageFont

    counts = np.array(confusion.matrix(), dtype=np.float64).reshape(len(confusion.names), -1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    is_named = len(counts) <= _MAX_NAMED
    cell = 44 if is_named else max(1, 900 // len(counts))
    light, dark = np.array([247.0, 251.0, 255.0]), np.array([8.0, 48.0, 107.0])
    colors = (light + shares[..., None] * (dark - light)).round().astype(np.uint8)
    cells = Image.fromarray(colors.repeat(cell, axis=0).repeat(cell, axis=1))
    if not is_named:
        return np.asarray(cells)
    font = ImageFont.load_default(13)
    names = [displayable(name, keep_lines=False) for name in confusion.names]
    names = [name if len(name) <= 20 else f"{name[:19]}..." for name in names]
    margin = int(max(font.getlength(name) for name in names)) + 12
    image = Image.new("RGB", (margin + cells.width, margin + cells.height), "white")
    image.paste(cells, (margin, margin))
    draw = ImageDraw.Draw(image)
    across = Image.new("RGB", (margin, cells.width), "white")
    for number, name in enumerate(names):
        middle = number * cell + cell // 2
        draw.text((margin - 6, margin + middle), name, "black", font, anchor="rm")
        ImageDraw.Draw(across).text((6, cells.width - middle), name, "black", font, anchor="lm")
        for other, count in enumerate(counts[number]):
            color = "white" if shares[number, other] > 0.5 else "black"
            place = (margin + other * cell + cell // 2, margin + middle)
            if count:
                draw.text(place, f"{count:.0f}", color, font, anchor="mm")
    image.paste(across.transpose(Image.Transpose.ROTATE_90), (margin, 0))
    return np.asarray(image)
