"""The decision rule of a run: use the one that is kept, or find another one on the validation split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from math import exp, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeGuard, cast

from rich.console import Console

from trainer.commands.run_folders import run_argument
from trainer.config.signatures import attribute
from trainer.decision import DecisionRule, read_rule, rule_of, write_rule
from trainer.display import counted, list_some, print_lines
from trainer.distributed.environment import is_first_rank
from trainer.errors import ConfigError, format_error
from trainer.files.atomic_io import discard
from trainer.layout import DECISION_RULE, Document
from trainer.protocols import HasDecisionRule, Task
from trainer.report.console import open_console, print_sentence, print_table
from trainer.validation_sets import VALIDATION

if TYPE_CHECKING:
    import numpy as np

    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.calibration import Calibration, Threshold
    from trainer.config.jobs import EvalJob
    from trainer.distributed.ranks import Ranks
    from trainer.files.mapped import MappedRows
    from trainer.precision import PrecisionName

    class DecidingTask(Task, HasDecisionRule): ...


_MAX_ROWS = 20
"""Labels in the table of thresholds; the document has all of them."""

_MAX_NAMES = 5
"""Labels in a note."""

_FEW_ROWS = 10
"""With fewer rows that have a label, its threshold is uncertain."""

_NO_CLASSES = "Leave it out: the task predicts no classes of rows"


@dataclass
class SearchResult:
    """The result of a search on the validation split."""

    calibration: Calibration | None = None
    thresholds: Mapping[str, Threshold] = field(default_factory=dict)

    def document(self, rule: DecisionRule, kept: Document) -> Document:
        """Return the results by part of a rule; a part that was not searched now has its result in `kept`."""
        thresholds = kept.get("thresholds", {}) | {label: asdict(each) for label, each in self.thresholds.items()}
        # A temperature moves the thresholds with the probabilities, and the scores stay.
        thresholds = {
            label: thresholds[label] | {"value": value}
            for label, value in rule.thresholds.items()
            if label in thresholds
        }
        calibration = kept.get("calibration") if self.calibration is None else asdict(self.calibration)
        parts = {"thresholds": thresholds, "calibration": calibration if rule.temperature is not None else None}
        return {name: part for name, part in parts.items() if part}


def rule_problems(config: Document, threshold: Any, calibrate: bool | Literal["kept"] = "kept") -> list[str]:
    """Return the problems of the keys `threshold` and `calibrate` that show before anything heavy is loaded.

    Args:
        config: The stored config of the run, or of an artifact folder.
        threshold: The key.
        calibrate: The key.
    """
    problems = []
    task = str(config["task"]["_target_"])
    answers = (attribute(task, "script") or [None])[-1]
    if task.startswith("trainer.") and answers not in ("classes", "labels"):
        values = {"threshold": threshold, "calibrate": calibrate}
        problems += [_unsupported(key, value) for key, value in values.items() if value not in ("kept", None, False)]
    if isinstance(threshold, Mapping) and not threshold:
        problems.append(format_error("threshold", "names no recall", "Write threshold={recall: 0.9}", value={}))
    return problems


def use_kept_rule(folder: Path, origin: Document, task: Task, threshold: Any = "kept") -> None:
    """Give the task of a run the rule that was set for the same weights, and print which rule is used.

    Args:
        folder: The run folder.
        origin: The origin of the weights: `checkpoint_sha256`, `step` and `weights`.
        task: The fitted task.
        threshold: The key `threshold`, which may replace the thresholds of the rule.

    Raises:
        CheckpointError: The document of the rule is damaged.
    """
    document = read_rule(folder)
    if document is None or not _has_rule(task):
        return
    rule = rule_of(folder, document, _labels(task), several=task.target == "multi_hot")
    own = {key: document[key] for key in ("checkpoint_sha256", "weights")}
    if own == {key: origin.get(key) for key in own}:
        task.decision_rule = rule
        note_rule(folder / DECISION_RULE, task, threshold)
        return
    keys = [*(["threshold=auto"] if rule.thresholds else []), *(["calibrate=true"] if rule.temperature else [])]
    _note(
        f"{folder / DECISION_RULE}: not used: it has {rule.describe()} of other weights, of step {document['step']} "
        f"({document['weights']}). Find them again: trainer eval "
        f"{run_argument('run', folder)} {' '.join(keys)}"
    )


def note_rule(source: Path, task: Task, threshold: Any = "kept") -> None:
    """Print that a rule from a file is used, except for thresholds that a key replaces."""
    if not _has_rule(task):
        return
    rule = _rule(task)
    if used := rule if threshold == "kept" else DecisionRule({}, rule.temperature):
        _note(f"decides with {used.describe()} set after training ({source}).")


def with_kept_rule(checkpointed: CheckpointedModel) -> CheckpointedModel:
    """Return the model of a run whose task follows the rule that was found for it, which its origin then contains.

    Raises:
        CheckpointError: See `use_kept_rule`.
    """
    task = checkpointed.task
    use_kept_rule(checkpointed.folder, checkpointed.origin, task)
    if not _has_rule(task) or not task.decision_rule:
        return checkpointed
    return replace(checkpointed, origin=checkpointed.origin | {"decision": task.decision_rule.document()})


def set_threshold(task: Task, threshold: float | Literal["kept"] | None) -> None:
    """Replace the thresholds of a task: by a number for every label, or None for the task's own.

    Raises:
        ConfigError: The task has no thresholds.
    """
    if threshold == "kept":
        return
    if not _has_rule(task):
        raise ConfigError(_unsupported("threshold", threshold))
    thresholds = {} if threshold is None else dict.fromkeys(_thresholded(task, threshold), float(threshold))
    task.decision_rule = DecisionRule(thresholds, _rule(task).temperature)


def _has_rule(task: Task) -> TypeGuard[DecidingTask]:
    return isinstance(task, HasDecisionRule) and task.decision_rule is not None


def _rule(task: DecidingTask) -> DecisionRule:
    assert task.decision_rule is not None, "it was checked"
    return task.decision_rule


def _unsupported(key: str, value: object) -> str:
    return format_error(key, "does not apply to this run", _NO_CLASSES, value=value)


def _finds_thresholds(job: EvalJob) -> bool:
    return job.threshold == "auto" or isinstance(job.threshold, Mapping)


def _note(text: str) -> None:
    if is_first_rank():
        print_lines(f"note: {text}")


def _labels(task: Task) -> Sequence[str]:
    return task.info().class_names or ()


def _thresholded(task: Task, threshold: Any) -> list[str]:
    """Return the labels that have a threshold: each of several, or the rarer one of two in training.

    Raises:
        ConfigError: There are more than two classes, so the most likely one is predicted.
    """
    info, labels = task.info(), list(_labels(task))
    if task.target == "multi_hot":
        return labels
    if len(labels) != 2 or info.class_counts is None:
        problem = f"needs several labels of a row, or two classes, and this run has {len(labels)} classes"
        raise ConfigError(format_error("threshold", problem, "Leave it out", value=threshold))
    return [labels[0] if info.class_counts[0] < info.class_counts[1] else labels[1]]


def validation_rows(checkpointed: CheckpointedModel, job: EvalJob) -> MappedRows | None:
    """Return the rows that another rule is found on; None if the job finds none.

    Raises:
        ConfigError: The task has no rule, or the data no validation split.
    """
    from trainer.builders.checkpointed import resolve_split
    from trainer.builders.data import build_split

    set_threshold(checkpointed.task, job.threshold if isinstance(job.threshold, float | int) else "kept")
    keys = [*(["threshold"] if _finds_thresholds(job) else []), *(["calibrate"] if job.calibrate is True else [])]
    if not keys:
        return None
    if not _has_rule(checkpointed.task):
        raise ConfigError(*(_unsupported(key, getattr(job, key)) for key in keys))
    if _finds_thresholds(job):
        _thresholded(checkpointed.task, job.threshold)
    split = resolve_split(VALIDATION, checkpointed.job)
    splits = build_split(checkpointed.job, checkpointed.task, split).splits
    if split not in splits or not len(splits[split]):
        remedy = "Name its file: data.validation=FILE"
        raise ConfigError(
            format_error(keys[0], "the data has no validation split", remedy, value=getattr(job, keys[0]))
        )
    return splits[split]


def find_rule(
    checkpointed: CheckpointedModel, job: EvalJob, ranks: Ranks | None, validation: MappedRows | None
) -> None:
    """Give the task of a run the rule that a job asks for, keep it in the run folder and print it.

    Args:
        checkpointed: The model; its task has the rule that is kept for its weights.
        job: The keys `threshold`, `calibrate` and `precision`.
        ranks: The processes that share the batches; the first one writes. None is this process alone.
        validation: The result of `validation_rows`.
    """
    task = checkpointed.task
    if (job.threshold, job.calibrate) == ("kept", "kept") or not _has_rule(task):
        return
    import torch

    from trainer.calibration import calibrate, find_thresholds
    from trainer.targets import calibrate_output

    result, labels, several = SearchResult(), list(_labels(task)), task.target == "multi_hot"
    outputs = None if validation is None else _collect(checkpointed, validation, job.precision, ranks)
    rule = _rule(task)
    if job.calibrate != "kept":
        result.calibration = calibrate(*outputs, labels, several=several) if outputs and job.calibrate else None
        rule = _with_temperature(rule, None if result.calibration is None else result.calibration.temperature)
        task.decision_rule = rule
    if outputs is not None and _finds_thresholds(job):
        names = _thresholded(task, job.threshold)
        recall = job.threshold["recall"] if isinstance(job.threshold, Mapping) else None
        places = [labels.index(name) for name in names]
        scores = calibrate_output(task, torch.from_numpy(outputs[0]))
        probabilities = (scores.sigmoid() if several else scores.softmax(dim=-1)).numpy()[:, places]
        positive = outputs[1][:, places] > 0 if several else outputs[1][:, None] == places
        result.thresholds = dict(
            zip(names, find_thresholds(probabilities, positive, task.threshold, recall), strict=True)
        )
        rule = DecisionRule({name: each.value for name, each in result.thresholds.items()}, rule.temperature)
    elif job.threshold is None:
        rule = DecisionRule({}, rule.temperature)
    task.decision_rule = rule
    if ranks is None or ranks.is_first:
        _keep(checkpointed, rule, result, _kept_results(checkpointed.folder, checkpointed.origin, job))


def _with_temperature(rule: DecisionRule, temperature: float | Mapping[str, float] | None) -> DecisionRule:
    """Return a rule with another temperature and the same decisions: its thresholds move with the probabilities."""

    def of(label: str, value: float | Mapping[str, float] | None) -> float:
        return value[label] if isinstance(value, Mapping) else value or 1.0

    ratios = {label: of(label, rule.temperature) / of(label, temperature) for label in rule.thresholds}
    thresholds = {
        label: value and 1 / (1 + exp(-ratios[label] * log(value / (1 - value))))
        for label, value in rule.thresholds.items()
    }
    return DecisionRule(thresholds, temperature)


def _collect(
    checkpointed: CheckpointedModel, rows: MappedRows, precision: PrecisionName, ranks: Ranks | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the logits (N, C) of rows and their targets."""
    from torchmetrics import MetricCollection

    from trainer.builders.model import choose_batching
    from trainer.evaluate import evaluate
    from trainer.precision import Precision
    from trainer.task.classification_metrics import Outputs

    model, loss, device = checkpointed.model, checkpointed.loss, checkpointed.device
    assert loss is not None
    metrics = MetricCollection({"outputs": Outputs()})
    with closing(checkpointed.loader(rows, choose_batching(checkpointed.job, model), ranks)) as batches:
        evaluate(model, loss, batches, metrics, precision=Precision(precision, device), device=device, ranks=ranks)
    logits, targets = cast(Outputs, metrics["outputs"]).collected
    return logits.numpy(), targets.numpy()


