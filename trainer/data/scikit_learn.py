"""Data sets that are part of scikit-learn: tables of numbers, without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainer.data.cells import split_key
from trainer.data.splits import Sample, row_id, split_in_memory, split_row_id, split_schema
from trainer.errors import ConfigError, format_error, install
from trainer.protocols import Row

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""Increase it if the same tables give different splits."""

_SHARES = {"validation": 0.1, "test": 0.1}

Rows = Iterator[Row]
"""The value of each role, `features` among them, row by row."""


class ScikitLearnSource:
    """A data set of scikit-learn, in splits of 80%, 10% and 10% that depend on the features only.

    Args:
        name: The name of the data set, also in `data=`.
        read_rows: Returns all rows in order.

    Raises:
        ConfigError: scikit-learn is not installed.
    """

    def __init__(self, name: str, read_rows: Callable[[], Rows]) -> None:
        if find_spec("sklearn") is None:
            problem = "this data is part of the package scikit-learn, which is not installed"
            raise ConfigError(format_error("_target_", problem, install("examples")))
        self._name = name
        self._read_rows = read_rows

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all values, except encoded images, which follow from the features."""
        digest = blake2b(repr((self._name, _VERSION)).encode(), digest_size=16)
        for values in self._read_rows():
            digest.update(repr([(role, value) for role, value in values.items() if role != "image"]).encode())
        return digest.hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits in memory; they do not depend on the requested roles."""
        rows = list(self._read_rows())
        names = [role for role in roles if role in rows[0]]
        samples = [
            Sample(row_id(0, number), values, split_key({"features": values["features"]}))
            for number, values in enumerate(rows, 1)
        ]
        return split_in_memory(split_schema(names, dict.fromkeys(rows[0]["features"], True)), samples, _SHARES)

    def describe_row(self, split: str, row: int) -> str:
        """Return `digits, row 18`."""
        return f"{self._name}, row {split_row_id(row)[1]}"

    def locate_row(self, split: str, row: int) -> tuple[None, int]:
        """Return the number of a row in the data set."""
        return None, split_row_id(row)[1]

    def describe_role(self, role: str) -> str:
        """Return `the column label of data=digits`: the user does not name its columns."""
        return f"the column {role} of data={self._name}"


def read_table(bunch: Any) -> Iterator[tuple[dict[str, float], Any]]:
    """Yield the features by name and the target of each row of a scikit-learn `Bunch`."""
    names = [str(name) for name in bunch.feature_names]
    for values, target in zip(bunch.data.tolist(), bunch.target.tolist(), strict=True):
        yield dict(zip(names, map(float, values), strict=True)), target
