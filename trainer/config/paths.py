"""Paths in a config, as the parameters of parts declare them: existence, base folder, and what follows from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from difflib import get_close_matches
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from trainer.config import jobs, schema, signatures
from trainer.constraints.annotations import PathTo, is_constrained
from trainer.constraints.values import map_paths, paths_in
from trainer.errors import format_error
from trainer.layout import LOCK, expand_home
from trainer.weights_folder import find_tokenizer

_DATA = "data"
_SPLITS = ("train", "validation", "test")


def missing_paths(config: Mapping[str, Any], job_type: type, skip: Collection[str] = ()) -> tuple[list[str], list[str]]:
    """Return a message for each path at which there is nothing, or something else: paths of data, and all others.

    Args:
        config: Plain values.
        job_type: The job that the config is for.
        skip: Keys whose errors have been reported already.
    """
    data: list[str] = []
    others: dict[str, str] = {}
    split_of: dict[str, str] = {}
    # The path of a model is reported before the path of the task's tokenizer, whose default depends on it.
    for group, key, value, annotation in sorted(_path_values(config, job_type), key=lambda item: item[0] == "task"):
        for path, about, inner in paths_in(value, annotation):
            full_key = f"{group}.{key}{inner}" if group else f"{key}{inner}"
            if full_key in skip:
                continue
            needs_file = about.must_exist and not (about.hub and not _cannot_be_a_name(path))
            message = _missing(full_key, path, about.noun) if needs_file else None
            if about.must_exist or group == _DATA:
                message = _special(full_key, path, about.noun) or message
            if group == _DATA and key in _SPLITS and message is None:
                message = _in_two_splits(full_key, path, split_of, about.noun)
            if message and group == _DATA:
                data.append(message)
            elif message:
                others.setdefault(path if about.hub else full_key, message)
    return data, list(others.values())


def data_paths(config: Mapping[str, Any], job_type: type) -> list[str]:
    """Return the keys of `data` whose values are paths; a path that is a key of a mapping is not only a place."""
    return [
        f"{group}.{key}{inner}"
        for group, key, value, annotation in _path_values(config, job_type)
        if group == _DATA
        for inner in dict.fromkeys(inner for _, _, inner in paths_in(value, annotation))
        if inner or not isinstance(value, Mapping)
    ]


def locate_paths(config: Mapping[str, Any], job_type: type) -> dict[str, Any]:
    """Return the config with paths that the working directory resolves, for a job.

    `~` becomes the home folder. A path that starts at `run.cwd` and does not exist there stays as it is.
    """
    cwd = run.get("cwd") if isinstance(run := config.get("run"), Mapping) else None
    base = Path(expand_home(cwd)) if isinstance(cwd, str) else Path()
    located = dict(config)

    def change(path: str, about: PathTo) -> str:
        path = expand_home(path)
        if not about.from_cwd or not path or base == Path() or base == Path.cwd():
            return path
        moved = str(base / path)
        return moved if os.path.exists(moved) or (has_magic(path) and glob(moved, recursive=True)) else path

    for group, key, value, annotation in _path_values(config, job_type):
        changed = map_paths(value, annotation, change)
        located |= {group: {**located[group], key: changed}} if group else {key: changed}
    return located


def without_folders(config: Mapping[str, Any], job_type: type) -> dict[str, Any]:
    """Return a config in which only the last name of each local path is left, as it may be shown to anyone."""
    shown = dict(config)

    def change(path: str, about: PathTo) -> str:
        is_name = about.hub and not _cannot_be_a_name(path) and not os.path.exists(path)
        return path if is_name else Path(path).name

    for group, key, value, annotation in _path_values(config, job_type):
        changed = map_paths(value, annotation, change)
        shown |= {group: {**shown[group], key: changed}} if group else {key: changed}
    return shown


def inherit_tokenizer(config: Mapping[str, Any], explicit: Collection[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the config with the tokenizer of `model.weights` unless one is set, and a note if that changes it.

    Args:
        config: Plain values.
        explicit: Full keys of the command line: `task.tokenizer=null` there learns a vocabulary.
    """
    task, model = config.get("task"), config.get("model")
    weights = model.get("weights") if isinstance(model, Mapping) else None
    unset = isinstance(task, Mapping) and task.get("tokenizer", "") is None and "task.tokenizer" not in explicit
    tokenizer = find_tokenizer(weights) if unset and isinstance(weights, str) else None
    if tokenizer is None:
        return dict(config), []
    assert isinstance(task, Mapping)
    note = f"task.tokenizer={tokenizer}: the tokenizer of model.weights; set task.tokenizer=null to train a new one"
    return {**config, "task": {**task, "tokenizer": tokenizer}}, [note]


