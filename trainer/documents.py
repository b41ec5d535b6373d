"""The documents of runs, checkpoints and artifact folders: the shape of each, and reading one that was damaged.

Everything that comes back from a disk passes through here before it is used. `trainer.shapes` explains shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from trainer.errors import CheckpointError, format_error
from trainer.layout import EXPORT_MANIFEST, STATE, TASK, Document
from trainer.shapes import CHECKSUM, DocumentError, check_seal, check_shape, parse_json, read_bytes

_SCORE: Final = {
    **{"name": str, "value": float, "higher_is_better": bool, "weights": str, "loss?": (float, None), "split?": str},
}
_MAYBE_SCORE: Final = (_SCORE, None)
_FILE: Final = {"file": str, "bytes": int, "sha256": str}
_NUMBERS: Final = {str: (float, None)}

CHECKPOINT: Final = {
    "format": int,
    "step": int,
    "ordinal": int,
    "files": {str: {"size": int, "crc32": str}},
}
"""The shape of MANIFEST.json."""

TENSOR: Final = {"dtype": str, "shape": [int], "data_offsets": [int, int]}
"""The shape of a tensor's entry in the header of a safetensors file."""

ROWS: Final = {str: [int, [int]]}
"""The shape of the metadata of a file with only some rows of its tensors: first row, complete shape."""

_STATE_SHAPE: Final = {
    "score": _MAYBE_SCORE,
    "train": {
        "step": int,
        "score": _MAYBE_SCORE,
        "best": _MAYBE_SCORE,
        "best_step": (int, None),
        "improved_step?": int,
    },
    "ema": ({"updates": int}, None),
    "schedule": ({str: object}, None),
    "precision": {str: object},
    "optimizer": {"groups": [{"names": [str], "options": {str: object}}], "values": {str: {str: object}}},
    "generators": {
        "python": {"version": int, "words": str, "gauss": (float, None)},
        "numpy": {"kind": str, "keys": str, "position": int, "has_gauss": int, "cached": float},
        "torch?": str,
        "cuda?": [str],
        "mps?": str,
    },
    "data": str,
    "versions": {str: str},
    "accumulate?": {"requested": (int, str), "used": int},
}

_RULE: Final = {"thresholds": {str: float}, "temperature": (float, {str: float}, None)}

_FOUND: Final = {"thresholds?": {str: {str: float}}, "calibration?": {str: object}}
DECISION: Final = {"step": int, "weights": str, "checkpoint_sha256": str, **_RULE, "validation?": _FOUND}
"""The shape of decision.json in a run folder."""

TRANSITION_SCORES: Final = {"start": [float], "between": [[float]], "end": [float]}
"""The shape of transitions.json in an export folder."""

_TASK_SHAPE: Final = {
    "decision?": _RULE,
    "transitions?": TRANSITION_SCORES,
    "labels?": [str],
    "class_counts?": [int],
    "num_train?": int,
    "tokenizer?": str,
    "given?": (str, None),
    "token_counts?": [int],
    "images?": {"size": [int, int], "channels": int, "mean": [float], "std": [float]},
    "value_mean?": [float],
    "value_std?": [float],
    "score_range?": ([float, float], None),
    "columns?": [{"kind": str, "name": str}],
    "predict.py?": [str, str],
}
"""The fields that the tasks of this project have; a task of the user may have others."""

SHAPES: Final[Mapping[str, object]] = {
    STATE: _STATE_SHAPE,
    TASK: _TASK_SHAPE,
    "model.json": {"class": str, "config": {str: object}},
}
"""The shape of each JSON document in a checkpoint, by its file name."""

_INTERVALS: Final = {str: [float, float]}
_PART: Final = {"metrics": {str: float}, "intervals": _INTERVALS, "no_interval?": {str: str}}
EVALUATION: Final = {
    "split": str,
    "step": int,
    "weights": str,
    "digest?": str,
    "intervals?": _INTERVALS,
    "no_interval?": {str: str},
    "targets?": [{"target": str, **_PART}],
    "slices?": {str: [{"value": str, "rows": int, **_PART}]},
}
"""The shape of `eval/<split>.json`; `intervals` has the 95 % interval of each metric that has one.

All other fields are metrics, null for a metric that is not defined, and the keys that were changed.
"""

EVALUATION_PARTS: Final = ("intervals", "no_interval", "targets", "slices")
"""The fields of `eval/<split>.json` that describe metrics."""

_UNDEFINED: Final = {
    "auroc": "no class or label has both rows with it and rows without it",
    "average_precision": "no class or label has a row",
    "mean_average_precision": "no label has a row",
    "cohen_kappa": "all predictions and all targets are the same class",
    "pearson": "all predictions or all targets are equal",
    "spearman": "all predictions or all targets are equal",
    "uniformity": "there is only one text",
}


def undefined_reason(metric: str) -> str:
    """Return the reason why the value of a metric is null."""
    return _UNDEFINED.get(metric, "its value is not a finite number")


MEASURED_VALUES: Final = frozenset({"samples_per_second", "tokens_per_second", "mfu", "memory"})
"""Values of a `train` event that differ each time that the step is trained."""

EVENT: Final = {
    "event": str,
    "step": int,
    "epoch": float,
    "split?": str,
    "weights?": (str, None),
    "device?": str,
    "threads?": int,
    "processor?": str,
}
"""The shape of a line in metrics.jsonl."""

DIVERGENCE: Final = {"step": int, "checkpoint": (str, None)}

