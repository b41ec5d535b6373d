"""`trainer init`: look at data and write an experiment that trains on it."""

from __future__ import annotations

import keyword
import os
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import count
from pathlib import Path

from trainer.commands.init_files import TEXT_SUFFIXES, is_text_file, look_at_folder, look_at_text_file
from trainer.commands.init_parts import write_part
from trainer.commands.init_proposal import Look
from trainer.commands.init_tables import look_at_table
from trainer.config.groups import groups_in, is_local, own_folder
from trainer.config.jobs import InitJob
from trainer.config.json_schema import is_schema, write_schema
from trainer.config.paths import missing_path_remedy
from trainer.config.trust import literal_problems
from trainer.data.profile import profile_table
from trainer.data.readers import format_suffix, format_suffixes
from trainer.display import escape_controls, print_lines
from trainer.errors import ConfigError, DataError, format_error, raise_if_any
from trainer.files.atomic_io import create_folder, refuse_to_replace, write_text
from trainer.layout import Document, expand_home

EXPERIMENTS = Path("conf", "experiment")
"""Folder of the experiments, relative to the working directory."""

_KEYS = {"text": "text", "label": "target", "labels": "target", "value": "target"}
"""The key that chooses the column of a role."""

_NAMELESS = "mine"
"""The name of an experiment for data whose own name has no characters that an experiment can be named by."""

_MAX_OTHERS = 3
"""Number of other columns to predict that are named."""

SCHEMA = Path("conf", "schema.json")
"""The schema of the config, for editors."""


def run(job: InitJob, config: Document) -> None:
    """Write the experiment for the data of a job, and print what was seen and what to do next.

    Raises:
        ConfigError: The file of the experiment exists.
        DataError: The data cannot be used.
    """
    if job.part is not None:
        print_lines(*_write_part(job.part, job), to=sys.stdout)
        return
    if job.path is None:
        remedy = "Name your data: trainer init my.csv, or a part to write: trainer init part=loss name=my_loss"
        raise ConfigError(format_error("path", "is missing", remedy))
    path = Path(expand_home(job.path))
    name = job.name or _name_of(path)
    if not job.ask:
        _check_name(name)
    look = _look(path, job.target, job.text)
    raise_if_any(*literal_problems({setting.key: setting.value for setting in look.proposal.settings}))
    if job.ask:
        look = _look_again(look, path, job)
        name = _ask("name of the experiment", name)
        _check_name(name)
    file = EXPERIMENTS / f"{name}.yaml"
    text = look.proposal.yaml(f"{path}, {look.num_rows:,} {look.noun}", _schema_for_editors())
    is_same = file.is_file() and file.read_bytes() == text.encode()
    if not is_same:
        _check_is_free(file, force=job.force)
        create_folder(file.parent, ConfigError)
        write_text(file, text, ConfigError)
    written = f"{file} says so already" if is_same else f"wrote {file}"
    lines = list(look.lines)
    if job.name is None and name == _NAMELESS:
        lines.append(f"note: {path.name} has no letter from a to z, so its job is named {name}: name=NAME names it.")
    print_lines(*lines, *_describe_proposal(look, written, name), to=sys.stdout)


def _write_part(group: str, job: InitJob) -> list[str]:
    name = job.name or f"my_{group}"
    if job.path is not None:
        raise ConfigError(format_error("path", "a part has no data", "Leave it out", value=job.path))
    if not name.isidentifier() or keyword.iskeyword(name) or name != name.lower():
        remedy = f"Use lower-case letters, digits and _, such as my_{group}"
        raise ConfigError(format_error("name", "is no name of a Python module", remedy, value=name))
    is_taken = name in sys.stdlib_module_names or (find_spec(name) is not None and not is_local(name))
    if is_taken or groups_in([own_folder()]).file(group, name):
        free = f"my_{name}" if not name.startswith("my_") else f"{name}_2"
        raise ConfigError(format_error("name", "is taken by another module or option", f"Try {free}", value=name))
    return write_part(group, name, force=job.force)


def _look(path: Path, target: str | None, text: str | None) -> Look:
    """Return the look of a file or folder.

    Raises:
        DataError: There is none, or it cannot be used.
    """
    if not path.exists():
        remedy = missing_path_remedy(path, os.path.exists)
        raise DataError(format_error("path", "no such file or folder", remedy, value=str(path)))
    if not path.is_file() and not path.is_dir():
        problem = "is a pipe, a socket or a device, not a file or folder"
        raise DataError(format_error("path", problem, "Name a file or folder", value=str(path)))
    if path.is_dir():
        look = look_at_folder(path, target, text)
        if isinstance(look, Look):
            return look
        path = look
    if format_suffix(path) is not None:
        return look_at_table(profile_table(path), target, text)
    if is_text_file(path):
        return look_at_text_file(path)
    remedy = f"Supported formats: {', '.join([*format_suffixes(), *TEXT_SUFFIXES])}"
    raise DataError(format_error(str(path), "unsupported file format", remedy))


def _schema_for_editors() -> str | None:
    """Return the path of the schema of the config as experiments name it, and write the schema if it is missing."""
    if not SCHEMA.exists():
        write_schema(SCHEMA)
    return f"../{SCHEMA.name}" if is_schema(SCHEMA) else None


def _name_of(path: Path) -> str:
    """Return the name of an experiment for data; no name of this project's own experiments."""
    name = (
        re.sub(r"\W+", "_", path.name.partition(".")[0] or path.resolve().name, flags=re.ASCII).strip("_") or _NAMELESS
    )
    return f"{name}_data" if groups_in([own_folder()]).file("experiment", name) else name


def _check_name(name: str) -> None:
    """Raise ConfigError if no experiment of this name can be written."""
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name):
        raise ConfigError(format_error("name", "must consist of letters, digits, _ and -", value=name))
    if groups_in([own_folder()]).file("experiment", name):
        raise ConfigError(format_error("name", "is an experiment of this program", "Choose another name", value=name))


def _check_is_free(file: Path, *, force: bool) -> None:
    """Raise ConfigError if an experiment would replace a file without the user's consent."""
    if file.exists() and not force:
        free = next(other for number in count(2) if not file.with_stem(other := f"{file.stem}_{number}").exists())
        remedy = f"Set force=true to replace it, or choose another name: name={free}"
        raise ConfigError(format_error("name", "exists already", remedy, value=str(file)))
    refuse_to_replace("name", file, force=force)


def _look_again(look: Look, path: Path, job: InitJob) -> Look:
    """Ask for the columns of a table, and return its look with the answers."""
    print_lines(*look.lines, f"proposal: {look.proposal.summary}", to=sys.stdout)
    proposed = {
        _KEYS[role]: names[0] for role, names in look.proposal.roles.items() if role in _KEYS and len(names) == 1
    }
    answers = {key: _ask(f"column of {key}", name) for key, name in proposed.items()}
    if answers == proposed:
        return look
    return _look(path, answers.get("target", job.target), answers.get("text", job.text))


def _ask(question: str, default: str) -> str:
    """Return the answer to a question, or the default if there is none."""
    try:
        return input(f"{question} [{escape_controls(default)}]: ").strip() or default
    except EOFError:
        return default


def _describe_proposal(look: Look, written: str, name: str) -> Sequence[str]:
    others = [shlex.quote(f"target={column}") for column in look.other_targets[:_MAX_OTHERS]]
    return [
        f"proposal: {look.proposal.summary} (task={look.proposal.task})",
        *([f"to predict another column: {' or '.join(others)}"] if others else []),
        written,
        "next:",
        f"  trainer plan experiment={name}",
        f"  trainer train experiment={name}",
    ]
