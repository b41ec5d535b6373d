"""The metrics of an evaluation for each value of a column of the data: `trainer eval slices=[column,...]`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from trainer.commands.run_folders import find_run_folder
from trainer.config.jobs import EvalJob
from trainer.config.schema import option_keys
from trainer.config.sections import DataKeys
from trainer.config.stored import TRAINING_KEYS, config_text, job_from_text, read_stored_config
from trainer.display import counted, displayable, join_items, list_some, shorten_middle
from trainer.documents import undefined_reason
from trainer.errors import ConfigError, DataError, did_you_mean, format_error, raise_if_any
from trainer.layout import Document
from trainer.predictions import read_predictions
from trainer.protocols import HasColumns
from trainer.report.console import format_number, print_indented, print_table

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console
    from torchmetrics import Metric

    from trainer.data.encode import Encoded
    from trainer.intervals.confidence import Intervals
    from trainer.intervals.resampling import Estimate, Units

SMALL: Final = 30
"""A slice with fewer rows is marked: its intervals are wide, and less reliable."""

MAX_SLICES: Final = 20
"""Values of a column that are shown, the most frequent ones."""

_MAX_NUMBERS = 10
"""Numbers with more values are divided into quarters."""

_FILES = "trainer.data.files.Files"
_EMPTY = "(empty)"
_BY_CLASS = "slices have no interval of a metric that the job names by its class"
_MAX_NAMED = 5
"""Parts of an evaluation that a note lists."""


def check_slices(job: EvalJob) -> None:
    """Report wrong slices before torch is loaded, as far as the columns of the data can be known without it.

    Raises:
        ConfigError: The predictions are turned off, or a column does not exist.
    """
    if not job.slices:
        return
    if not job.predictions:
        problem = "are computed from the predictions, which predictions=false does not keep"
        raise ConfigError(format_error("slices", problem, "Leave out predictions=false", value=job.slices))
    from trainer.data.files import Files

    file, config = read_stored_config(find_run_folder(job.run), "run")
    if config["data"].get("_target_") == _FILES:
        stored = job_from_text(config_text(config), job.trust, job.stored_overrides, file=file, unused=TRAINING_KEYS)
        keys = option_keys(stored.data, DataKeys)
        del keys["_target_"]
        with suppress(DataError):  # the evaluation reports files that cannot be read
            check_columns(Files(**keys), job.split, job.slices)


def check_columns(source: object, split: str, columns: Sequence[str]) -> None:
    """Check that a source has the columns of the slices.

    Raises:
        ConfigError: It does not.
    """
    names = source.column_names(split) if isinstance(source, HasColumns) else []
    if not names:
        problem = f"the rows of {type(source).__name__} have no columns to divide them by"
        raise ConfigError(format_error("slices", problem, "Leave out slices", value=list(columns)))
    wrong = [column for column in columns if column not in names]
    raise_if_any(*(format_error("slices", "no such column", did_you_mean(each, names), value=each) for each in wrong))


def measure_slices(
    path: Path,
    encoded: Encoded,
    split: str,
    columns: Sequence[str],
    values: Mapping[str, float],
    metrics: Mapping[str, Metric],
) -> dict[str, list[Document]]:
    """Return the slices of each column: `value`, `rows`, and by name `metrics`, `intervals` and `no_interval`, reasons.

    Args:
        path: The predictions of the split.
        encoded: The data.
        split: The name of the split.
        columns: The columns.
        values: The value of each metric on all rows; a slice has those that can be computed from the predictions.
        metrics: Fresh metrics of classes that the user has named, by name: they have no interval in slices.
    """
    from trainer.intervals.confidence import estimated_intervals, fitting_estimates
    from trainer.intervals.estimates import estimate_again, make_estimates, metric_arguments
    from trainer.intervals.resampling import Units

    table, about = read_predictions(path)
    names = list(fitting_estimates(table, about, values, Units.for_rows(len(table))))
    slices: dict[str, list[Document]] = {}
    for column, cells in _read_cells(encoded, split, columns).items():
        slices[column] = []
        for value, rows in _divide(cells):
            part = table.take(rows)
            units = Units.for_rows(len(part))
            estimates = {
                name: each
                for name, each in make_estimates(part, about, units, list(values), is_part=True).items()
                if name in names
            }
            intervals = estimated_intervals(estimates, units)
            if metrics and units.are_rows and (arguments := metric_arguments(part, about)) is not None:
                estimates |= {name: estimate_again(metric, arguments) for name, metric in metrics.items()}
                intervals.missing.update(dict.fromkeys(metrics, _BY_CLASS))
            slices[column].append(
                {"value": value, "rows": len(part), **_describe_part(estimates, units, values, intervals)}
            )
    return slices


def measure_targets(path: Path, columns: object) -> list[Document]:
    """Return the metrics of each of several numeric targets: `target`, and as in `measure_slices`.

    Args:
        path: The predictions.
        columns: The columns of the targets in the data, if it has columns.
    """
    from trainer.intervals.confidence import estimated_intervals
    from trainer.intervals.estimates import target_estimates
    from trainer.intervals.resampling import Units

    table, about = read_predictions(path, ["target", "prediction"])
    units = Units.for_rows(len(table))
    targets = target_estimates(table, about, units)
    if len(targets) < 2:
        return []
    names = columns if isinstance(columns, list) and len(columns) == len(targets) else range(1, len(targets) + 1)
    return [
        {
            "target": str(name),
            **_describe_part(estimates, units, estimates, estimated_intervals(estimates, units)),
        }
        for name, estimates in zip(names, targets, strict=True)
    ]


def _describe_part(
    estimates: Mapping[str, Estimate], units: Units, names: Iterable[str], intervals: Intervals
) -> Document:
    """Return the metrics of some rows that are defined, in the order of `names`, and their intervals or the reasons."""
    import numpy as np

    with np.errstate(all="ignore"):
        values = {name: float(estimates[name](np.ones((1, units.count)))[0]) for name in names if name in estimates}
    undefined = {name: undefined_reason(name) for name, value in values.items() if not np.isfinite(value)}
    return {
        "metrics": {name: value for name, value in values.items() if name not in undefined},
        "intervals": {name: list(interval) for name, interval in intervals.by_name.items() if name not in undefined},
        "no_interval": intervals.missing | undefined,
    }


def _read_cells(encoded: Encoded, split: str, columns: Sequence[str]) -> dict[str, list[str]]:
    """Return the cell of each row of a split in each column."""
    check_columns(encoded.source, split, columns)
    rows = encoded.read_cells(split, columns)
    return {
        column: [text if (text := join_items(row[place])).strip() else _EMPTY for row in rows]
        for place, column in enumerate(columns)
    }


def _divide(cells: Sequence[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the values of a column and their rows, the most frequent value first; many numbers become quarters."""
    import numpy as np

    values, codes, counts = np.unique(np.array(cells), return_inverse=True, return_counts=True)
    if len(values) > _MAX_NUMBERS and (numbers := _as_numbers(values)) is not None:
        bounds = np.nanquantile(numbers[codes], [0, 0.25, 0.5, 0.75, 1])
        quarters = np.searchsorted(bounds[1:-1], numbers[codes], side="left")
        for quarter in range(4):
            rows = np.flatnonzero((quarters == quarter) & np.isfinite(numbers[codes]))
            if len(rows):
                own = numbers[codes][rows]
                yield f"{own.min():g} to {own.max():g}", rows
        if len(rows := np.flatnonzero(~np.isfinite(numbers[codes]))):
            yield _EMPTY, rows
        return
    for code in np.argsort(-counts, kind="stable")[:MAX_SLICES].tolist():
        yield str(values[code]), np.flatnonzero(codes == code)
    if len(values) > MAX_SLICES:
        kept = np.argsort(-counts, kind="stable")[:MAX_SLICES]
        yield f"({counted(len(values) - MAX_SLICES, 'other value')})", np.flatnonzero(~np.isin(codes, kept))


