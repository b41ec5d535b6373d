"""The formats that a model can be exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from trainer.export.cases import Forward
from trainer.export.formats.fp16 import write_fp16
from trainer.export.formats.int8 import write_int8
from trainer.export.formats.onnx import load_onnx, write_onnx
from trainer.export.formats.onnx_cache import load_onnx_cache, write_onnx_cache
from trainer.export.formats.pt2 import load_pt2, write_pt2
from trainer.export.formats.torchscript import load_torchscript, write_torchscript
from trainer.export.formats.weights import load_pth, load_safetensors, write_pth, write_safetensors
from trainer.export.model import ExportModel
from trainer.layout import ONNX, ONNX_CACHE, Document

Write = Callable[[Path, ExportModel], Document]
"""Writes a format to a path and returns keys (JSON) for the manifest."""

Load = Callable[[Path, ExportModel], tuple[Forward, Document]]
"""Loads a written format as a function of the model's inputs and returns keys (JSON) for the manifest.

Raises ProofError if the inputs or dimensions that the file declares are not the task's.
"""


@dataclass(frozen=True)
class Variant:
    """One way of writing a format.

    Attributes:
        name: Name for the manifest and for messages.
        write: Writes the format.
    """

    name: str
    write: Write


@dataclass(frozen=True)
class Format:
    """Properties of a format that do not depend on the model.

    Attributes:
        name: Name in `export.formats`.
        path: File or folder in the export folder. Further files have its name and one more suffix.
        load: Loads the format.
        variants: Ways of writing it, tried in this order until one is proved.
        exact: True if outputs must be within `export.tolerance`. Otherwise the task's metric and `OutputAgreement`
            judge the format.
        bitwise: True if outputs must equal PyTorch's in every bit.
        timed: True if it is a program of its own, so that its latency matters.
        made_of: Name of the exact format that it is converted from; if that is refused, this format is not written.
    """

    name: str
    path: str
    load: Load
    variants: tuple[Variant, ...]
    exact: bool = True
    bitwise: bool = False
    timed: bool = True
    made_of: str | None = None


def _weight_formats(*, half: bool) -> tuple[Format, ...]:
    """Return the formats that contain only weights, in float32 or float16."""
    precision = "fp16" if half else "fp32"
    formats: tuple[tuple[str, str, Load, Write], ...] = (
        ("safetensors", "safetensors", load_safetensors, partial(write_safetensors, half=half)),
        ("pth", "model.pth", load_pth, partial(write_pth, half=half, legacy=False)),
        ("pth_legacy", "model.legacy.pth", load_pth, partial(write_pth, half=half, legacy=True)),
    )
    return tuple(
        Format(name, path, load, (Variant(precision, write),), exact=not half, bitwise=not half, timed=False)
        for name, path, load, write in formats
    )


_INT8: Final = (
    Variant("per tensor", partial(write_int8, per_channel=False)),
    Variant("per channel", partial(write_int8, per_channel=True)),
    Variant("per channel, 1 layer in fp32", partial(write_int8, per_channel=True, num_fp32_layers=1)),
    Variant("per channel, 2 layers in fp32", partial(write_int8, per_channel=True, num_fp32_layers=2)),
    Variant("per channel, 4 layers in fp32", partial(write_int8, per_channel=True, num_fp32_layers=4)),
)

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", ONNX, load_onnx, (Variant("fp32", write_onnx),)),
        Format("onnx_fp16", "model.fp16.onnx", load_onnx, (Variant("fp16", write_fp16),), exact=False, made_of="onnx"),
        Format("onnx_int8", "model.int8.onnx", load_onnx, _INT8, exact=False, made_of="onnx"),
        Format("onnx_cache", ONNX_CACHE, load_onnx_cache, (Variant("fp32", write_onnx_cache),), timed=False),
        Format("torchscript", "model.torchscript.pt", load_torchscript, (Variant("fp32", write_torchscript),)),
        Format("pt2", "model.pt2", load_pt2, (Variant("fp32", write_pt2),)),
        *_weight_formats(half=False),
    )
}
"""Every format by name."""

HALF_FORMATS: dict[str, Format] = {each.name: each for each in _weight_formats(half=True)}
"""The formats that `export.half` changes, in float16."""
