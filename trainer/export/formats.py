"""The formats a model is exported in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.export.cases import Forward
from trainer.export.onnx import load_onnx, write_onnx
from trainer.export.subject import Subject
from trainer.export.torchscript import load_torchscript, write_torchscript

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
        exact: Whether its outputs are within `export.tolerance`; otherwise the task's metric alone judges it.
        timed: Whether it is a program of its own, whose time is worth knowing.
    """

    name: str
    path: str
    load: Load
    variants: tuple[Variant, ...]
    exact: bool = True
    timed: bool = True


_ALL = (
    Format("onnx", "model.onnx", load_onnx, (Variant("fp32", write_onnx),)),
    Format("torchscript", "model.torchscript.pt", load_torchscript, (Variant("fp32", write_torchscript),)),
)

FORMATS: dict[str, Format] = {each.name: each for each in _ALL}
"""Every format by name."""
