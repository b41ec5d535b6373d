"""The files next to the artifacts: the task's own files, golden rows, scripts, a README, the manifest."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from trainer import shapes
from trainer.errors import ProofError, format_error
from trainer.export.bundle import predict as predict_script
from trainer.export.bundle.answers import ANSWERS
from trainer.export.cases import Forward
from trainer.export.folder import describe, write_json, write_manifest
from trainer.export.model import ExportModel
from trainer.export.readme import README, write_readme
from trainer.layout import (
    EXPORT_MANIFEST,
    GOLDEN_ARRAYS,
    GOLDEN_ROWS,
    GOLDEN_TENSORS,
    PREDICT_FORMATS,
    PREDICT_SCRIPT,
    TASK,
    TRANSITIONS,
    Document,
)
from trainer.protocols import Columns, HasPredictionRows, HasPredictScript, Row, Task
from trainer.targets import calibrate_output

_ANSWERS: Final = "answers.py"
_CHECK: Final = "check.py"
_ROWS: Final = "rows.py"
_GENERATE: Final = "generate.py"
_SHAPES: Final = "shapes.py"
_RULE_FILES: Final = ("threshold.json", "temperature.json", TRANSITIONS)
"""Files of some runs of a task, see `trainer.decision` and `trainer.tags`."""

_GENERATED_FORMAT: Final = "onnx_cache"
_OLD_SCRIPTS: Final = ("task.py",)
"""Scripts of exports before the scripts became fixed modules; an export removes them."""

BUNDLE_FILES: Final = (
    *(GOLDEN_ROWS, GOLDEN_ARRAYS, GOLDEN_TENSORS, TASK, README, *_RULE_FILES),
    *(PREDICT_SCRIPT, _ANSWERS, _CHECK, _ROWS, _GENERATE, _SHAPES, *_OLD_SCRIPTS),
    *dict.fromkeys(predict_script.READERS.values()),
)
"""The files that an earlier export may have left, in addition to the task's own files."""

_SCRIPTS = Path(predict_script.__file__).parent
_MAX_GOLDEN_VALUES = 2**20
_TOP = 3


def write_bundle_files(stage: Path, model: ExportModel, golden: int, manifest: Document) -> ProofError | None:
    """Write all files next to the artifacts of a stage, the manifest last.

    Args:
        stage: The folder with the artifacts.
        model: The model.
        golden: Number of samples to publish as golden rows. With 0, the scripts are proved on samples that are not
            published.
        manifest: The manifest except for these files.

    Returns:
        The reason why there is no `predict.py` if the scripts do not answer as the task does, else None.
    """
    task = model.task
    files = _write_texts(stage, task.artifact_files())
    script = task.script if isinstance(task, HasPredictScript) else None
    if not any(name in manifest["artifacts"] for name in PREDICT_FORMATS):
        script = None
    golden_files = write_golden(stage, task, model.samples[:golden] or model.samples, model.eager_forward)
    scripts, failure = ([], None) if script is None else _write_scripts(stage, script, manifest)
    files += golden_files if golden else []
    for path in () if golden else golden_files:
        path.unlink()
    state = task.state_dict() if "config" in manifest["provenance"] else {}  # with both, the task can be rebuilt
    document = {**state, **({PREDICT_SCRIPT: script} if scripts else {})}
    (stage / TASK).unlink(missing_ok=True)
    if document:
        write_json(stage / TASK, document)
        files.append(stage / TASK)
    files += scripts
    if _GENERATED_FORMAT in manifest["artifacts"]:
        files.append(Path(shutil.copyfile(_SCRIPTS / _GENERATE, stage / _GENERATE)))
        if not scripts:
            files.append(Path(shutil.copyfile(shapes.__file__, stage / _SHAPES)))
    files.append(write_readme(stage, manifest, script_usage(script, manifest) if script and scripts else None))
    write_manifest(stage / EXPORT_MANIFEST, {**manifest, "files": [describe(path, stage) for path in files]})
    return failure


def _write_texts(stage: Path, texts: Mapping[str, str]) -> list[Path]:
    for name, text in texts.items():
        (stage / name).write_text(text, "utf-8")
    return [stage / name for name in texts]


def _write_scripts(stage: Path, script: tuple[str, str], manifest: Document) -> tuple[list[Path], ProofError | None]:
    """Copy the scripts for a task and prove them; return their paths, or no path and the reason."""
    write_manifest(stage / EXPORT_MANIFEST, {**manifest, "files": []})
    write_json(stage / TASK, {PREDICT_SCRIPT: script})
    scripts = copy_scripts(stage, script)
    try:
        prove_scripts(stage)
    except ProofError as failure:
        for path in scripts:
            path.unlink()
        return [], failure
    return scripts, None


