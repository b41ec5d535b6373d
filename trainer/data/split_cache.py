"""The cache of splits: each source writes its splits once for each content, as memory-mapped Arrow files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from trainer import __version__
from trainer.data.split_layout import SplitLayout
from trainer.data.splits import read_splits
from trainer.errors import DataError, format_error
from trainer.files.atomic_io import digest_file, discard, replaced_folder
from trainer.layout import Document
from trainer.shapes import DocumentError, check_seal, parse_json, read_bytes, to_sealed_json

if TYPE_CHECKING:
    from datasets import Dataset

INDEX = "index.json"
"""Checksums of a cache folder's files."""

_VERSION = 3
"""Increase it if the same data gives other files. Each version of the program also writes its own warnings. A
fingerprint, which old runs carry, must not depend on either."""

_LOG = logging.getLogger(__name__)


def cached_splits(
    cache_dir: str | None,
    name: str,
    key: str,
    write: Callable[[Path], None],
    layout: SplitLayout,
    describe_row: Callable[[str, int], str],
) -> dict[str, Dataset]:
    """Return the memory-mapped splits of a source from the cache; call `write` to fill its folder if needed.

    Args:
        cache_dir: The cache; None for the cache of the datasets library.
        name: The folder of the source in the cache.
        key: The folder of the splits in it, see `cache_key`.
        write: Writes the splits into a folder with `write_splits`.
        layout: The splits.
        describe_row: Returns the origin of a row of a split, for the warning about dropped rows.

    Raises:
        DataError: The folder cannot be written, or an error of `write`.
    """
    return read_splits(cached_folder(cache_dir, name, key, write), layout, describe_row)


def cache_key(fingerprint: str, roles: Iterable[str], *more: str) -> str:
    """Return the name of a cache folder: the same data with other roles has its own folder."""
    parts = blake2b(repr((_VERSION, __version__, tuple(roles), more)).encode(), digest_size=6).hexdigest()
    return f"{fingerprint}-{parts}"


def cached_folder(cache_dir: str | None, source: str, key: str, write: Callable[[Path], None]) -> Path:
    """Return the folder `source/key` of the cache; call `write` to fill it if it does not exist.

    Raises:
        DataError: The folder cannot be written.
    """
    import datasets

    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / source
    folder = cache / key
    if read_index(folder) is None:
        with replaced_folder(folder, _storage_error, is_cache=True) as stage:
            write(stage)
            write_index(stage)
        if read_index(folder) is None:
            raise DataError(format_error("data.cache_dir", "cannot be used", "Name another folder", value=str(folder)))
    return folder


def _storage_error(message: str) -> DataError:
    return DataError(f"{message} Or name another folder in data.cache_dir.")


def write_index(folder: Path, **fields: object) -> None:
    """Write `index.json`: the fields, and size and checksum of every file of a cache folder."""
    digests = {path.name: list(digest_file(path)) for path in sorted(folder.iterdir())}
    (folder / INDEX).write_text(to_sealed_json({**fields, "files": digests}, ensure_ascii=False), encoding="utf-8")


def read_index(folder: Path) -> Document | None:
    """Return the fields in the `index.json` of a cache folder whose files are all intact.

    Returns:
        None if the folder does not exist. None also if a file is damaged, or if an earlier version wrote the folder
        without checksums; then the folder is deleted at once: later, another process may have put an intact one there.
    """
    if not folder.exists():
        return None
    try:
        index: Document = parse_json(read_bytes(folder / INDEX), {"files": {str: [int, int]}})
        check_seal(index)
        for name, digest in index["files"].items():
            if list(digest_file(folder / name)) != digest:
                raise DocumentError(f"{name} does not match its checksum")
        return index
    except (OSError, DocumentError) as error:
        _LOG.warning("cache: %s is damaged or from an earlier version (%s); writing it again", folder, error)
    discard(folder)
    return None
