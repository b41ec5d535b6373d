"""The gate: formats are written and proved, variant after variant, until one passes or none is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import ProofError, explain
from trainer.export.candidate import Candidate, make_candidate
from trainer.export.evaluation import Evaluation
from trainer.export.folder import remove
from trainer.export.formats import Format
from trainer.export.proof import Limits
from trainer.export.subject import Subject
from trainer.protocols import Batch

_REMEMBERED = 2**24
"""Numbers of PyTorch's outputs that are kept from one turn to the next: 64 MB."""


@dataclass(frozen=True)
class Verdict:
    """What the gate found.

    Attributes:
        proved: The artifacts that passed, in the order of the formats; nothing is left of the others.
        failures: Why the others did not, one a format.
        metrics: PyTorch's on the evaluation split; empty where nothing could be run on it.
    """

    proved: list[Candidate]
    failures: list[ProofError]
    metrics: dict[str, float]


def judge(
    formats: Sequence[Format],
    stage: Path,
    subject: Subject,
    batches: Callable[[], Iterable[Batch]],
    limits: Limits,
) -> Verdict:
    """Writes each format into `stage` and proves it; all of a turn share one pass over `batches`, PyTorch all passes.

    Args:
        formats: What to write; each is tried in its variants, one a turn.
        stage: A folder.
        subject: The model.
        batches: The evaluation split, padded, with targets; called once a turn.
        limits: What an artifact may differ by.
    """
    refusals: dict[str, list[ProofError]] = {format.name: [] for format in formats}
    proved: dict[str, Candidate] = {}
    turns = max(len(format.variants) for format in formats)
    remembered = _REMEMBERED if turns > 1 else 0
    evaluation = Evaluation(batches, subject.pytorch, subject.task.metrics(), remembered=remembered)
    waiting = list(formats)
    for turn in range(turns):
        candidates = []
        for format in waiting:
            remove(stage, format.path)
            with _noted(refusals[format.name]):
                candidates.append(make_candidate(format, format.variants[turn], stage, subject, limits))
        if candidates:
            evaluation.run([candidate.comparison for candidate in candidates])
        for candidate in candidates:
            with _noted(refusals[candidate.format.name]):
                candidate.prove_scores(evaluation.metrics, subject.task, limits.metric_budget)
                proved[candidate.format.name] = candidate
        waiting = [format for format in waiting if format.name not in proved and len(format.variants) > turn + 1]
        if not waiting:
            break
    failed = [format for format in formats if format.name not in proved]
    for format in failed:
        remove(stage, format.path)
    passed = [proved[format.name] for format in formats if format.name in proved]
    return Verdict(passed, [_failure(format, refusals[format.name]) for format in failed], evaluation.metrics)


@contextmanager
def _noted(refusals: list[ProofError]) -> Iterator[None]:
    try:
        yield
    except ProofError as refusal:
        refusals.append(refusal)


def _failure(format: Format, refusals: Sequence[ProofError]) -> ProofError:
    """Why no variant of a format passed; each variant has its refusal."""
    if len(format.variants) == 1:
        return refusals[0]
    problem = f"none of its {len(format.variants)} variants passes"
    reasons = [
        f"  {variant.name}: {message}"
        for variant, refusal in zip(format.variants, refusals, strict=True)
        for message in refusal.messages
    ]
    return ProofError("\n".join([explain(format.path, problem, "Leave out this format"), *reasons]))
