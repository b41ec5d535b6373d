"""The trials of a search: Optuna chooses the values of each job, and stops jobs that fall behind.

The study is in the folder of the sweep. What it chooses depends only on the trials before and on the seed of the job,
so a search that was killed goes on as if it had not been, as long as its jobs run one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.commands.run_folders import read_best_score
from trainer.commands.sweep_jobs import Outcome
from trainer.config.sweep import Parameter, Search, Sweep, SweepJob
from trainer.layout import METRICS, STUDY, Document
from trainer.report.events import read_events
from trainer.validation_sets import VALIDATION

_NAME = "sweep"
_METRIC = "metric"
_REASON = "reason"
"""Attributes of the study and of a trial."""


class Trials:
    """The trials of a search.

    Args:
        sweep: The sweep that runs them.
        search: The values among which it chooses.
    """

    def __init__(self, sweep: Sweep, search: Search) -> None:
        import optuna  # an extra; the config has been checked for it

        self._optuna: Any = optuna
        self._sweep, self._search = sweep, search
        self._numbers: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        self._pruned: dict[str, int] = {}
        self._optuna.logging.set_verbosity(self._optuna.logging.WARNING)
        self._storage = f"sqlite:///{sweep.folder / STUDY}"
        self._study = self._open("maximize")

    def _open(self, direction: str) -> Any:
        pruner = self._optuna.pruners.MedianPruner() if self._search.prunes else self._optuna.pruners.NopPruner()
        return self._optuna.create_study(
            storage=self._storage, study_name=_NAME, load_if_exists=True, direction=direction, pruner=pruner
        )

    def failures(self) -> dict[str, Outcome]:
        """Return the trials that have ended without a score."""
        states = (self._optuna.trial.TrialState.FAIL, self._optuna.trial.TrialState.PRUNED)
        return {
            self._job(trial.number, {}).name: Outcome(0, [str(trial.user_attrs.get(_REASON, "failed"))])
            for trial in self._study.get_trials(states=states)
        }

    def jobs(self) -> Iterator[SweepJob]:
        """Yield the jobs of trials that have not ended, and then of new ones."""
        for frozen in self._study.get_trials(states=(self._optuna.trial.TrialState.RUNNING,)):
            self._study.sampler = self._sampler(frozen.number)
            yield self._suggested(self._optuna.trial.Trial(self._study, frozen._trial_id))
        while (number := len(self._study.trials)) < self._search.num_trials:
            self._study.sampler = self._sampler(number)
            yield self._suggested(self._study.ask())

    def _sampler(self, number: int) -> Any:
        """Return the sampler of a trial; it has a seed of its own, as a study does not store the state of a sampler."""
        seed = self._sweep.config.get("seed")
        first = seed % 2**31 if isinstance(seed, int) else 0
        return self._optuna.samplers.TPESampler(seed=first + number, constant_liar=self._sweep.num_parallel > 1)

    def _suggested(self, trial: Any) -> SweepJob:
        values = {key: _suggest(trial, key, parameter) for key, parameter in self._search.space.items()}
        return self._job(trial.number, values)

    def _job(self, number: int, values: Mapping[str, str]) -> SweepJob:
        job = self._sweep.trial(number, values)
        self._numbers[job.name] = number
        return job

    def should_stop(self, job: SweepJob) -> bool:
        """Return whether the monitored metric of a running job is behind the others' at the same step."""
        file = self._sweep.folder / job.name / METRICS
        size = file.stat().st_size if file.is_file() else 0
        if size == self._sizes.get(job.name, 0):
            return False
        self._sizes[job.name] = size
        return self._report(job, is_complete=False)

    def _report(self, job: SweepJob, *, is_complete: bool) -> bool:
        """Report the monitored metric of each evaluation to the study; return whether the trial is to be pruned."""
        score = self._study.user_attrs.get(_METRIC)
        if score is None or job.name in self._pruned:  # the metric shows when the first job has ended
            return job.name in self._pruned
        events = read_events(self._sweep.folder / job.name / METRICS)
        number = self._numbers[job.name]
        frozen = self._study.trials[number]
        trial = self._optuna.trial.Trial(self._study, frozen._trial_id)
        for step, value in _values(events, score, is_complete=is_complete).items():
            if step not in frozen.intermediate_values:
                trial.report(value, step)
            if trial.should_prune():
                self._pruned[job.name] = step
                return True
        return False

    def end(self, job: SweepJob, outcome: Outcome | None) -> Outcome | None:
        """Tell the study how a job has ended; return the outcome, which is another one if the job was pruned."""
        if outcome is not None and outcome.is_stopped and job.name not in self._pruned:
            return outcome
        score = read_best_score(self._sweep.folder / job.name)
        if outcome is None and (score is None or not math.isfinite(score["value"])):
            outcome = Outcome(1, ["has no score."])
        if outcome is None and score is not None:
            self._set_metric(score)
            self._report(job, is_complete=True)
        number = self._numbers[job.name]
        if job.name in self._pruned:
            return self._fail(number, "PRUNED", Outcome(0, [f"pruned at step {self._pruned[job.name]}."]))
        if outcome is not None:
            return self._fail(number, "FAIL", outcome)
        assert score is not None
        self._study.tell(number, score["value"])
        return None

    def _fail(self, number: int, state: str, outcome: Outcome) -> Outcome:
        trial = self._optuna.trial.Trial(self._study, self._study.trials[number]._trial_id)
        trial.set_user_attr(_REASON, outcome.messages[0].partition("\n")[0])
        self._study.tell(number, state=self._optuna.trial.TrialState[state])
        return outcome

    def _set_metric(self, score: Document) -> None:
        """Give the study the metric and its direction, which the first job shows."""
        if _METRIC in self._study.user_attrs:
            return
        if not score["higher_is_better"]:  # a study cannot turn round; none of its trials has a value yet
            trials = self._study.trials
            self._optuna.delete_study(study_name=_NAME, storage=self._storage)
            self._study = self._open("minimize")
            self._study.add_trials(trials)
        self._study.set_user_attr(_METRIC, {key: score[key] for key in ("name", "higher_is_better")})


def _suggest(trial: Any, key: str, parameter: Parameter) -> str:
    low, high = parameter.low, parameter.high
    if low is None or high is None:
        return str(trial.suggest_categorical(key, parameter.values))
    if isinstance(low, int) and isinstance(high, int):
        return str(trial.suggest_int(key, low, high, log=parameter.is_log))
    return repr(trial.suggest_float(key, low, high, log=parameter.is_log))


def _values(events: list[Document], score: Document, *, is_complete: bool) -> dict[int, float]:
    """Return step -> the monitored metric on the validation split, of the better of raw and averaged weights.

    The last step of a run that goes on is left out, as some of its evaluations may be missing.
    """
    best = max if score["higher_is_better"] else min
    values: dict[int, float] = {}
    for event in events:
        value = event.get(score["name"])
        is_whole = is_complete or event["step"] < events[-1]["step"]
        is_monitored = event.get("split") == score.get("split", VALIDATION)
        is_evaluation = event["event"] == "eval" and is_monitored and "best_step" not in event
        if is_evaluation and is_whole and isinstance(value, float) and math.isfinite(value):
            values[event["step"]] = best(value, values.get(event["step"], value))
    return values
