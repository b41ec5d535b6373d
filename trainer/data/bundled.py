"""Data sets that come with scikit-learn: tables of numbers, without a download."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from trainer.data.cells import key_of
from trainer.data.rows import row_id
from trainer.data.splits import Sample, divided
from trainer.errors import ConfigError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when the same tables give something else."""

_SHARES = {"validation": 0.1, "test": 0.1}

Rows = Iterator[Mapping[str, Any]]
"""The values of each role, `features` among them."""


def check_installed() -> None:
    """Whether there is a scikit-learn.

    Raises:
        ConfigError: There is none.
    """
    if find_spec("sklearn") is None:
        remedy = "Run pip install 'trainer[examples]'"
        raise ConfigError(
            format_error("_target_", "this data comes with the package scikit-learn, which is missing", remedy)
        )


def fingerprint_of(name: str, rows: Callable[[], Rows]) -> str:
    """Of every value of a table but encoded images."""
    digest = blake2b(repr((name, _VERSION)).encode(), digest_size=16)
    for values in rows():
        digest.update(repr([(role, value) for role, value in values.items() if role != "image"]).encode())
    return digest.hexdigest()


def load(rows: Rows, roles: Sequence[str]) -> dict[str, Dataset]:
    """Splits of 80, 10 and 10 %; they follow from the features alone, also where those are not asked for."""
    from trainer.data.arrow import schema_of

    first, *others = rows
    names = [role for role in roles if role in first]
    numeric = dict.fromkeys(first["features"], True)
    samples = [
        Sample(row_id(0, number), values, key_of({"features": values["features"]}))
        for number, values in enumerate((first, *others), 1)
    ]
    return divided(schema_of(names, numeric), samples, _SHARES)


def table(found: Any) -> Iterator[tuple[dict[str, float], Any]]:
    """The named features and the target of each row of what scikit-learn loads."""
    names = [str(name) for name in found.feature_names]
    for values, target in zip(found.data.tolist(), found.target.tolist(), strict=True):
        yield dict(zip(names, map(float, values), strict=True)), target