def _as_numbers(values: Any) -> np.ndarray | None:
    """Return the values as numbers, NaN for an empty one; None if one is no number."""
    import numpy as np

    try:
        return np.array([float("nan") if value == _EMPTY else float(value) for value in values])
    except ValueError:
        return None


def print_targets(console: Console, targets: Sequence[Document], order: Sequence[str]) -> None:
    """Print a table of several numeric targets, with the interval next to each metric, in the given order."""
    if targets:
        names = _ordered(targets, order)
        rows = [[each["target"], *(_show(each, name) for name in names)] for each in targets]
        console.out("", highlight=False)
        print_table(console, "by target, with 95% intervals", ["target", *names], rows, names=[0])
        _print_reasons(console, [(each["target"], each) for each in targets], order)


def _ordered(parts: Sequence[Document], order: Sequence[str]) -> list[str]:
    """Return the metrics of parts of an evaluation in an order."""
    known = {name for part in parts for name in part["metrics"]}
    return [name for name in order if name in known]


def print_slices(console: Console, slices: dict[str, list[Document]], order: Sequence[str]) -> None:
    """Print a table for each column, with the interval next to each metric, the metrics in the given order."""
    for column, parts in slices.items():
        names = _ordered(parts, order)
        rows = [
            [
                part["value"],
                f"{part['rows']} (few)" if part["rows"] < SMALL else part["rows"],
                *(_show(part, name) for name in names),
            ]
            for part in parts
        ]
        console.out("", highlight=False)
        print_table(console, f"by {column}, with 95% intervals", [column, "rows", *names], rows, names=[0])
        _print_reasons(console, [(part["value"], part) for part in parts], order)


def _print_reasons(console: Console, parts: Sequence[tuple[str, Document]], order: Sequence[str]) -> None:
    """Print why metrics of parts of an evaluation, by the name of the part, have no value or no interval."""
    lacking: dict[tuple[str, str], tuple[list[str], list[str]]] = {}
    for title, part in parts:
        for metric in (name for name in order if name in part["no_interval"]):
            noun = "interval" if metric in part["metrics"] else "value"
            metrics, titles = lacking.setdefault((noun, part["no_interval"][metric]), ([], []))
            metrics += [metric] * (metric not in metrics)
            titles += [title] * (title not in titles)
    for (noun, reason), (metrics, titles) in lacking.items():
        shown = list_some([shorten_middle(displayable(title, keep_lines=False), 30) for title in titles], _MAX_NAMED)
        where = "" if len(titles) == len(parts) else f" of {shown}"
        print_indented(console, "  ", f"no {noun} for {', '.join(metrics)}{where}: {reason}.")


def _show(part: Document, name: str) -> str | None:
    value, interval = part["metrics"].get(name), part["intervals"].get(name)
    if value is None or interval is None:
        return None if value is None else format_number(value)
    return f"{format_number(value)} ({' to '.join(map(format_number, interval))})"
