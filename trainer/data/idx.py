"""Images and labels in the IDX format of MNIST and similar data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from hashlib import blake2b
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from trainer.constraints import DataFile, DataFolder, Rule, validated
from trainer.data.cells import encode_png
from trainer.data.data_files import Paths, files_fingerprint, find_data_files
from trainer.data.line_reader import READ_ERRORS
from trainer.data.split_cache import cache_key, cached_splits
from trainer.data.split_layout import SPLIT_KEYS, Shares, SplitLayout
from trainer.data.splits import Sample, row_id, split_row_id, split_schema, write_splits
from trainer.display import counted
from trainer.errors import DataError, format_error, raise_if_any
from trainer.files.untrusted import open_unpacked
from trainer.layout import expand_home
from trainer.validation_sets import by_split, name_problems

if TYPE_CHECKING:
    from datasets import Dataset

_MAX_BYTES = 1 << 33
"""Largest content of a file."""

_VERSION = 1
"""Increase it if the same files give different splits."""

_KEYS = {"image": "images", "label": "labels"}
_PREFIXES = {"train": "train", "test": "t10k"}
_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""The type of the numbers, by the third byte of a file."""

_ImagesAndLabels: TypeAlias = Mapping[str, DataFile | None]
_Set: TypeAlias = Mapping[str, DataFile | Mapping[str, DataFile] | None]
"""The files `images` and `labels`, or of each set by its name next to these two."""

_RULES = (
    SPLIT_KEYS,
    Rule("sorted(train) == ['images', 'labels']", "train", "must have the keys images and labels"),
    Rule(
        "all(name in validation for name in ['images', 'labels'])", "validation", "must have the keys images and labels"
    ),
    Rule(
        "all(sorted(validation[name]) == ['images', 'labels']"
        " for name in validation if name not in ['images', 'labels'])",
        "validation",
        "must have the files images and labels of each set: {{clean: {{images: <file>, labels: <file>}}}}",
    ),
    Rule(
        "len(validation) == 2 or (validation['images'] is None and validation['labels'] is None)",
        "validation",
        "must name the files of each set, or of one set without a name",
    ),
    Rule("sorted(test) == ['images', 'labels']", "test", "must have the keys images and labels"),
    Rule("(train['images'] is None) == (train['labels'] is None)", "train", "must name both files or none"),
    Rule(
        "(validation['images'] is None) == (validation['labels'] is None)",
        "validation",
        "must name both files or none",
    ),
    Rule("(test['images'] is None) == (test['labels'] is None)", "test", "must name both files or none"),
    Rule(
        "folder is not None or train['images'] is not None or train['labels'] is not None",
        "folder",
        "is required, or data.train.images and data.train.labels",
    ),
    Rule(
        "folder is None or all(files['images'] is files['labels'] is None for files in [train, validation, test])",
        "folder",
        "must be null if files are named one by one",
    ),
    Rule(
        "(0 if validation['images'] or len(validation) > 2 else split['validation'])"
        " + (0 if test['images'] else split['test']) < 1",
        "split",
        "leaves no rows for training",
    ),
    Rule(
        "validation['images'] is not None or len(validation) > 2 or split['validation'] > 0",
        "split.validation",
        "a run needs a validation split",
        "Set a share above 0, or name files in data.validation",
    ),
)


class Idx:
    """Columns `image` (gray, as a PNG), `label` (the number as a string) and `row`.

    The images that are held out from training for `validation` and `test` are chosen by the pixels only, as in
    `data=files`. The splits are memory-mapped Arrow files in the cache of the datasets library, written once for each
    content.

    Args:
        folder: A folder with `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, and optionally the two files of
            `t10k`, plain or .gz; None if the files are named one by one.
        train: The files `images` and `labels` of the training split.
        validation: The two files of the validation split, or of several sets by name; two None hold out a share
            of training.
        test: The two files of the test split; two None hold out a share of training.
        split: Shares of `validation` and `test` in [0, 1), for splits without files; 0 for no test split.
        cache_dir: The folder of the Arrow files; None for the cache of the datasets library.
    """

    @validated(*_RULES)
    def __init__(
        self,
        folder: DataFolder | None,
        train: _ImagesAndLabels,
        validation: _Set,
        test: _ImagesAndLabels,
        split: Shares,
        cache_dir: str | None,
    ) -> None:
        raise_if_any(*name_problems(validation))
        named: Mapping[str, Any] = {"train": train, **by_split(validation), "test": test}
        self._folder = folder
        self._named = {
            name: [str(files["images"]), str(files["labels"])] if files["images"] is not None else None
            for name, files in named.items()
        }
        self._split = split
        self._cache_dir = cache_dir

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the contents of the files; their paths do not matter."""
        settings = ("idx", _VERSION, self._layout.shares)
        return files_fingerprint(self._paths, settings, lambda path: str(path.suffix == ".gz"))

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the memory-mapped splits; read the files unless the cache has the splits.

        Raises:
            DataError: A file cannot be used, or a split has no rows.
        """
        names = [role for role in _KEYS if role in roles]
        key = cache_key(self.fingerprint, names)
        write = partial(self._write, names=names)
        return cached_splits(self._cache_dir, "trainer_idx", key, write, self._layout, self.describe_row)

    def describe_row(self, split: str, row: int) -> str:
        """Return `train-images-idx3-ubyte, image 18`."""
        file, record = self.locate_row(split, row)
        return f"{file}, image {record}"

    def locate_row(self, split: str, row: int) -> tuple[str, int]:
        """Return the file of an image and its number in it."""
        return str((self._paths.get(split) or self._paths["train"])[0]), split_row_id(row)[1]

    def describe_role(self, role: str) -> str:
        """Return `data.train.labels`."""
        return f"data.train.{_KEYS[role]}" if role in _KEYS else f"the column {role} of data=idx"

    @cached_property
    def _layout(self) -> SplitLayout:
        return SplitLayout.from_arguments({name: self._paths.get(name) for name in self._named}, self._split)

    @cached_property
    def _paths(self) -> Paths:
        """The file of images and the file of labels of each split that has its own."""
        paths = find_data_files(self._named, None)
        if self._folder is not None:
            paths |= _find_standard_files(Path(expand_home(self._folder)))
        return {name: paths[name] for name in self._named if name in paths}

    def _write(self, folder: Path, names: Sequence[str]) -> None:
        def no_rows_error(origin: str) -> DataError:
            return DataError(format_error(str(self._paths[origin][0]), "contains no images", "Name another file"))

        origins = {origin: _samples(*paths) for origin, paths in self._paths.items()}
        write_splits(folder, self._layout, split_schema(names), origins, "images without a label", no_rows_error)