def _kept_results(folder: Path, origin: Document, job: EvalJob) -> Document:
    """Return the results of earlier searches for the same weights that a job does not replace."""
    document = read_rule(folder)
    if document is None or any(document[key] != origin.get(key) for key in ("checkpoint_sha256", "weights")):
        return {}
    own = {"thresholds": job.threshold, "calibration": job.calibrate}
    return {name: part for name, part in document.get("validation", {}).items() if own.get(name) == "kept"}


def _keep(checkpointed: CheckpointedModel, rule: DecisionRule, result: SearchResult, kept: Document) -> None:
    """Write the rule of a run, or remove it if it is empty; print the result of the search.

    Args:
        checkpointed: The model.
        rule: The rule.
        result: The result of this search.
        kept: The results of earlier searches that stay.
    """
    file, origin = checkpointed.folder / DECISION_RULE, checkpointed.origin
    console = open_console("auto")
    if result.calibration is not None:
        _show_calibration(console, result.calibration)
    if result.thresholds:
        _show_thresholds(console, result.thresholds, checkpointed.task)
    if not rule:
        discard(file)
        print_lines(f"note: there are no thresholds and no temperature to keep, so there is no {file}.")
        return
    owner = {key: origin[key] for key in ("step", "weights", "checkpoint_sha256")}
    validation = result.document(rule, kept)
    write_rule(checkpointed.folder, {**owner, **rule.document(), "validation": validation})
    print_lines(f"note: {file}: eval, predict and export use {rule.describe()} from now on.")