_ARTIFACT: Final = {
    **_FILE,
    "beside?": [_FILE],
    "exact": bool,
    "variant?": str,
    "largest_difference": (float, None),
    "relative_difference?": (float, None),
    "decision_agreement": (float, None),
    "metrics": _NUMBERS,
    "end_id?": (int, None),
    "golden?": {"prompt": [int], "tokens": [int]},
}

EXPORT: Final = {
    "manifest_version": int,
    "task": str,
    "reads": [str],
    "kept": [str],
    "provenance": {
        "config?": {
            "task": {"_target_": str},
            "data": {"columns": {str: object}, "list_separator": str, "separator": (str, None), "quote": (str, None)},
            "loader": {"eval_batch_size": int},
        },
    },
    "tolerance": float,
    "metric_budget": float,
    "versions": {str: str},
    "monitor": (str, None),
    "inputs": {str: {"dtype": str, "shape": [(int, str)]}},
    "outputs?": {str: {"dtype": str, "shape": [(int, str)]}},
    "axes": {str: [int, (int, None)]},
    "pad_id": (int, None),
    "metrics": _NUMBERS,
    "artifacts": {str: _ARTIFACT},
    "timings": {"threads": int, "rows": [{"sizes": {str: int}, "milliseconds": {str: float}, "disturbed?": bool}]},
    "files": [_FILE],
}
"""The shape of manifest.json in a folder of artifacts."""

SWEEP: Final = {
    "format": int,
    "config": {str: object},
    "jobs": [{"name": str, "changes": {str: str}}],
    "search?": {str: object},
}
"""The shape of sweep.json in the folder of a sweep."""

SEALED_SINCE: Final = 3
"""The version of that manifest since which it contains a checksum of itself."""

UNSEALED: Final = f"{EXPORT_MANIFEST} is from an earlier version and has no checksum of itself; export again to add one"


def read_document(path: Path, shape: object, remedy: str, *, finite: bool = False) -> Any:
    """Return a JSON document.

    Args:
        path: The file.
        shape: The shape of the document.
        remedy: What to do if it is damaged, for the message.
        finite: See `parse_json`.

    Raises:
        CheckpointError: It cannot be read, or it is not what was written.
    """
    try:
        return parse_json(read_bytes(path), shape, finite=finite)
    except (OSError, DocumentError) as error:
        raise unusable(path, error, remedy) from error


def read_file(path: Path, remedy: str) -> bytes:
    """Return the contents of a file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return read_bytes(path)
    except (OSError, DocumentError) as error:
        raise unusable(path, error, remedy) from error


def read_text(path: Path, remedy: str) -> str:
    """Return a text file.

    Raises:
        CheckpointError: It cannot be read, or it is not UTF-8.
    """
    try:
        return read_file(path, remedy).decode("utf-8")
    except UnicodeDecodeError as error:
        raise unusable(path, DocumentError("is not UTF-8 text"), remedy) from error


def unusable(path: Path, error: Exception, remedy: str) -> CheckpointError:
    """Return the error of a document that cannot be used: `<file>: is damaged: <field>: <problem>. <remedy>`."""
    problem = f"cannot be read: {error.strerror}" if isinstance(error, OSError) else f"is damaged: {error}"
    return CheckpointError(format_error(str(path), problem, remedy))


def check_checkpoint_document(name: str, data: bytes) -> str:
    """Return the text of a document in a checkpoint after its shape has been checked.

    Raises:
        DocumentError: It is not what was written; its name is not in the message.
    """
    if name in SHAPES:
        parse_json(data, SHAPES[name])
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DocumentError("is not UTF-8 text") from error


def read_export_manifest(folder: Path) -> Document | None:
    """Return the manifest of a folder of artifacts; None if there is none.

    Raises:
        CheckpointError: See `load_export_manifest`.
    """
    try:
        return load_export_manifest(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DocumentError) as error:
        remedy = "Copy the folder again, or delete it and export again"
        raise unusable(folder / EXPORT_MANIFEST, error, remedy) from error


def load_export_manifest(folder: Path, name: str = EXPORT_MANIFEST) -> Document:
    """Return the manifest of a folder of artifacts.

    A manifest of an earlier version has no checksum of itself (`is_sealed`).

    Raises:
        OSError: It cannot be read.
        DocumentError: It is not what was written, or it names a file outside of the folder.
    """
    manifest: Document = parse_json(read_bytes(folder / name), {str: object}, finite=True)
    if is_sealed(manifest):
        check_seal(manifest)
    check_shape(manifest, EXPORT)
    for entry in file_entries(manifest):
        _check_place(folder, entry["file"])
    return manifest


def is_sealed(manifest: Mapping[str, Any]) -> bool:
    """Return whether a manifest has, or must have, a checksum of itself."""
    version = manifest.get("manifest_version")
    return CHECKSUM in manifest or (isinstance(version, int) and version >= SEALED_SINCE)


def file_entries(manifest: Document) -> Iterator[Document]:
    """Yield a manifest's entries for artifacts, for further files of artifacts, and for all other files."""
    for artifact in manifest["artifacts"].values():
        yield artifact
        yield from artifact.get("beside", ())
    yield from manifest["files"]


def flatten(document: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every value of a document with its dotted key; an empty mapping counts as a value."""
    for key, value in document.items():
        if isinstance(value, Mapping) and value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _check_place(folder: Path, name: str) -> None:
    """Check that a manifest names a file inside its folder, also after links have been followed."""
    path = PurePosixPath(name)
    inside = path.parts and not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    if not inside or not (folder / name).resolve().is_relative_to(folder.resolve()):
        raise DocumentError(f"names the file {name!r}, which is not inside of the folder")
