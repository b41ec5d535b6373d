"""The formats a model is exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from trainer.export.cached_decoder import load_cached_decoder, write_cached_decoder
from trainer.export.cases import Forward
from trainer.export.float_graph import write_float
from trainer.export.half import write_half
from trainer.export.int8 import write_int8
from trainer.export.onnx import load_onnx
from trainer.export.pt2 import load_pt2, write_pt2
from trainer.export.subject import Subject
from trainer.export.torchscript import load_torchscript, write_torchscript
from trainer.export.weights import load_pth, load_safetensors, write_pth, write_safetensors
from trainer.layout import ONNX_CACHE

Write = Callable[[Path, Subject], dict[str, Any]]
"""Writes a format to a path; what the manifest is to say of it (JSON)."""

Load = Callable[[Path, Subject], tuple[Forward, dict[str, Any]]]
"""A written format as a function of the model's inputs, loaded afresh, and what the manifest is to say of it (JSON).

Raises ProofError where what the file declares (its inputs, their dimensions) is not what the task says.
"""


@dataclass(frozen=True)
class Variant:
    """One way of writing a format.

    Attributes:
        name: Of the way, for the manifest and messages.
        write: The way.
    """

    name: str
    write: Write


@dataclass(frozen=True)
class Format:
    """What is known of a format before there is a model.

    Attributes:
        name: In `export.formats`.
        path: Its file, or its folder, in `export/`. Files it needs beside it have its name and one more suffix.
        load: How it is run.
        variants: Ways to write it, tried in this order until one is proved.
        exact: Whether its outputs are within `export.tolerance`; otherwise the task's metric judges it, and `Likeness`.
        bitwise: Whether its outputs are PyTorch's in every bit.
        timed: Whether it is a program of its own, whose time is worth knowing.
        made_of: The exact format that it is made of: where that is not proved, this is not written.
    """

    name: str
    path: str
    load: Load
    variants: tuple[Variant, ...]
    exact: bool = True
    bitwise: bool = False
    timed: bool = True
    made_of: str | None = None


def _weights(*, half: bool) -> tuple[Format, ...]:
    """The formats that hold weights alone, in float32 or float16."""
    precision = "fp16" if half else "fp32"
    ways: tuple[tuple[str, str, Load, Write], ...] = (
        ("safetensors", "safetensors", load_safetensors, partial(write_safetensors, half=half)),
        ("pth", "model.pth", load_pth, partial(write_pth, half=half, legacy=False)),
        ("pth_legacy", "model.legacy.pth", load_pth, partial(write_pth, half=half, legacy=True)),
    )
    return tuple(
        Format(name, path, load, (Variant(precision, write),), exact=not half, bitwise=not half, timed=False)
        for name, path, load, write in ways
    )


_INT8 = (
    Variant("per tensor", partial(write_int8, per_channel=False)),
    Variant("per channel", partial(write_int8, per_channel=True)),
    Variant("per channel, 1 layer in fp32", partial(write_int8, per_channel=True, spared=1)),
    Variant("per channel, 2 layers in fp32", partial(write_int8, per_channel=True, spared=2)),
    Variant("per channel, 4 layers in fp32", partial(write_int8, per_channel=True, spared=4)),
)

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("onnx", "model.onnx", load_onnx, (Variant("fp32", write_float),)),
        Format("onnx_fp16", "model.fp16.onnx", load_onnx, (Variant("fp16", write_half),), exact=False, made_of="onnx"),
        Format("onnx_int8", "model.int8.onnx", load_onnx, _INT8, exact=False, made_of="onnx"),
        Format("onnx_cache", ONNX_CACHE, load_cached_decoder, (Variant("fp32", write_cached_decoder),), timed=False),
        Format("torchscript", "model.torchscript.pt", load_torchscript, (Variant("fp32", write_torchscript),)),
        Format("pt2", "model.pt2", load_pt2, (Variant("fp32", write_pt2),)),
        *_weights(half=False),
    )
}
"""Every format by name."""

HALF: dict[str, Format] = {each.name: each for each in _weights(half=True)}
"""The formats that `export.half` changes, as it makes them."""
