"""`trainer init`: look at data and write an experiment that trains on it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from trainer.atomic_io import create_folder, refuse_to_replace, write_text
from trainer.commands.init_proposal import Proposal, describe_origin, propose_for_table
from trainer.config.groups import groups_in, own_folder
from trainer.config.jobs import InitJob
from trainer.data.profile import ColumnProfile, TableProfile, profile_table
from trainer.data.readers import format_suffix, format_suffixes
from trainer.display import print_lines
from trainer.errors import ConfigError, DataError, format_error
from trainer.layout import Document, expand_home

EXPERIMENTS = Path("conf", "experiment")
"""Folder of the experiments, relative to the working directory."""

_MAX_LISTED = 8
_MAX_COLUMNS = 40


def run(job: InitJob, config: Document) -> None:
    """Write the experiment for the data of a job, and print what was seen and what to do next.

    Raises:
        ConfigError: The file of the experiment exists.
        DataError: The data cannot be used.
    """
    if job.path is None:
        raise ConfigError(format_error("path", "is missing", "Name your data: trainer init my.csv"))
    path = Path(expand_home(job.path))
    name = job.name or _name_of(path)
    file = EXPERIMENTS / f"{name}.yaml"
    _check_name(name)
    _refuse_to_replace(file, name, force=job.force)
    table = profile_table(_readable(path))
    print_lines(*_describe_table(table), to=sys.stdout)
    proposal = propose_for_table(table, job.target, job.text)
    create_folder(file.parent)
    write_text(file, proposal.yaml(describe_origin(path, table.num_rows)), ConfigError)
    print_lines(*_describe_proposal(proposal, file, name), to=sys.stdout)


def _refuse_to_replace(file: Path, name: str, *, force: bool) -> None:
    if file.exists() and not force:
        free = next(other for number in count(2) if not file.with_stem(other := f"{name}_{number}").exists())
        remedy = f"Set force=true to replace it, or choose another name: name={free}"
        raise ConfigError(format_error("name", "exists already", remedy, value=str(file)))
    refuse_to_replace("name", file, force=force)


def _readable(path: Path) -> Path:
    if not path.exists():
        raise DataError(format_error("path", "no such file", f"Paths are relative to {Path.cwd()}", value=str(path)))
    if format_suffix(path) is None:
        raise DataError(
            format_error(str(path), "unsupported file format", f"Supported formats: {', '.join(format_suffixes())}")
        )
    return path


def _name_of(path: Path) -> str:
    """Return the name of an experiment for data; no name of this project's own experiments."""
    name = re.sub(r"\W+", "_", path.name.partition(".")[0] or path.resolve().name, flags=re.ASCII).strip("_") or "mine"
    return f"{name}_data" if groups_in([own_folder()]).file("experiment", name) else name


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise ConfigError(format_error("name", "must consist of letters, digits, _ and -", value=name))
    if groups_in([own_folder()]).file("experiment", name):
        raise ConfigError(format_error("name", "is an experiment of this program", "Choose another name", value=name))


def _describe_table(table: TableProfile) -> Iterator[str]:
    yield f"{table.path}: {table.num_rows:,} rows, {len(table.columns)} columns"
    shown = table.columns[:_MAX_COLUMNS]
    cells = [(column.name, column.kind, _describe_values(column)) for column in shown]
    widths = [max(len(row[place]) for row in cells) for place in (0, 1)]
    for name, kind, values in cells:
        yield f"  {name:<{widths[0]}}  {kind:<{widths[1]}}  {values}"
    if len(table.columns) > len(shown):
        yield f"  and {len(table.columns) - len(shown)} more columns"
    yield from (f"note: {note}" for note in table.notes)


def _describe_values(column: ColumnProfile) -> str:
    if column.kind == "text":
        language = f", {column.language}" if column.language else ""
        return f"about {column.mean_length:.0f} tokens, 95% below {column.long_length + 1}{language}"
    if column.kind == "class" or column.can_be_class or column.kind == "list":
        listed = [f"{value} {count:,}" for value, count in islice(column.counts.most_common(), _MAX_LISTED)]
        more = f", and {len(column.counts) - _MAX_LISTED} more" if len(column.counts) > _MAX_LISTED else ""
        return ", ".join(listed) + more
    if column.kind == "number":
        numbers = [float(value) for value in column.counts]
        return f"from {min(numbers):g} to {max(numbers):g}, {len(numbers):,} different"
    return f"{len(column.counts):,} different" if column.counts else ""


def _describe_proposal(proposal: Proposal, file: Path, name: str) -> Sequence[str]:
    return [
        f"proposal: {proposal.summary} (task={proposal.task})",
        f"wrote {file}",
        "next:",
        f"  trainer plan experiment={name}",
        f"  trainer train experiment={name}",
    ]
