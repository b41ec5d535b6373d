"""Artifacts of an earlier export that stay: those of the same model, as far as they are still what was proved."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.export.folder import MANIFEST, fault_of, files_of, link, to_json
from trainer.export.formats import FORMATS


@dataclass(frozen=True)
class Kept:
    """What an earlier export left in the folder, but for the formats that are written again.

    Attributes:
        entries: What its manifest says of each format that stays.
        metrics: PyTorch's, from the same manifest; empty where nothing stays.
        lost: The name of each artifact that does not stay, and why.
    """

    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def keep(folder: Path, stage: Path, written: Collection[str], terms: Mapping[str, Any]) -> Kept:
    """Links what stays of an earlier export into a stage.

    Args:
        folder: The export folder, which stays as it is.
        stage: A folder on the same file system.
        written: The formats that this export writes.
        terms: What an artifact of this export is proved by, as in its manifest: `provenance`, `versions`, `tolerance`
            and `metric_budget`. One of an earlier export stays if it was proved by the same, or by narrower limits.
    """
    there = [each for each in FORMATS.values() if each.name not in written and (folder / each.path).exists()]
    if not there:
        return Kept()
    kept = Kept()
    try:
        before = json.loads((folder / MANIFEST).read_text("utf-8"))
        entries, metrics = dict(before["artifacts"]), dict(before["metrics"])
        changed = _changed(before, json.loads(to_json(terms)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return Kept(lost={each.path: f"there is no {MANIFEST} that says what it is" for each in there})
    for format in there:
        entry = entries.get(format.name)
        if entry is None:
            kept.lost[format.path] = f"{MANIFEST} does not say what it is"
        elif changed:
            kept.lost[format.path] = f"it differs from this one in {', '.join(changed)}"
        elif fault := _linked(folder, stage, format.path, entry):
            kept.lost[format.path] = fault
        else:
            kept.entries[format.name] = entry
    if kept.entries:
        kept.metrics.update(metrics)
    return kept


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names of what was not so when the earlier artifacts were proved."""
    changed = [
        key
        for part in ("provenance", "versions")
        for key in dict.fromkeys([*now[part], *before[part]])
        if now[part].get(key) != before[part].get(key)
    ]
    return changed + [key for key in ("tolerance", "metric_budget") if not before[key] <= now[key]]


def _linked(folder: Path, stage: Path, name: str, entry: Mapping[str, Any]) -> str:
    """Links the files of an artifact into a stage; what is wrong with the first that is not what was written."""
    described = {each["file"]: each for each in (entry, *entry.get("beside", ()))}
    if fault := next(filter(None, (fault_of(folder, each) for each in described.values())), ""):
        return f"it {fault}"
    for path in files_of(folder, name):
        file = path.relative_to(folder).as_posix()
        if file in described:
            link(path, stage / file)
    return ""
