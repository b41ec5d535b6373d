"""Artifacts of an earlier export that are reused: those of the same model whose files are unchanged."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from trainer.export.folder import files_of, find_fault, link, to_json
from trainer.export.formats.catalog import FORMATS
from trainer.layout import EXPORT_MANIFEST, Document


@dataclass(frozen=True)
class ReusedArtifacts:
    """The artifacts of an earlier export in formats that are not written again.

    Attributes:
        entries: The earlier manifest's entry of each format that is reused.
        metrics: PyTorch's metrics in the same manifest; empty if nothing is reused.
        lost: The reason for each artifact that cannot be reused, by its file name.
    """

    entries: dict[str, Document] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)


def reuse_artifacts(folder: Path, stage: Path, written: Collection[str], conditions: Document) -> ReusedArtifacts:
    """Link the reusable artifacts of an earlier export into a stage.

    Args:
        folder: The export folder, which is left unchanged.
        stage: A folder on the same file system.
        written: The formats that this export writes.
        conditions: The conditions of this export's proof as in its manifest: `provenance`, `versions`, `tolerance` and
            `metric_budget`. An earlier artifact is reused if it was proved under the same, or with stricter limits.
    """
    earlier = [each for each in FORMATS.values() if each.name not in written and (folder / each.path).exists()]
    if not earlier:
        return ReusedArtifacts()
    reused = ReusedArtifacts()
    try:
        manifest = json.loads((folder / EXPORT_MANIFEST).read_text("utf-8"))
        entries, metrics = dict(manifest["artifacts"]), dict(manifest["metrics"])
        changes = _changed_conditions(manifest, json.loads(to_json(conditions)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ReusedArtifacts(lost={each.path: f"no {EXPORT_MANIFEST} describes it" for each in earlier})
    for format in earlier:
        entry = entries.get(format.name)
        if entry is None:
            reused.lost[format.path] = f"{EXPORT_MANIFEST} does not describe it"
        elif changes:
            reused.lost[format.path] = f"this export differs in {', '.join(changes)}"
        elif fault := _link_files(folder, stage, format.path, entry):
            reused.lost[format.path] = fault
        else:
            reused.entries[format.name] = entry
    if reused.entries:
        reused.metrics.update(metrics)
    return reused


def _changed_conditions(earlier: Document, now: Document) -> list[str]:
    """Return the names of the conditions that differ from those of the earlier artifacts."""
    changes = [
        key
        for part in ("provenance", "versions")
        for key in dict.fromkeys([*now[part], *earlier[part]])
        if now[part].get(key) != earlier[part].get(key)
    ]
    return changes + [key for key in ("tolerance", "metric_budget") if not earlier[key] <= now[key]]


def _link_files(folder: Path, stage: Path, name: str, entry: Document) -> str:
    """Link the files of an artifact into a stage, or return the problem of the first file that has changed."""
    described = {each["file"]: each for each in (entry, *entry.get("beside", ()))}
    if fault := next(filter(None, (find_fault(folder, each) for each in described.values())), ""):
        return f"it {fault}"
    for path in files_of(folder, name):
        file = path.relative_to(folder).as_posix()
        if file in described:
            link(path, stage / file)
    return ""
