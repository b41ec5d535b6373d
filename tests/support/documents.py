"""Documents of runs for tests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.export.folder import write_manifest


def state_text(step: int, score: dict[str, Any] | None = None) -> str:
    """Return the least `state.json` of a checkpoint."""
    numpy = {"kind": "MT19937", "keys": "", "position": 0, "has_gauss": 0, "cached": 0.0}
    document = {
        "score": score,
        "train": {"step": step, "score": score, "best": score, "best_step": None},
        "ema": None,
        "schedule": None,
        "precision": {},
        "optimizer": {"groups": [], "values": {}},
        "generators": {"python": {"version": 3, "words": "", "gauss": None}, "numpy": numpy},
        "data": "",
        "versions": {},
    }
    return json.dumps(document)


def artifact_entry(**fields: Any) -> dict[str, Any]:
    """Return the least entry of an artifact in an export manifest, with some fields."""
    entry = {"file": "model.onnx", "bytes": 1, "sha256": "", "exact": True, "largest_difference": 0.0}
    return {**entry, "decision_agreement": None, "metrics": {}, **fields}


def export_manifest(**fields: Any) -> dict[str, Any]:
    """Return the least manifest of an export folder, of an earlier version, with some fields."""
    document = {
        "manifest_version": 2,
        "task": "TextClassification",
        "reads": ["text"],
        "kept": [],
        "provenance": {},
        "tolerance": 1e-4,
        "metric_budget": 0.005,
        "versions": {},
        "monitor": None,
        "inputs": {},
        "axes": {},
        "pad_id": None,
        "metrics": {},
        "artifacts": {},
        "timings": {"threads": 1, "rows": []},
        "files": [],
    }
    return document | fields


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest of an export folder and seal it again."""
    document = json.loads((folder / "manifest.json").read_text("utf-8"))
    change(document)
    write_manifest(folder / "manifest.json", document)
