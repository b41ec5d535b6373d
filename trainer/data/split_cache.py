"""The cache of splits: each source writes its splits once for each content, as memory-mapped Arrow files."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainer.data.splits import SplitLayout, read_splits
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset


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
    parts = blake2b(repr((tuple(roles), more)).encode(), digest_size=6).hexdigest()
    return f"{fingerprint}-{parts}"


def cached_folder(cache_dir: str | None, source: str, key: str, write: Callable[[Path], None]) -> Path:
    """Return the folder `source/key` of the cache; call `write` to fill it if it does not exist.

    Raises:
        DataError: The folder cannot be written.
    """
    import datasets

    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / source
    folder = cache / key
    if not folder.is_dir():
        try:
            _fill(cache, folder, write)
        except OSError as error:
            problem = f"cannot store the splits: {error.strerror or error}"
            raise DataError(format_error("data.cache_dir", problem, "Name another folder", value=str(cache))) from error
    return folder


def _fill(cache: Path, folder: Path, write: Callable[[Path], None]) -> None:
    """Make `folder` in `cache` atomically: it appears complete or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".tmp-", dir=cache) as temporary:
        splits = Path(temporary, "splits")
        splits.mkdir()
        write(splits)
        try:
            splits.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process finished first, with the same splits
                raise
