"""Images and labels in the IDX format of MNIST and its kin."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from trainer.data.images import png
from trainer.data.located import fingerprint_of, located
from trainer.data.rows import place, row_id
from trainer.data.splits import Division, Sample, key_for, read_splits, stored, write_splits
from trainer.errors import DataError, format_error, raise_if_any

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same files give other splits."""

_ROLES = {"image": "images", "label": "labels"}
_USUAL = {"train": "train", "test": "t10k"}
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The third byte of a file, and the type of its numbers."""


class Idx:
    """Columns `image` (grey, as a PNG), `label` (the number as a string) and `row`.

    What the training files lend to `validation` and `test` follows from the pixels alone, as in `data=files`. The
    splits are memory-mapped Arrow files in the cache of the library datasets, written once for each content.

    Args:
        folder: A folder with `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and perhaps the two of `t10k`,
            plain or .gz; None where the files are named.
        train: The files `images` and `labels` of the training split.
        validation: Those of the validation split; None twice to take a share of training.
        test: Those of the test split; None twice to take a share of training.
        split: Shares of `validation` and `test` in [0, 1), for those without files; 0 for no test split.
        cache_dir: Where the Arrow files lie; None for the cache of the library datasets.

    Raises:
        ConfigError: A parameter is out of its range.
    """

    def __init__(
        self,
        folder: str | None,
        train: Mapping[str, str | None],
        validation: Mapping[str, str | None],
        test: Mapping[str, str | None],
        split: Mapping[str, float],
        cache_dir: str | None,
    ) -> None:
        named = {"train": train, "validation": validation, "test": test}
        faults = []
        for name, files in named.items():
            if set(files) != {"images", "labels"}:
                faults.append(format_error(name, "must hold images and labels", value=dict(files)))
            elif len(given := [role for role, file in files.items() if file is not None]) == 1:
                other = "labels" if given == ["images"] else "images"
                faults.append(format_error(f"{name}.{other}", f"is needed beside data.{name}.{given[0]}", value=None))
        if folder is None and train.get("images") is None:
            faults.append(format_error("folder", "is needed, or data.train.images and data.train.labels", value=None))
        if folder is not None and any(file is not None for files in named.values() for file in files.values()):
            faults.append(format_error("folder", "must be null where files are named", value=folder))
        raise_if_any(*faults)
        self._folder = folder
        self._named = {name: files if files["images"] is not None else None for name, files in named.items()}
        self._split = split
        self._cache_dir = cache_dir
        Division.checked({"train": "", "validation": None, "test": None} if folder else self._named, split)

    @cached_property
    def fingerprint(self) -> str:
        """Of the files' contents; where they lie does not matter."""
        return fingerprint_of(
            self._paths, ("idx", _VERSION, self._division.shares), lambda path: str(path.suffix == ".gz")
        )

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """The splits, memory-mapped; reads the files unless the cache has them.

        Raises:
            DataError: A file cannot be used, or a split came out empty.
        """
        names = [role for role in _ROLES if role in roles]
        key = key_for(self.fingerprint, names)
        folder = stored(self._cache_dir, "trainer_idx", key, lambda new: self._write(new, names))
        return read_splits(folder, self._division, self.where)

    def where(self, split: str, row: int) -> str:
        """`train-images-idx3-ubyte, image 18`."""
        return f"{(self._paths.get(split) or self._paths['train'])[0]}, image {place(row)[1]}"

    def column(self, role: str) -> str:
        """`data.train.labels`."""
        return f"data.train.{_ROLES[role]}" if role in _ROLES else f"the column {role} of data=idx"

    @cached_property
    def _division(self) -> Division:
        own = {name: self._paths.get(name) for name in self._named}
        return Division.checked(own, self._split)

    @cached_property
    def _paths(self) -> dict[str, list[Path]]:
        """The images and the labels of each split that has its own."""
        if self._folder is not None:
            return _usual(Path(self._folder).expanduser())
        given = {
            name: None if files is None else [str(files["images"]), str(files["labels"])]
            for name, files in self._named.items()
        }
        return located(given, None)

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        from trainer.data.arrow import schema_of

        def nothing(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "holds no images", "Name another file"))

        origins = {origin: _samples(*paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._division, schema_of(names), origins, "images without a label", nothing)


def read_idx(path: Path, *, dims: int, types: Sequence[int]) -> np.ndarray:
    """The array in an IDX file, plain or .gz.

    Args:
        path: The file.
        dims: The number of dimensions that it must have.
        types: The types of numbers that it may have, by their byte.

    Raises:
        DataError: It is broken, or of another type or shape.
    """
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        problem = f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        raise DataError(
            format_error(str(path), problem, "Is it complete, and is .gz its name where it is packed?")
        ) from error
    head = 4 + 4 * dims
    kinds = [bytes((0, 0, kind, dims)).hex() for kind in types]
    if content[:4].hex() not in kinds:
        remedy = (
            "Unpack it, or let its name end in .gz" if content[:2] == b"\x1f\x8b" else "Are images and labels mixed up?"
        )
        problem = f"is no IDX file of {dims} dimension{'s' if dims > 1 else ''}: the magic number must be {kinds[0]}"
        raise DataError(format_error(str(path), problem, remedy, value=content[:4].hex()))
    damaged = "It is cut off or damaged; fetch it again"
    if len(content) < head:
        raise DataError(format_error(str(path), f"must have at least {head} bytes", damaged, value=len(content)))
    shape = tuple(np.frombuffer(content[4:head], dtype=">u4").tolist())
    dtype = np.dtype(_TYPES[content[2]])
    needed = head + prod(shape) * dtype.itemsize
    if len(content) != needed:
        problem = f"must have {needed} bytes for {' x '.join(map(str, shape))} numbers"
        raise DataError(format_error(str(path), problem, damaged, value=len(content)))
    return np.frombuffer(content, dtype=dtype, offset=head).reshape(shape)


def _samples(images_path: Path, labels_path: Path) -> Iterator[Sample]:
    images = read_idx(images_path, dims=3, types=[0x08])
    labels = read_idx(labels_path, dims=1, types=[0x08, 0x09, 0x0B, 0x0C])
    if len(images) != len(labels):
        problem = f"must have a label for each of the {len(images)} images of {images_path}"
        raise DataError(format_error(str(labels_path), problem, "Do the two belong together?", value=len(labels)))
    if images.size == 0 and len(images):
        raise DataError(format_error(str(images_path), "has images without pixels", value=images.shape))
    for number, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True), 1):
        # Of the pixels, since how a PNG packs them differs between versions of the packer.
        key = blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()
        yield Sample(row_id(0, number), {"image": png(pixels), "label": str(label)}, key)


def _usual(folder: Path) -> dict[str, list[Path]]:
    """The files with the usual names in a folder."""
    if not folder.is_dir():
        raise DataError(
            format_error("data.folder", "no such folder", f"Paths are relative to {Path.cwd()}", value=str(folder))
        )
    found: dict[str, list[Path]] = {}
    for split, prefix in _USUAL.items():
        names = [f"{prefix}-images{{}}idx3-ubyte{{}}", f"{prefix}-labels{{}}idx1-ubyte{{}}"]
        paths = [[folder / name.format(sign, end) for sign in "-." for end in ("", ".gz")] for name in names]
        present = [next((path for path in choices if path.is_file()), None) for choices in paths]
        missing = [choices[0].name for choices, path in zip(paths, present, strict=True) if path is None]
        if missing and (split == "train" or len(missing) == 1):
            problem = f"has no {' and no '.join(missing)}"
            remedy = "Plain or .gz; files of other names are named by data.train.images and data.train.labels"
            raise DataError(format_error(str(folder), problem, remedy))
        if not missing:
            found[split] = [path for path in present if path is not None]
    return found