def _show_calibration(console: Console, calibration: Calibration) -> None:
    values = calibration.temperature
    temperatures = list(values.values()) if isinstance(values, Mapping) else [values or 1.0]
    low, high = (f"{value:.4g}" for value in (min(temperatures), max(temperatures)))
    rows = [
        ["before", "1", calibration.nll_before, calibration.error_before],
        ["after", low if low == high else f"{low} to {high}", calibration.nll, calibration.error],
    ]
    columns = ["calibration", "temperature", "negative log-likelihood", "expected calibration error"]
    print_table(console, "calibration on the validation split", columns, rows)
    if calibration.unfit:
        print_lines(
            f"note: no temperature between 0.01 and 100 is best for {_list(calibration.unfit)} on the validation "
            "split (too few rows, all right, or none better than chance), so it stays 1."
        )


def _show_thresholds(console: Console, thresholds: Mapping[str, Threshold], task: Task) -> None:
    rows = [
        [label, each.value, each.num_positive, each.f1_before, each.f1, each.precision, each.recall]
        for label, each in thresholds.items()
    ]
    columns = ["label", "threshold", "positive rows", "F1 before", "F1", "precision", "recall"]
    print_table(console, "thresholds on the validation split", columns, rows[:_MAX_ROWS])
    if len(rows) > _MAX_ROWS:
        print_sentence(console, f"{counted(len(rows) - _MAX_ROWS, 'more label', 'is')} in {DECISION_RULE}")
    if task.target == "class":
        print_lines(f"note: {next(iter(thresholds))!r}, the rarer class of training, is predicted above the threshold.")
    none = [label for label, each in thresholds.items() if not each.num_positive]
    few = [label for label, each in thresholds.items() if 0 < each.num_positive < _FEW_ROWS]
    if none:
        print_lines(f"note: no validation row has {_list(none)}, so the threshold stays.")
    if few:
        print_lines(f"note: fewer than {_FEW_ROWS} validation rows have {_list(few)}: the threshold is uncertain.")


def _list(labels: Sequence[str]) -> str:
    return list_some([repr(label) for label in labels], _MAX_NAMES)