def read_idx(path: Path, *, num_dims: int, type_codes: Sequence[int]) -> np.ndarray:
    """Return the array in an IDX file, plain or .gz.

    Args:
        path: The file.
        num_dims: The required number of dimensions.
        type_codes: The allowed types of the numbers, by the third byte of the file.

    Raises:
        DataError: The file is broken, or has another type or number of dimensions.
    """
    try:
        with open_unpacked(path) as file:
            header = file.read(4 + 4 * num_dims)
            # No more than the file promises: a compressed one can unpack to any size.
            size = prod(int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4))
            content = header + file.read(min(8 * size + 1, _MAX_BYTES))
    except READ_ERRORS as error:
        problem = f"cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        remedy = "Check that the file is complete and that only a compressed file ends in .gz"
        raise DataError(format_error(str(path), problem, remedy)) from error
    header_size = 4 + 4 * num_dims
    magic_numbers = [bytes((0, 0, code, num_dims)).hex() for code in type_codes]
    if content[:4].hex() not in magic_numbers:
        compressed = content[:2] == b"\x1f\x8b"
        remedy = "Decompress it, or let its name end in .gz" if compressed else "Are images and labels mixed up?"
        dimensions = counted(num_dims, "dimension")
        problem = f"is not an IDX file with {dimensions}: the magic number must be {magic_numbers[0]}"
        raise DataError(format_error(str(path), problem, remedy, value=content[:4].hex()))
    damaged = "The file is truncated or damaged; download it again"
    if len(content) < header_size:
        problem = f"must have at least {header_size} bytes"
        raise DataError(format_error(str(path), problem, damaged, value=len(content)))
    shape = tuple(np.frombuffer(content[4:header_size], dtype=">u4").tolist())
    dtype = np.dtype(_DTYPES[content[2]])
    size = header_size + prod(shape) * dtype.itemsize
    if len(content) != size:
        problem = f"must have {size} bytes for {' x '.join(map(str, shape))} numbers"
        raise DataError(format_error(str(path), problem, damaged, value=len(content)))
    return np.frombuffer(content, dtype=dtype, offset=header_size).reshape(shape)


def _samples(images_path: Path, labels_path: Path) -> Iterator[Sample]:
    images = read_idx(images_path, num_dims=3, type_codes=[0x08])
    labels = read_idx(labels_path, num_dims=1, type_codes=[0x08, 0x09, 0x0B, 0x0C])
    if len(images) != len(labels):
        problem = f"must have a label for each of the {len(images)} images of {images_path}"
        raise DataError(format_error(str(labels_path), problem, "Do the two files match?", value=len(labels)))
    if images.size == 0 and len(images):
        raise DataError(format_error(str(images_path), "has images without pixels", value=images.shape))
    for number, (pixels, label) in enumerate(zip(images, labels.tolist(), strict=True), 1):
        # A digest of the pixels, because the bytes of a PNG depend on the version of the compressor.
        key = blake2b(repr(pixels.shape).encode() + pixels.tobytes(), digest_size=16).hexdigest()
        yield Sample(row_id(0, number), {"image": encode_png(pixels), "label": str(label)}, key)


def _find_standard_files(folder: Path) -> Paths:
    """Return the files with the standard names in a folder."""
    if not folder.is_dir():
        remedy = f"Paths are relative to {Path.cwd()}"
        raise DataError(format_error("data.folder", "no such folder", remedy, value=str(folder)))
    files: Paths = {}
    for split, prefix in _PREFIXES.items():
        names = [f"{prefix}-images{{}}idx3-ubyte{{}}", f"{prefix}-labels{{}}idx1-ubyte{{}}"]
        candidates = [[folder / name.format(sign, end) for sign in "-." for end in ("", ".gz")] for name in names]
        present = [next((path for path in paths if path.is_file()), None) for paths in candidates]
        missing = [paths[0].name for paths, path in zip(candidates, present, strict=True) if path is None]
        if missing and (split == "train" or len(missing) == 1):
            problem = f"has no {' and no '.join(missing)}"
            remedy = "Files may be plain or .gz; name other files in data.train.images and data.train.labels"
            raise DataError(format_error(str(folder), problem, remedy))
        if not missing:
            files[split] = [path for path in present if path is not None]
    return files
