"""The draws of an epoch, as `loader.sampler` and `data.mix` say: groups of samples and their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from glob import glob, has_magic
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from trainer.builders.instantiate import locate
from trainer.config.compatibility import SAMPLER_KEYS
from trainer.config.jobs import TrainJob
from trainer.data.data_files import FileSource
from trainer.data.encode import Encoded
from trainer.data.hub import Hub
from trainer.data.order import GroupSampler
from trainer.data.splits import file_part
from trainer.display import join_items
from trainer.errors import ConfigError, DataError, RowErrors, did_you_mean, format_error
from trainer.files.mapped import as_array
from trainer.layout import Document, expand_home
from trainer.protocols import HasColumns, LocatesRows, Task
from trainer.targets import by_class_name

_CLASS = "label"
"""The encoded column of tasks with one class for each row."""


def build_sampler(job: TrainJob, task: Task, encoded: Encoded) -> GroupSampler | None:
    """Build the groups of the training samples; None if every epoch has every sample once.

    Raises:
        ConfigError: The data does not have the column, or the task has no classes.
        DataError: A value of the column, or a training file, has no usable weight.
    """
    loader, mix = job.loader, job.data.get("mix")
    rule = _SamplerRule(np.zeros(len(encoded.splits["train"]), np.int64), np.ones(1), False, "", [""])
    if isinstance(loader.weights, str):
        weights = _read_weights(encoded, loader.weights)
        rule = _SamplerRule(np.arange(len(weights)), weights, False, loader.weights, [])
    elif loader.sampler != "shuffled":
        if loader.sampler_column is None:
            codes, names = _group_by_class(task, encoded)
        else:
            codes, names = _group_by_column(encoded, loader.sampler_column)
        is_weighted = loader.sampler == "weighted"
        weights = _weights_of(names, loader.weights or {}) if is_weighted else np.ones(len(names))
        rule = _SamplerRule(codes, weights, is_weighted, loader.sampler_column or _CLASS, names)
    elif not mix:
        return None
    # Sums over many rows of large numbers would overflow.
    rule = rule._replace(weights=rule.weights / (rule.weights.max() or 1.0))
    return _mix(job, encoded, rule, mix) if mix else _sample(job, rule)


class _SamplerRule(NamedTuple):
    """The groups of `loader.sampler`.

    Attributes:
        codes: The group of each training sample, int64 (N,).
        weights: The weight of each group (G,), or of each of its samples.
        per_row: The weights belong to samples.
        by: What the groups are the values of.
        names: The names of the groups; empty if each sample is a group.
    """

    codes: np.ndarray
    weights: np.ndarray
    per_row: bool
    by: str
    names: Sequence[str]


def _sample(job: TrainJob, rule: _SamplerRule) -> GroupSampler:
    rows = np.bincount(rule.codes, minlength=len(rule.weights))
    weights = (rows if rule.per_row else np.sign(rows)) * rule.weights
    if not weights.any():
        value = job.loader.weights
        raise DataError(format_error("loader.weights", "all weights are 0", "Raise one", value=value))
    return GroupSampler(rule.codes, weights, job.seed, rule.by, rule.names)


def _mix(job: TrainJob, encoded: Encoded, rule: _SamplerRule, mix: Mapping[str, float]) -> GroupSampler:
    """Return the draws of files that have shares; `rule` divides the share of a file among its samples.

    Raises:
        DataError: A file has no share or two, or all its samples have the weight 0.
    """
    file_codes, files = _group_by_file(job, encoded, mix)
    pairs, codes = np.unique(file_codes * len(rule.weights) + rule.codes, return_inverse=True)
    file_of, group_of = np.divmod(pairs, len(rule.weights))
    weights = rule.weights[group_of] * (np.bincount(codes) if rule.per_row else 1)
    totals = np.bincount(file_of, weights, minlength=len(files))
    if empty := [file for file, total in zip(files, totals.tolist(), strict=True) if not total]:
        problem, remedy = "all weights of an entry of data.mix are 0", "Raise one, or leave it out of data.mix"
        raise DataError(*(format_error("loader.weights", problem, remedy, value=file) for file in empty))
    shares = np.array([mix[file] for file in files], np.float64)
    shares /= shares.max()
    pairs_of_names = zip(file_of.tolist(), group_of.tolist(), strict=True) if rule.names else ()
    names = [", ".join(filter(None, (files[file], rule.names[group]))) for file, group in pairs_of_names]
    by = f"file and {rule.by}" if rule.by else "file"
    return GroupSampler(codes, shares[file_of] * (weights / totals[file_of]), job.seed, by, names)


def measure_draws(sampler: GroupSampler | None) -> Document | None:
    """Return what an epoch draws: the rows and the draws of each group, and the rows that it repeats or leaves out."""
    if sampler is None:
        return None
    counts, rows = sampler.counts(0), sampler.sizes
    groups = [
        {"value": name, "rows": int(size), "draws": int(count)}
        for name, size, count in zip(sampler.names, rows, counts, strict=False)
    ]
    return {
        "by": sampler.by,
        "draws": int(counts.sum()),
        "groups": groups,
        "unseen": int(np.maximum(rows - counts, 0).sum()),
        "most_repeated": int(np.max(-(-counts[rows > 0] // rows[rows > 0]))),
    }


def _group_by_class(task: Task, encoded: Encoded) -> tuple[np.ndarray, list[str]]:
    """Return the class of each training sample, and the names of the classes."""
    rows, names = encoded.splits["train"], task.info().class_names
    column = rows.data.column(_CLASS) if _CLASS in rows.column_names else None
    if names is None or column is None or not str(column.type).startswith("int"):
        problem = "the rows of this task have no class"
        raise ConfigError(format_error("loader.sampler", problem, "Set loader.sampler_column=<column>"))
    return np.asarray(as_array(column.combine_chunks()), dtype=np.int64), list(names)


def _group_by_column(encoded: Encoded, column: str) -> tuple[np.ndarray, list[str]]:
    """Return the group of each training sample, and the values of the groups."""
    cells = _read_cells(encoded, "loader.sampler_column", column)
    texts = [text if (text := join_items(cell)).strip() else None for cell in cells]
    if None in texts:
        place = f"{_describe(encoded, texts.index(None))}, column {column!r}"
        more = f" and {others} more" if (others := texts.count(None) - 1) else ""
        remedy = f"Fill in this cell{more}, or choose another loader.sampler_column"
        raise DataError(format_error(place, "has no value", remedy))
    names, codes = np.unique(np.array(texts), return_inverse=True)
    return codes.astype(np.int64), [str(name) for name in names]


def _read_weights(encoded: Encoded, column: str) -> np.ndarray:
    """Return the numbers in a column as the weights of the rows."""
    errors = RowErrors()
    weights = []
    for position, cell in enumerate(_read_cells(encoded, "loader.weights", column)):
        try:
            weight = float(cell) if isinstance(cell, str | int | float) and not isinstance(cell, bool) else math.nan
        except ValueError:
            weight = math.nan
        if not (math.isfinite(weight) and weight >= 0):
            place, problem = f"{_describe(encoded, position)}, column {column!r}", "must be a number of at least 0"
            errors.add(format_error(place, problem, "Correct the cell, or name another column", value=cell), problem)
        weights.append(weight)
    errors.raise_if_any()
    if not any(weights):
        raise DataError(format_error("loader.weights", "all weights are 0", "Name another column", value=column))
    return np.array(weights)


def _weights_of(names: Sequence[str], by_value: Mapping[Any, float]) -> np.ndarray:
    """Return the weight of a row of each value; 1 for a value that is not named."""
    weights = by_class_name(by_value, names)
    if unknown := [value for value in weights if value not in names]:
        problem = "no row of training has this value"
        raise DataError(
            *(format_error("loader.weights", problem, did_you_mean(each, list(names)), value=each) for each in unknown)
        )
    return np.array([weights.get(name, 1.0) for name in names], dtype=np.float64)


def _group_by_file(job: TrainJob, encoded: Encoded, mix: Mapping[str, float]) -> tuple[np.ndarray, list[str]]:
    """Return for each training sample the number of the entry of `data.mix` that names its file, and the entries."""
    source, rows = encoded.source, as_array(encoded.splits["train"].data.column("row").combine_chunks())
    assert isinstance(source, LocatesRows), "the config has been checked"
    part = locate("data", job.data)
    is_hub = isinstance(part, type) and issubclass(part, Hub)
    noun = "split" if is_hub else "file"
    # Our sources write the file into the row's number, so only one row of each file is looked up.
    places = file_part(rows) if is_hub or (isinstance(part, type) and issubclass(part, FileSource)) else rows
    _, first, place_codes = np.unique(places, return_index=True, return_inverse=True)
    files = [source.locate_row("train", row)[0] or "" for row in rows[first].tolist()]
    names = list(mix)
    # The split of a data set is a name, whatever files there are.
    named = {name: {Path(name).resolve()} if is_hub else _matching(name) for name in names}
    codes: dict[str, int] = {}
    problems = []
    for file in dict.fromkeys(files):
        matches = [number for number, name in enumerate(names) if Path(file).resolve() in named[name]]
        codes[file] = matches[0] if matches else 0
        if not matches:
            problems.append(format_error("data.mix", f"has no share for a training {noun}", "Add it", value=file))
        elif len(matches) > 1:
            problem = f"names a {noun} twice, as {names[matches[0]]!r} and {names[matches[1]]!r}"
            problems.append(format_error("data.mix", problem, "Keep one", value=file))
    for number, name in enumerate(names):
        if number not in codes.values():
            key = "data.splits.train" if is_hub else "data.train"
            problem, remedy = f"names no {noun} of {key} with rows for training", f"Leave it out, or add it to {key}"
            problems.append(format_error("data.mix", problem, remedy, value=name))
    if problems:
        raise DataError(*problems)
    return np.array([codes[file] for file in files], dtype=np.int64)[place_codes], names


def _matching(pattern: str) -> set[Path]:
    path = expand_home(pattern)
    names = glob(path, recursive=True) if has_magic(path) and not Path(path).exists() else [path]
    return {Path(name).resolve() for name in names}


def _read_cells(encoded: Encoded, key: str, column: str) -> list[object]:
    """Return the cell of each training sample in a column of the data.

    Raises:
        ConfigError: The data has no such column.
    """
    source = encoded.source
    known = source.column_names("train") if isinstance(source, HasColumns) else []
    if not known:
        problem = f"the rows of {type(source).__name__} have no columns"
        raise ConfigError(format_error(key, problem, f"Leave out {SAMPLER_KEYS}", value=column))
    if column not in known:
        raise ConfigError(format_error(key, "no such column", did_you_mean(column, known), value=column))
    return [cell for (cell,) in encoded.read_cells("train", [column])]


def _describe(encoded: Encoded, position: int) -> str:
    return encoded.source.describe_row("train", encoded.splits["train"].data.column("row")[position].as_py())
