"""The files of a checkpoint that several devices write: each stores the rows that it has. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

SUFFIX: Final = ".safetensors"
FROZEN: Final = "frozen"
"""The name of the tensors that a run cannot change: the model's, and the averaged model's if they are equal."""
FROZEN_FILE: Final = FROZEN + SUFFIX
MERGED: Final = ("model", "ema")
"""The names of the tensors that the frozen ones complete."""
_SHARD_FILE: Final = re.compile(r"(.+)-(\d{5})-of-(\d{5})" + re.escape(SUFFIX))


class Rows(NamedTuple):
    """The part of a tensor that a file contains.

    Attributes:
        start: The position of its first row in the complete tensor.
        shape: The shape of the complete tensor.
    """

    start: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Shard:
    """One of the parts of a snapshot, each in the memory of another device.

    Attributes:
        index: The number of the part, from 0.
        count: The number of parts.
        rows: For each file name without suffix, the rows of its tensors that are not complete.
    """

    index: int
    count: int
    rows: Mapping[str, Mapping[str, Rows]] = field(default_factory=dict)

    def file_name(self, name: str) -> str:
        """Return the name of this part of the file `<name>.safetensors`."""
        return f"{name}-{self.index + 1:05d}-of-{self.count:05d}{SUFFIX}"


def tensors_name(file: str) -> str | None:
    """Return the name of the tensors that a file contains, all or some rows of them; None if it contains no tensors."""
    if match := _SHARD_FILE.fullmatch(file):
        return match[1]
    return file.removesuffix(SUFFIX) if file.endswith(SUFFIX) else None


def is_shard_file(file: str) -> bool:
    """Return whether a file contains only some rows of its tensors."""
    return _SHARD_FILE.fullmatch(file) is not None