def copy_scripts(folder: Path, script: tuple[str, str]) -> list[Path]:
    """Copy `predict.py` and the modules that it loads, which need neither this package nor torch.

    Args:
        folder: The target.
        script: The type of the task's rows and the type of its answers, see `HasPredictScript`.
    """
    rows, _ = script
    names = (PREDICT_SCRIPT, _ROWS, _CHECK, predict_script.READERS[rows], _ANSWERS)
    scripts = [Path(shutil.copyfile(_SCRIPTS / name, folder / name)) for name in names]
    return [*scripts, Path(shutil.copyfile(shapes.__file__, folder / _SHAPES))]


def prove_scripts(folder: Path) -> None:
    """Run `predict.py --check` in a process whose Python ignores the user's environment.

    Raises:
        ProofError: It fails, or its answers to the golden rows are not the task's.
    """
    command = [sys.executable, "-I", str(folder / PREDICT_SCRIPT), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
        reason = "; ".join(failed or result.stderr.splitlines()[-1:])
        remedy = "Set `script` of the task to None, or to types of rows and answers that match its own"
        raise ProofError(format_error(PREDICT_SCRIPT, f"does not answer as the task does: {reason}", remedy))


def script_usage(script: tuple[str, str], manifest: Document) -> str:
    """Return the description in `predict.py --help`: what the script reads and prints."""
    rows, answers = script
    reader = runpy.run_path(str(_SCRIPTS / predict_script.READERS[rows]))["READERS"][rows]
    return predict_script.describe(reader, ANSWERS[answers], predict_script.columns_by_role(manifest))


def write_golden(stage: Path, task: Task, rows: Sequence[Row], forward: Forward) -> list[Path]:
    """Write golden rows: rows with their answers, the model's inputs and its output, as JSON, arrays and tensors.

    Recipients of an artifact can check it with them. If outputs are large, such as logits over a vocabulary for each
    token, only the first rows are written, at least one.

    Args:
        stage: The target folder.
        task: Makes inputs of rows and answers of outputs.
        rows: Samples of the evaluation split as read from the source.
        forward: The model.

    Returns:
        `golden.json`, `golden.npz`, `golden.pt`, and the files `golden-0.png` and so on if rows contain images.
    """
    columns: Columns = {role: [row[role] for row in rows] for role in task.input_columns()}
    if isinstance(task, HasPredictionRows):
        columns = task.prediction_rows(columns)
    count = len(rows)
    while True:
        columns = {role: values[:count] for role, values in columns.items()}
        encoded = task.encode_inputs(columns)
        inputs = task.model_inputs(encoded, "padded")
        output = forward(inputs)
        if count == 1 or output.numel() <= _MAX_GOLDEN_VALUES:
            break
        count -= 1
    scores = calibrate_output(task, output)
    answers = task.predictions(scores, rows=columns, encoded=encoded, batching="padded", top=_TOP)
    images = _write_images(stage, columns)
    shown = [dict(zip(columns, values, strict=True)) for values in zip(*{**columns, **images}.values(), strict=True)]
    shown = [{**row.pop("features", {}), **row} for row in shown]  # one key per column, as in a file of rows
    write_json(stage / GOLDEN_ROWS, {"top": _TOP, "rows": shown, "answers": answers})
    _write_golden_tensors(stage, inputs, output)
    files = [name for names in images.values() for name in names]
    return [stage / name for name in (GOLDEN_ROWS, GOLDEN_ARRAYS, GOLDEN_TENSORS, *files)]


def _write_golden_tensors(stage: Path, inputs: Mapping[str, Tensor], output: Tensor) -> None:
    """Write `input.<name>` and `output` as NumPy arrays and as tensors (C++: `torch::jit::pickle_load`)."""
    tensors = {**{f"input.{name}": value.contiguous() for name, value in inputs.items()}, "output": output}
    arrays: dict[str, Any] = {name: value.numpy() for name, value in tensors.items()}
    np.savez(stage / GOLDEN_ARRAYS, **arrays)
    with (stage / GOLDEN_TENSORS).open("wb") as file:  # torch's own writer reports a full disk as another error
        torch.save(tensors, file)


def _write_images(stage: Path, columns: Columns) -> dict[str, list[str]]:
    """Write the files of the column `image` unchanged, and return their names as the values of the column."""
    names = []
    for number, image in enumerate(columns.get("image", ())):
        path = Path(image["path"] or "")
        name = f"golden-{number}{path.suffix}"
        (stage / name).write_bytes(path.read_bytes() if image["bytes"] is None else image["bytes"])
        names.append(name)
    return {"image": names} if names else {}
