"""What lies beside the artifacts: the task's files, golden rows, scripts that predict, a README, the manifest."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import trainer
from trainer.errors import ProofError
from trainer.export.candidate import Candidate
from trainer.export.cases import BATCH, Case
from trainer.export.evaluation import judging_metric
from trainer.export.folder import MANIFEST, describe, files_of, write_json
from trainer.export.formats import FORMATS
from trainer.export.gate import Verdict
from trainer.export.golden import ARRAYS, ROWS, TENSORS, write_golden
from trainer.export.kept import Kept
from trainer.export.onnx import OUTPUT
from trainer.export.readme import README, write_readme
from trainer.export.script import GENERATED, RUN, SCRIPTS, prove_scripts, usage, write_generator, write_scripts
from trainer.export.subject import Subject
from trainer.export.timing import Timing
from trainer.protocols import HasPredictScript

STATE = "task.json"
"""What the task learnt from its training data."""

COMPANIONS = (ROWS, ARRAYS, TENSORS, *SCRIPTS, STATE, README)
"""What an earlier call may have left, beside the task's files."""

_PACKAGES = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


def write_companions(
    stage: Path, subject: Subject, samples: Sequence[Mapping[str, Any]], golden: int, content: Mapping[str, Any]
) -> ProofError | None:
    """Writes all that lies beside the artifacts of a stage, the manifest last.

    Args:
        stage: The folder, with the artifacts in it.
        subject: What they were made of.
        samples: Rows of the evaluation split as the source gave them, at least one.
        golden: How many of them are given away; the scripts are proved on others where it is none.
        content: The manifest but for these files.

    Returns:
        Why there is no `predict.py`, where the task's pieces do not answer as the task does.
    """
    files = []
    for name, text in subject.task.artifact_files().items():
        (stage / name).write_text(text, "utf-8")
        files.append(stage / name)
    if "config" in content["provenance"]:  # with both the task can be made again
        write_json(stage / STATE, subject.task.state_dict())
        files.append(stage / STATE)
    rows = write_golden(stage, subject.task, samples[:golden] or samples, subject.pytorch)
    pieces = subject.task.script if isinstance(subject.task, HasPredictScript) else None
    has_graph = any(name in content["artifacts"] for name in RUN)
    scripts, failure = _write_scripts(stage, pieces, content) if pieces and has_graph else ([], None)
    if golden:
        files += rows
    else:
        for path in rows:
            path.unlink()
    files += scripts
    if GENERATED in content["artifacts"]:
        files.append(write_generator(stage))
    files.append(write_readme(stage, content, usage(pieces) if pieces and scripts else None))
    write_json(stage / MANIFEST, {**content, "files": [describe(path, stage) for path in files]})
    return failure


def _write_scripts(
    stage: Path, pieces: tuple[str, str], content: Mapping[str, Any]
) -> tuple[list[Path], ProofError | None]:
    """The scripts that predict with what is staged, or why they do not do what the task does."""
    write_json(stage / MANIFEST, content)
    scripts = write_scripts(stage, pieces)
    try:
        prove_scripts(stage)
    except ProofError as failure:
        for path in scripts:
            path.unlink()
        return [], failure
    return scripts, None


def manifest(
    stage: Path,
    subject: Subject,
    verdict: Verdict,
    kept: Kept,
    timings: Sequence[Timing],
    terms: Mapping[str, Any],
) -> dict[str, Any]:
    """What is published and how it was proved: by this export, by an earlier one, and by what terms (see `keep`)."""
    task = subject.task
    axes = task.axes()
    found = {candidate.format.name: _entry(stage, candidate) for candidate in verdict.proved} | kept.entries
    artifacts = {name: found[name] for name in FORMATS if name in found}
    return {
        "manifest_version": 2,
        "task": type(task).__name__,
        "reads": list(task.input_columns()),
        "formats": list(artifacts),
        "kept": list(kept.entries),
        **terms,
        "monitor": judging_metric(task),
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [axes[name].get(place, size) for place, size in enumerate(value.shape)],
            }
            for name, value in subject.traced.items()
        },
        "outputs": {OUTPUT: {"dtype": "float32", "shape": _output_shape(subject.cases)}},
        "axes": {BATCH: [1, None], **{axis: list(limits) for axis, limits in task.axis_limits().items()}},
        "pad_id": task.info().pad_id,
        "metrics": kept.metrics | verdict.metrics,
        "artifacts": artifacts,
        "timings": {"threads": torch.get_num_threads(), "rows": [asdict(timing) for timing in timings]},
    }


def versions() -> dict[str, str]:
    """Of what makes and runs artifacts."""
    packages = {package: version(package) for package in _PACKAGES}
    return {"trainer": trainer.__version__, "python": platform.python_version(), **packages}


def _output_shape(cases: Sequence[Case]) -> list[int | str]:
    """The output's shape with the axes that its sizes follow in all cases, numbers where they follow none."""
    return [
        next((axis for axis in cases[0].sizes if all(c.expected.shape[place] == c.sizes[axis] for c in cases)), size)
        for place, size in enumerate(cases[0].expected.shape)
    ]


def _entry(stage: Path, candidate: Candidate) -> dict[str, Any]:
    main, *beside = (describe(path, stage) for path in files_of(stage, candidate.format.path))
    return {
        **main,
        **({"beside": beside} if beside else {}),
        "exact": candidate.format.exact,
        "variant": candidate.variant.name,
        **candidate.details,
        "largest_difference": candidate.largest_difference,
        "relative_difference": candidate.comparison.likeness.relative_difference,
        "decision_agreement": candidate.comparison.likeness.agreement,
        "metrics": candidate.comparison.values(),
        "shapes": [asdict(each) for each in candidate.tried],
    }
