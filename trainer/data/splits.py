"""How samples come to their splits: by files of their own or by a share of training, kept as Arrow files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.data.cells import CLASSES, key_of
from trainer.data.rows import split_of
from trainer.errors import ConfigError, DataError, format_error

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset

_LOG = logging.getLogger(__name__)


class Sample(NamedTuple):
    """A row on its way to a split.

    Attributes:
        row: Where it came from.
        values: A value for each role; None where it lacks one, and is left out.
        key: What its split follows from; None for its inputs.
    """

    row: int
    values: Mapping[str, Any] | None
    key: str | None = None


class LeftOut(NamedTuple):
    """Rows that are in no split: where they were, why, how many, and the `row` of the first."""

    origin: str
    why: str
    num_rows: int
    row: int


@dataclass(frozen=True)
class Division:
    """Which splits there are, and what training lends them.

    Attributes:
        given: What the user named for `train`, `validation` and `test`; None where it is a share of training.
        shares: The shares of those without anything of their own, in [0, 1).
    """

    given: Mapping[str, Any]
    shares: Mapping[str, float]

    @classmethod
    def checked(cls, given: Mapping[str, Any], split: Mapping[str, float]) -> Division:
        """From the parameters of a source.

        Raises:
            ConfigError: The shares are out of range, or leave a split without rows.
        """
        shares = {name: float(share) for name, share in split.items() if given.get(name) is None}
        if set(split) != {"validation", "test"}:
            raise ConfigError(format_error("split", "must hold validation and test", value=dict(split)))
        for name, share in split.items():
            if not 0 <= share < 1:
                raise ConfigError(format_error(f"split.{name}", "must be a share in [0, 1)", value=share))
        if sum(shares.values()) >= 1:
            raise ConfigError(format_error("split", "leaves nothing to train on", value=dict(split)))
        if shares.get("validation") == 0:
            remedy = "Give a share, or name files in data.validation"
            raise ConfigError(format_error("split.validation", "a run needs a validation split", remedy, value=0))
        return cls(given, shares)

    def alone(self, split: str) -> Division | None:
        """A split without the others; None where it takes rows of another one, or lends some."""
        if self.given.get(split) is None or (split == "train" and self.lent):
            return None
        return Division({split: self.given[split]}, {})

    @property
    def names(self) -> list[str]:
        """The splits there are: those of their own, and those with a share."""
        return [name for name in self.given if self.given[name] is not None or self.shares[name] > 0]

    @property
    def lent(self) -> list[str]:
        """The splits that take rows of training."""
        return [name for name, share in self.shares.items() if share > 0]


def stored(cache_dir: str | None, kind: str, key: str, write: Callable[[Path], None]) -> Path:
    """The folder `kind/key` of the cache; `write` fills it where it is not there yet.

    Raises:
        DataError: The folder cannot be written.
    """
    import datasets

    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / kind
    folder = cache / key
    if not folder.is_dir():
        try:
            _fill(cache, folder, write)
        except OSError as error:
            problem = f"cannot hold the splits: {error.strerror or error}"
            raise DataError(format_error("data.cache_dir", problem, "Name another folder", value=str(cache))) from error
    return folder


def _fill(cache: Path, folder: Path, write: Callable[[Path], None]) -> None:
    """Makes `folder` in `cache`: it appears complete or not at all."""
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".tmp-", dir=cache) as temporary:
        splits = Path(temporary, "splits")
        splits.mkdir()
        write(splits)
        try:
            splits.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster, with the same splits
                raise


def key_for(fingerprint: str, roles: Iterable[str], *more: str) -> str:
    """The name of a folder of the cache: the same data in other roles is another one."""
    parts = blake2b(repr((tuple(roles), more)).encode(), digest_size=6).hexdigest()
    return f"{fingerprint}-{parts}"


def write_splits(
    folder: Path,
    division: Division,
    schema: pyarrow.Schema,
    origins: Mapping[str, Iterable[Sample]],
    why: str,
    nothing: Callable[[str], DataError],
) -> None:
    """One pass over all samples: `<split>.arrow`, and `dropped.json` with what was left out of which files.

    Args:
        folder: Where they are written.
        division: The splits.
        schema: The columns; `row` is the last.
        origins: The samples of each split that has its own.
        why: What those are that are left out: `rows without a text or a label`.
        nothing: The error for an origin all of whose samples are left out.

    Raises:
        DataError: A split came out empty, or what the samples raise.
    """
    from trainer.data.arrow import ArrowSplit, classes_of

    roles = schema.names[:-1]
    classes: dict[str, set[str]] = {role: set() for role in CLASSES if role in roles}
    told = []
    kept = dict.fromkeys(origins, 0)
    with ExitStack() as stack:
        writers = {name: stack.enter_context(ArrowSplit(folder / f"{name}.arrow", schema)) for name in division.names}
        for origin, samples in origins.items():
            shares = division.shares if origin == "train" else {}
            count, first = 0, -1
            for row, values, key in samples:
                if values is None:
                    count, first = count + 1, row if first < 0 else first
                    continue
                kept[origin] += 1
                split = split_of(key_of(values) or str(row) if key is None else key, shares) if shares else origin
                writers[split].add(*(values[role] for role in roles), row)
                if split == "train":
                    for role, seen in classes.items():
                        seen.update(classes_of(values[role]))
            if not kept[origin]:
                raise nothing(origin)
            told += [LeftOut(origin, why, count, first)] if count else []
    for name, writer in writers.items():
        if not writer.num_rows:
            problem = f"of {kept['train']} rows of data.train none came into this split"
            raise DataError(format_error(f"data.{name}", problem, _more(name)))
    for name in division.lent:
        found = list(_without_unlearnt(folder, name, classes))
        if sum(item.num_rows for item in found) == writers[name].num_rows:
            raise DataError(format_error(f"data.{name}", f"holds only {found[0].why}", _more(name)))
        told += found
    (folder / "dropped.json").write_text(json.dumps(told))


def _more(split: str) -> str:
    """What to do about a split that took too little of training."""
    own = "" if split == "train" else f", or name files in data.{split}"
    return f"Take more rows or other shares in data.split{own}"


def _without_unlearnt(folder: Path, split: str, classes: Mapping[str, set[str]]) -> Iterator[LeftOut]:
    """Takes out of a split that training lent rows to those with a class that stayed in no training row.

    A rare class may fall into it altogether. That is the split's doing, not a fault of the user's file.
    """
    from trainer.data.arrow import keep_classes

    for role, learnt in classes.items():
        count, row = keep_classes(folder / f"{split}.arrow", role, learnt)
        if count:
            noun = "tag" if role == "tags" else "label"
            yield LeftOut(split, f"rows with a {noun} that fell to no training row", count, row)


def divided(schema: pyarrow.Schema, samples: Iterable[Sample], shares: Mapping[str, float]) -> dict[str, Dataset]:
    """Samples to splits in memory, `train` and those of `shares`; for data that is small and always the same.

    Args:
        schema: The columns; `row` is the last.
        samples: None of them is without values.
        shares: The share of each split but `train`.
    """
    from datasets import Dataset, Features

    splits: dict[str, list[Sample]] = {split: [] for split in ("train", *shares)}
    for sample in samples:
        assert sample.values is not None
        splits[split_of(key_of(sample.values) if sample.key is None else sample.key, shares)].append(sample)
    features = Features.from_arrow_schema(schema)
    found = {}
    for split, mine in splits.items():
        columns: dict[str, list[Any]] = {
            name: [sample.values[name] for sample in mine if sample.values is not None] for name in schema.names[:-1]
        }
        found[split] = Dataset.from_dict({**columns, "row": [sample.row for sample in mine]}, features=features)
    return found


def read_splits(folder: Path, division: Division, where: Callable[[str, int], str]) -> dict[str, Dataset]:
    """The splits of a folder that `write_splits` filled, memory-mapped; warns of what was left out of them."""
    import datasets

    for name, why, count, row in json.loads((folder / "dropped.json").read_text()):
        _LOG.warning("data.%s: %s are left out: %d, the first is %s", name, why, count, where(name, row))
    return {name: datasets.Dataset.from_file(str(folder / f"{name}.arrow")) for name in division.names}
