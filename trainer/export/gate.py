"""The gate: formats are written and proved, variant after variant, until one passes or none is left."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from trainer.errors import ProofError, format_error
from trainer.export.candidate import Candidate, make_candidate
from trainer.export.evaluation import Evaluation, judging_metric
from trainer.export.folder import remove
from trainer.export.formats import FORMATS, Format
from trainer.export.proof import Limits
from trainer.export.subject import Subject
from trainer.protocols import Batch

logger = logging.getLogger(__name__)

_REMEMBERED = 2**24
"""Numbers of PyTorch's outputs that are kept from one turn to the next: 64 MB."""

_OTHERS = "Leave out this format, or mend the model's forward"


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

    What a format is made of is proved with it, also where nobody asked for that.

    Args:
        formats: What to write; each is tried in its variants, one a turn.
        stage: A folder.
        subject: The model.
        batches: The evaluation split, padded, with targets; called once a turn.
        limits: What an artifact may differ by.
    """
    trials = _trials(formats)
    turns = max(len(trial.format.variants) for trial in trials)
    remembered = _REMEMBERED if turns > 1 else 0
    evaluation = Evaluation(batches, subject.pytorch, subject.task.metrics(), remembered=remembered)
    for turn in range(turns):
        candidates: list[tuple[_Trial, Candidate]] = []
        for trial in trials:
            if trial.waits(turn):
                remove(stage, trial.format.path)
                with trial.noted():
                    variant = trial.format.variants[turn]
                    candidates.append((trial, make_candidate(trial.format, variant, stage, subject, limits)))
        if candidates:
            evaluation.run([candidate.comparison for _, candidate in candidates])
        for trial, candidate in candidates:
            with trial.noted():
                candidate.prove_scores(evaluation.metrics, subject.task, limits.metric_budget)
                trial.candidate = candidate
    _warn_of_metric(judging_metric(subject.task), evaluation.metrics)
    asked = {trial.format.name: trial for trial in trials if trial.format in formats}
    for trial in trials:
        if trial.format.name not in asked or not trial.passed:
            remove(stage, trial.format.path)
    proved = [trial.candidate for format in formats if (trial := asked[format.name]).passed and trial.candidate]
    failures = [_failure(trial, asked) for format in formats if not (trial := asked[format.name]).passed]
    return Verdict(proved, failures, evaluation.metrics)


@dataclass
class _Trial:
    """A format, why its variants were refused, and the one that was not; `source` is what it is made of."""

    format: Format
    source: _Trial | None
    refusals: list[ProofError] = field(default_factory=list)
    candidate: Candidate | None = None

    @property
    def passed(self) -> bool:
        return self.candidate is not None and not self.has_refused_source

    @property
    def has_refused_source(self) -> bool:
        return self.source is not None and bool(self.source.refusals)

    def waits(self, turn: int) -> bool:
        """Whether it is to be tried in a turn."""
        return self.candidate is None and turn < len(self.format.variants) and not self.has_refused_source

    @contextmanager
    def noted(self) -> Iterator[None]:
        """A block whose refusal is kept."""
        try:
            yield
        except ProofError as refusal:
            self.refusals.append(refusal)


def _trials(formats: Sequence[Format]) -> list[_Trial]:
    """A trial of each format, those of what others are made of first."""
    given = {format.name: format for format in formats}
    names = dict.fromkeys(format.made_of for format in formats if format.made_of is not None)
    sources = {name: _Trial(given.get(name, FORMATS[name]), None) for name in names}
    others = [format for format in formats if format.name not in sources]
    return [*sources.values(), *(_Trial(format, sources.get(format.made_of or "")) for format in others)]


def _failure(trial: _Trial, asked: Mapping[str, _Trial]) -> ProofError:
    """Why no variant of a format passed; variants with the same reason share a line."""
    format = trial.format
    if trial.source is not None and trial.has_refused_source:
        made_of = trial.source.format
        problem = f"is made of {made_of.path}, which is refused"
        # Where that was asked for, its own refusal is told beside this one.
        reasons = [] if made_of.name in asked else [f"  {each}" for each in trial.source.refusals[0].messages]
        return ProofError("\n".join([format_error(format.path, problem, _OTHERS), *reasons]))
    if len(format.variants) == 1:
        return trial.refusals[0]
    names: dict[str, list[str]] = {}
    for variant, refusal in zip(format.variants, trial.refusals, strict=True):
        for message in refusal.messages:
            names.setdefault(message, []).append(variant.name)
    reasons = [f"  {'; '.join(variants)}: {message}" for message, variants in names.items()]
    problem = f"none of its {len(format.variants)} variants passes"
    return ProofError("\n".join([format_error(format.path, problem, "Leave out this format"), *reasons]))


def _warn_of_metric(metric: str | None, metrics: Mapping[str, float]) -> None:
    value = metrics.get(metric or "", 0.0)
    if not isfinite(value):
        logger.warning("%s is %s over the evaluation split: it cannot judge artifacts", metric, value)
