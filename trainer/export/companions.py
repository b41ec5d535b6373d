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
from trainer.export.folder import MANIFEST, describe, files_of, write_json
from trainer.export.golden import ARRAYS, ROWS, TENSORS, write_golden
from trainer.export.onnx import OUTPUT
from trainer.export.readme import README, write_readme
from trainer.export.script import (
    GENERATE,
    GENERATED,
    PREDICT,
    RUN,
    TASK,
    prove_scripts,
    usage,
    write_generator,
    write_scripts,
)
from trainer.export.subject import Subject
from trainer.export.timing import Timing

COMPANIONS = (ROWS, ARRAYS, TENSORS, PREDICT, TASK, GENERATE, README)
"""What an earlier call may have left, beside the task's files."""

_PACKAGES = ("numpy", "onnx", "onnxruntime", "tokenizers", "torch", "transformers")


def write_companions(
    stage: Path, subject: Subject, samples: Sequence[Mapping[str, Any]], content: Mapping[str, Any]
) -> ProofError | None:
    """Writes all that lies beside the artifacts of a stage, the manifest last.

    Args:
        stage: The folder, with the artifacts in it.
        subject: What they were made of.
        samples: Rows of the evaluation split as the source gave them.
        content: The manifest but for these files.

    Returns:
        Why there is no `predict.py`, where the task's pieces do not answer as the task does.
    """
    files = []
    for name, text in subject.task.artifact_files().items():
        (stage / name).write_text(text, "utf-8")
        files.append(stage / name)
    files += write_golden(stage, subject.task, samples, subject.pytorch)
    pieces, failure = getattr(subject.task, "script", None), None
    if pieces is not None and any(name in content["artifacts"] for name in RUN):
        write_json(stage / MANIFEST, content)
        scripts = write_scripts(stage, pieces)
        try:
            prove_scripts(stage)
            files += scripts
        except ProofError as error:
            failure, pieces = error, None
            for path in scripts:
                path.unlink()
    else:
        pieces = None
    if GENERATED in content["artifacts"]:
        files.append(write_generator(stage))
    files.append(write_readme(stage, content, None if pieces is None else usage(pieces)))
    write_json(stage / MANIFEST, {**content, "files": [describe(path, stage) for path in files]})
    return failure


def manifest(
    stage: Path,
    subject: Subject,
    proved: Sequence[Candidate],
    pytorch: Mapping[str, float],
    timings: Sequence[Timing],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What was published and how it was proved; `settings` comes from the caller as it is."""
    task = subject.task
    axes = task.axes()
    return {
        "manifest_version": 2,
        "task": type(task).__name__,
        "reads": list(task.reads()),
        "formats": [candidate.format.name for candidate in proved],
        **settings,
        "versions": {
            "trainer": trainer.__version__,
            "python": platform.python_version(),
            **{package: version(package) for package in _PACKAGES},
        },
        "monitor": task.monitor,
        "inputs": {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [axes[name].get(place, size) for place, size in enumerate(value.shape)],
            }
            for name, value in subject.traced.items()
        },
        "outputs": {OUTPUT: {"dtype": "float32", "shape": _output_shape(subject.cases)}},
        "axes": {BATCH: [1, None], **{axis: list(limits) for axis, limits in task.axis_limits().items()}},
        "pad_id": task.facts().get("pad_id"),
        "metrics": dict(pytorch),
        "artifacts": {candidate.format.name: _entry(stage, candidate) for candidate in proved},
        "timings": {"threads": torch.get_num_threads(), "rows": [asdict(timing) for timing in timings]},
    }


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
        "decision_agreement": candidate.comparison.agreement,
        "metrics": candidate.comparison.values(),
        "shapes": [asdict(each) for each in candidate.tried],
    }