def _path_values(config: Mapping[str, Any], job_type: type) -> Iterator[tuple[str, str, Any, object]]:
    """Yield group or section ("" for none), key, value and annotation of every key that may be a path."""
    sections = {"": job_type, **schema.sections(job_type)}
    for name, section_type in sections.items():
        section = config if name == "" else config.get(name)
        keys = {key: each for key, each in schema.keys(section_type).items() if is_constrained(each)}
        if isinstance(section, Mapping):
            yield from ((name, key, section[key], keys[key]) for key in keys if key in section)
    for group in schema.groups(jobs.TrainJob):
        part = config.get(group)
        if not isinstance(part, Mapping):
            continue
        try:
            signature = signatures.read(str(part.get("_target_")))
        except LookupError:
            signature = None
        annotations = schema.shared_keys(jobs.TrainJob, group) | dict(signature.annotations if signature else {})
        if group == _DATA and signatures.attribute(str(part.get("_target_")), "mixes_splits"):
            del annotations["mix"]
        yield from ((group, key, value, annotations[key]) for key, value in part.items() if key in annotations)


def describe_taken(key: str, folder: Path) -> str | None:
    """Return the message about a folder that a run cannot use, as far as that shows without creating it.

    Args:
        key: The key that names the folder.
        folder: The folder, which need not exist.
    """
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    problem, remedy = "", "Name another folder"
    if not existing.is_dir():
        problem = f"{'is' if existing == folder.absolute() else 'is inside'} a file"
    elif not os.access(existing, os.W_OK | os.X_OK):
        problem, remedy = "cannot be written", "Allow writing there, or name another folder"
    elif existing == folder.absolute() and any(folder.iterdir()) and not (folder / LOCK).exists():
        problem, remedy = "contains files that are not from a run", "Name a folder that is new or empty"
    return format_error(key, problem, remedy, value=str(folder)) if problem else None


def _cannot_be_a_name(path: str) -> bool:
    """Return whether a path cannot be the name `owner/name` of the hub."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1 or "\\" in path


def _special(key: str, value: str, noun: str) -> str | None:
    """Return the message about a path at which there is something that cannot be read in its place."""
    path = expand_home(value)
    if noun == "file" and os.path.isdir(path):
        return format_error(key, "is a folder, not a file", f"Name the files in it: {Path(value) / '*'}", value=value)
    if not os.path.exists(path) or os.path.isfile(path) or os.path.isdir(path):
        return None
    return format_error(key, f"is a pipe, a socket or a device, not a {noun}", f"Name a {noun}", value=value)


def _in_two_splits(key: str, value: str, split_of: dict[str, str], noun: str) -> str | None:
    """Return the message about a file or folder that another split names, too; `split_of` collects their keys."""
    other = split_of.setdefault(os.path.realpath(expand_home(value)), key)
    if other == key:
        return None
    return format_error(key, f"names a {noun} of {other} too", "Leave it out of one of them", value=value)


def _missing(key: str, value: str, noun: str) -> str | None:
    if not value or has_magic(value):
        return None
    path = Path(expand_home(value))
    is_there = os.path.isdir if noun == "folder" else os.path.exists
    if is_there(path):
        return None
    if os.path.exists(path):
        return format_error(key, "is a file, not a folder", "Name a folder", value=value)
    if (closed := _closed_folder(path)) is not None:
        remedy = "Allow this user to enter the folder, or use a copy"
        return format_error(key, f"cannot be read, as the folder {closed} is closed to this user", remedy, value=value)
    is_usable = os.path.isdir if noun == "folder" else os.path.isfile  # no pipe and no device
    remedy = missing_path_remedy(path, is_usable)
    return format_error(key, f"no such {noun}", remedy, value=value)


def _closed_folder(path: Path) -> Path | None:
    """Return the nearest folder above a path that this user may not enter; None if there is none."""
    try:
        os.stat(path)
    except PermissionError:
        return next((each for each in path.absolute().parents if os.path.isdir(each)), path.parent)
    except (OSError, ValueError):
        return None
    return None


def missing_path_remedy(path: Path, is_usable: Callable[[Path], bool]) -> str:
    """Return the most similar name next to a path that does not exist, else where relative paths start."""
    names = os.listdir(path.parent) if os.path.isdir(path.parent) else []
    siblings = [name for name in names if is_usable(path.parent / name)]
    stems = get_close_matches(path.stem, {Path(name).stem for name in siblings}, n=1)  # many files end in .csv
    near = get_close_matches(path.name, [name for name in siblings if Path(name).stem in stems], n=1, cutoff=0)
    return f"Did you mean {path.parent / near[0]}?" if near else f"Paths are relative to {Path.cwd()}"
