"""Check the folders that the datasets library reads: their documents could name any file of the machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

import yaml

from trainer.data.line_reader import first_line_of
from trainer.errors import DataError, format_error
from trainer.shapes import DocumentError, parse_json, read_bytes

_SAVED: Final = ("dataset_dict.json", "state.json")
"""Documents of `save_to_disk`."""

_MAX_VALUES = 1_000_000
"""Values of a document; the page of a large data set has some ten thousand."""


def raise_if_outside(folder: Path) -> None:
    """Check that the documents that the datasets library reads in a folder name only files in it.

    The library would open any file and any URL that they name, and the fingerprint of the folder would not cover it.

    Raises:
        DataError: A document names something else, or cannot be read.
    """
    places: dict[Path, Callable[[bytes], Iterator[str]]]
    if is_saved(folder):
        places = {path: _named_by_save for name in _SAVED for path in folder.rglob(name)}
    else:
        places = {folder / "README.md": _named_in_head, folder / ".huggingface.yaml": _named_in_yaml}
    for path, names_in in places.items():
        try:
            names = list(names_in(read_bytes(path))) if path.is_file() else []
        except (ValueError, OSError, yaml.YAMLError, RecursionError) as error:
            remedy = "Mend it, or name the files with data=files"
            raise DataError(format_error(str(path), f"cannot be read ({first_line_of(error)})", remedy)) from error
        for name in names:
            place = PurePosixPath(name)
            if "://" in name or "::" in name or place.is_absolute() or ".." in place.parts or name.startswith("~"):
                remedy = "Copy the files into the folder, and name them there"
                raise DataError(format_error(str(path), "names data outside of its folder", remedy, value=name))


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`; other documents than its own are not read then."""
    return any((folder / name).is_file() for name in _SAVED)


def _named_in_head(page: bytes) -> Iterator[str]:
    """Yield the files and folders that the head of a page about a data set names."""
    # The library's own pattern: a head that only the library finds would not be checked.
    from huggingface_hub.repocard import REGEX_YAML_BLOCK

    if head := REGEX_YAML_BLOCK.search(page.decode("utf-8-sig")):
        yield from _named_in_yaml(head.group(2))


def _named_in_yaml(text: str | bytes) -> Iterator[str]:
    """Yield the files and folders that the configurations of a data set name."""
    document = yaml.safe_load(text)
    for _ in _texts(document):  # only counts the values: the library prints them, however often aliases repeat them
        pass
    configs = document.get("configs") if isinstance(document, dict) else None
    for config in configs if isinstance(configs, list) else []:
        if isinstance(config, dict):
            yield from _texts([config.get("data_files"), config.get("data_dir")])


def _named_by_save(text: bytes) -> Iterator[str]:
    """Yield the files and folders that a document of `save_to_disk` names.

    Raises:
        DocumentError: A file has another suffix than `.arrow`: its contents would not be checked.
    """
    document = parse_json(text, {})
    for name in _texts(document.get("_data_files")):
        if not name.endswith(".arrow"):
            raise DocumentError(f"names {name!r}, which is no .arrow file")
        yield name
    yield from _texts(document.get("splits"))


def _texts(value: object) -> Iterator[str]:
    """Yield the texts in a value of YAML or JSON.

    Raises:
        DocumentError: It has too many values, which aliases of YAML multiply.
    """
    waiting, num_values = [value], 0
    while waiting:
        each = waiting.pop()
        if isinstance(each, str):
            yield each
        elif isinstance(each, dict | list):
            num_values += len(each)
            if num_values > _MAX_VALUES:
                raise DocumentError(f"has more than {_MAX_VALUES} values")
            waiting.extend(each.values() if isinstance(each, dict) else each)
