"""`trainer eval`: loss and metrics of a checkpoint on a split, of the run's own data or of other data."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.commands.decision import find_rule, rule_problems, use_kept_rule, validation_rows
from trainer.commands.eval_slices import check_slices, measure_slices, measure_targets, print_slices, print_targets
from trainer.commands.foreign_rows import check_foreign_rows, find_changed_keys, make_label
from trainer.commands.row_inputs import worst_inputs_kept
from trainer.commands.run_folders import find_run_folder, select_checkpoint
from trainer.config.jobs import EvalJob
from trainer.config.stored import load_stored_config, parse_stored_config
from trainer.display import counted
from trainer.distributed.environment import is_first_rank, is_rank, num_processes
from trainer.distributed.launch import launch
from trainer.documents import EVALUATION, EVALUATION_PARTS, undefined_reason
from trainer.errors import CheckpointError, raise_if_any
from trainer.files.atomic_io import create_folder, discard, refuse_to_replace, write_text
from trainer.layout import EVALUATIONS, Document
from trainer.predictions import is_predictions, predictions_file, predictions_schema, predictions_writer
from trainer.progress import phase
from trainer.protocols import HasDecisionRule
from trainer.report.console import format_number, open_console, print_indented, print_table
from trainer.report.logs import logs_silenced
from trainer.report.metric_names import monitored_first
from trainer.report.screen import phases_shown
from trainer.shapes import CHECKSUM, DocumentError, check_seal, parse_json, read_bytes, to_sealed_json
from trainer.signals import end_on_signals
from trainer.validation_sets import file_stem

if TYPE_CHECKING:
    from rich.console import Console

    from trainer.builders.checkpointed import CheckpointedModel
    from trainer.data.encode import Encoded
    from trainer.distributed.ranks import Ranks
    from trainer.intervals.confidence import Interval
    from trainer.precision import PrecisionName
    from trainer.row_recorder import RowRecorder


_MANY_ROWS = 20_000
"""Rows whose intervals take longer than a few seconds."""


class Evaluation(NamedTuple):
    """The scores of a model on some rows.

    Attributes:
        name: The name of the split; for other rows than the run's own, one that identifies them.
        values: The loss and the metrics.
        intervals: The 95 % interval of each that has one.
        no_interval: The reason why another one has none.
        targets: The metrics of each of several numeric targets, see `measure_targets`.
        slices: The parts of the rows by the columns of `slices`, see `measure_slices`.
    """

    name: str
    values: dict[str, float]
    intervals: dict[str, Interval]
    no_interval: dict[str, str]
    targets: list[Document]
    slices: dict[str, list[Document]]

    def notes(self) -> list[str]:
        """Return what the numbers in the table do not say: a line for each reason."""
        reasons: dict[tuple[str, str], list[str]] = {}
        for name, value in self.values.items():
            if not isfinite(value):
                reasons.setdefault(("value", undefined_reason(name)), []).append(name)
            elif name in self.no_interval:
                reasons.setdefault(("interval", self.no_interval[name]), []).append(name)
        notes = [f"no {lacking} for {', '.join(names)}: {reason}." for (lacking, reason), names in reasons.items()]
        if self.targets:
            notes.append(f"each metric above is the mean over {counted(len(self.targets), 'target')}.")
        return notes


def run(job: EvalJob, config: Document) -> None:
    """Evaluate, print a table, and write `eval/<split>.json` and the predictions in the run folder.

    Rows other than the run's own are compared with the training rows, and their score is stored under another name.
    """
    check_job(job)
    devices = num_processes(job.devices, job.device)
    if devices > 1 and not is_rank():
        launch("eval", config, job.stored_overrides, devices, job.launch.grace)
    elif devices > 1:
        end_on_signals()
        _evaluate_with_others(job)
    else:
        with phases_shown(open_console("auto")):
            result = evaluate_run(job)
        _show(*result)


def check_job(job: EvalJob) -> None:
    """Report what prevents the evaluation and shows before anything heavy is loaded."""
    check_slices(job)
    raise_if_any(*rule_problems(load_stored_config(find_run_folder(job.run), "run"), job.threshold, job.calibrate))


def _evaluate_with_others(job: EvalJob) -> None:
    """Evaluate this process's share of the batches; the first process prints and writes the result."""
    from trainer.distributed.ranks import connect, join_ranks

    store = connect(job.launch.timeout)
    with ExitStack() as stack:

        def join() -> Ranks:
            ranks = join_ranks("gloo", job.launch.timeout, store)
            stack.callback(ranks.close)
            return ranks

        if is_first_rank():
            with phases_shown(open_console("auto")):
                result = evaluate_run(job, join)
            _show(*result)
        else:
            stack.enter_context(logs_silenced())
            evaluate_run(job, join)


def evaluate_run(job: EvalJob, join: Callable[[], Ranks] | None = None) -> tuple[CheckpointedModel, Evaluation]:
    """Return the model and its scores.

    Args:
        job: The checked config.
        join: Joins the processes that share the batches. It is called when all that a single process can find wrong is
            known and the data is encoded, so that no process waits for another one that encodes.
    """
    with phase("loading PyTorch"):
        from trainer.builders.checkpointed import load_checkpointed_model, resolve_split, select_split
        from trainer.builders.data import build_split
        from trainer.builders.metrics import build_metrics, check_metrics
        from trainer.evaluate import check_shareable

    folder = find_run_folder(job.run)
    with phase("loading the model"):
        checkpointed = load_checkpointed_model(
            folder,
            job.trust,
            job.stored_overrides,
            checkpoint=select_checkpoint(job.run, job.checkpoint),
            weights=job.weights,
            device=job.device,
        )
        use_kept_rule(folder, checkpointed.origin, checkpointed.task, job.threshold)
        validation = validation_rows(checkpointed, job)
        if job.metrics is not None:
            checkpointed = replace(checkpointed, job=replace(checkpointed.job, metrics=job.metrics))
        job = replace(job, split=resolve_split(job.split, checkpointed.job))
        check_metrics(checkpointed.job, checkpointed.task)
        if join is not None:
            check_shareable(build_metrics(checkpointed.job, checkpointed.task))
    with phase("preparing the data"):
        encoded = build_split(checkpointed.job, checkpointed.task, job.split)
    rows = select_split(encoded, job.split)
    changed = find_changed_keys(checkpointed, job.split, rows)
    if changed:
        check_foreign_rows(checkpointed, job.split, rows)
    ranks = None if join is None else join()
    find_rule(checkpointed, job, ranks, validation)
    evaluation = evaluate_split(
        checkpointed,
        job.split,
        encoded,
        job.precision,
        changed,
        ranks,
        force=job.force,
        keeps_predictions=job.predictions,
        slices=job.slices,
    )
    return checkpointed, evaluation


def _show(checkpointed: CheckpointedModel, evaluation: Evaluation) -> None:
    console = open_console("auto")
    order = _metric_order(checkpointed, evaluation)
    print_scores(console, checkpointed, evaluation)
    print_targets(console, evaluation.targets, order)
    print_slices(console, evaluation.slices, order)


def evaluate_split(
    checkpointed: CheckpointedModel,
    split: str,
    encoded: Encoded,
    precision: PrecisionName,
    changed: Document,
    ranks: Ranks | None = None,
    *,
    force: bool = False,
    keeps_predictions: bool = True,
    slices: Sequence[str] = (),
) -> Evaluation:
    """Compute loss and metrics on the rows of a split and write them to `eval/<name>.json` in the run folder.

    Args:
        checkpointed: The model.
        split: The name of the split.
        encoded: The encoded rows of the split.
        precision: The precision of the forward pass.
        changed: The keys that make the rows differ from the run's own, with their values; empty for its own rows.
        ranks: The processes that share the batches; the first one writes. None is this process alone.
        force: Replace a file of that name that no evaluation has written.
        keeps_predictions: Write `eval/<name>.predictions.parquet`, too.
        slices: Columns of the data: also measure the rows with each of their values. They need the predictions.

    Returns:
        The scores; the first process also returns the intervals.

    Raises:
        ConfigError: There is such a file, and it must not be replaced.
    """
    from trainer.data.quality import digest_of_rows

    rows = encoded.splits[split]
    name, source = file_stem(split), {"digest": digest_of_rows(rows)}
    if changed:
        name = f"{name}-{make_label(split, changed)}-{source['digest'][:8]}"
        source["data"] = " ".join(f"{key}={value}" for key, value in changed.items())
    file, task = checkpointed.folder / EVALUATIONS / f"{name}.json", checkpointed.task
    refuse_to_replace("eval", file, force=force, is_own=is_evaluation)
    refuse_to_replace("eval", predictions_file(file), force=force, is_own=is_predictions)
    if isinstance(task, HasDecisionRule) and task.decision_rule:
        source["decision"] = f"{task.decision_rule.describe()} set after training"
    document = {"split": split, "step": checkpointed.step, "weights": checkpointed.weights, "precision": precision}
    document |= source
    create_folder(file.parent, CheckpointError)
    values = _compute_values(checkpointed, encoded, document, file if keeps_predictions else None, ranks)
    evaluation = Evaluation(name if changed else split, values, {}, {}, [], {})
    if ranks is not None and not ranks.is_first:
        return evaluation
    if keeps_predictions:
        evaluation = _measure(checkpointed, predictions_file(file), encoded, split, slices, evaluation)
    else:
        discard(predictions_file(file))  # of an earlier evaluation
    _write(file, document, evaluation)
    return evaluation


def _compute_values(
    checkpointed: CheckpointedModel, encoded: Encoded, document: Document, file: Path | None, ranks: Ranks | None
) -> dict[str, float]:
    """Return the loss and the metrics of a split, and record what the model says about each row.

    Args:
        checkpointed: The model.
        encoded: The encoded rows.
        document: The split, the precision, and what else the metadata of the predictions contain.
        file: The file of the evaluation, next to which the predictions are written; None writes none.
        ranks: The processes that share the batches; None is this process alone.
    """
    from trainer.builders.loss import can_defer_logits
    from trainer.builders.metrics import build_metrics
    from trainer.builders.model import choose_batching
    from trainer.deferred_logits import deferral
    from trainer.distributed.ranks import Ranks
    from trainer.evaluate import evaluate
    from trainer.precision import Precision
    from trainer.targets import calibrated_scores

    job, task, model, device = checkpointed.job, checkpointed.task, checkpointed.model, checkpointed.device
    assert checkpointed.loss is not None
    metrics = build_metrics(job, task)
    rows = encoded.splits[document["split"]]
    with ExitStack() as stack:
        batches = stack.enter_context(closing(checkpointed.loader(rows, choose_batching(job, model), ranks)))
        stack.enter_context(deferral(model, deferred=can_defer_logits(job, task, model, checkpointed.loss)))
        loss = stack.enter_context(calibrated_scores(model, checkpointed.loss, task))
        recorder: RowRecorder | None = None
        if file is not None:
            recorded = _recorder(
                replace(checkpointed, loss=loss),
                encoded,
                file,
                document,
                ranks or Ranks(),
                {name for name in ("mrr", "uniformity") if name in metrics},
            )
            recorder = stack.enter_context(recorded)
        return evaluate(
            model,
            loss,
            batches,
            metrics,
            precision=Precision(document["precision"], device),
            device=device,
            ranks=ranks,
            recorder=recorder,
        )


def _measure(
    checkpointed: CheckpointedModel,
    predictions: Path,
    encoded: Encoded,
    split: str,
    slices: Sequence[str],
    evaluation: Evaluation,
) -> Evaluation:
    """Return an evaluation with what its predictions say: the intervals, the metrics of each target, and the slices."""
    from trainer.builders.metrics import build_class_metrics
    from trainer.intervals.confidence import read_intervals

    metrics, values = build_class_metrics(checkpointed.job, checkpointed.task), evaluation.values
    is_brief = len(encoded.splits[split]) < _MANY_ROWS
    with phase(f"computing the intervals of {split}", is_brief=is_brief):
        intervals = read_intervals(predictions, values, metrics)
        targets = measure_targets(predictions, checkpointed.job.data.get("columns", {}).get("value"))
    parts: dict[str, list[Document]] = {}
    if slices:
        with phase("measuring the slices"):
            parts = measure_slices(predictions, encoded, split, slices, values, metrics)
    return evaluation._replace(
        intervals=intervals.by_name, no_interval=intervals.missing, targets=targets, slices=parts
    )


def _write(file: Path, document: Document, evaluation: Evaluation) -> None:
    """Write `eval/<name>.json`."""
    intervals = {key: list(interval) for key, interval in evaluation.intervals.items()}
    parts = evaluation._asdict() | {"intervals": intervals}
    known = {key: parts[key] for key in EVALUATION_PARTS if parts[key]}
    write_text(file, to_sealed_json(document | evaluation.values | known, indent=1) + "\n")


@contextmanager
def _recorder(
    checkpointed: CheckpointedModel,
    encoded: Encoded,
    file: Path,
    about: Document,
    ranks: Ranks,
    of_all_rows: Set[str],
) -> Iterator[RowRecorder]:
    """Yield a recorder of predictions, which the first process has written as the block ends.

    Args:
        checkpointed: The model.
        encoded: The encoded rows.
        file: The file of the evaluation.
        about: What the metadata contain.
        ranks: The processes that share the batches.
        of_all_rows: The metrics that depend on all rows together.
    """
    from trainer.row_recorder import RowRecorder, prediction_kind, written_by_first

    task, loss = checkpointed.task, checkpointed.loss
    assert loss is not None
    kind, info = prediction_kind(task), task.info()
    several = kind == "values" and (info.num_outputs or 1) > 1
    about = {"classes": info.class_names, **about}
    schema = predictions_schema(kind, several_values=several, about=about)
    with ExitStack() as stack:
        keep = None
        if ranks.is_first:
            writer = stack.enter_context(predictions_writer(predictions_file(file), schema))
            rows, is_fold = encoded.splits[about["split"]], bool(checkpointed.job.data.get("folds"))
            keep = stack.enter_context(worst_inputs_kept(writer, kind, rows, task, is_fold=is_fold))
        write = stack.enter_context(written_by_first(ranks, schema, keep))
        origins = partial(_origins, encoded, about["split"], hides_files=_names_environment(checkpointed))
        recorder = RowRecorder(task, loss, schema, origins, write, "mrr" in of_all_rows, "uniformity" in of_all_rows)
        yield recorder
        recorder.finish(ranks)


def _names_environment(checkpointed: CheckpointedModel) -> bool:
    """Return whether the paths of the data may contain values of environment variables, which are never stored."""
    return "${" in json.dumps(parse_stored_config(checkpointed.config_text)["data"])


def _origins(encoded: Encoded, split: str, positions: Sequence[int], *, hides_files: bool) -> dict[str, Any]:
    from trainer.data.quality import INPUT_DIGEST

    digests = encoded.splits[split].data.column(INPUT_DIGEST).take(positions).combine_chunks()
    files, lines = (None, None) if hides_files else encoded.origins(split, positions)
    return {"file": files, "line": lines, INPUT_DIGEST: digests}


def is_evaluation(file: Path) -> bool:
    """Return whether a file contains an evaluation that nobody has changed; earlier versions have written no seal."""
    try:
        content = read_bytes(file)
        document = parse_json(content, EVALUATION)
    except (OSError, DocumentError):
        return False
    if CHECKSUM not in document:
        return True
    with suppress(DocumentError):
        check_seal(document)
        return content == json.dumps(document, indent=1).encode() + b"\n"  # earlier versions have written NaN
    return False


def print_scores(console: Console, checkpointed: CheckpointedModel, *evaluations: Evaluation) -> None:
    """Print a table of evaluations of one model, and below it what its numbers do not say."""
    print_table(console, str(checkpointed.folder), *_score_table(checkpointed, evaluations))
    for evaluation in evaluations:
        for note in evaluation.notes():
            print_indented(console, "  ", note if len(evaluations) == 1 else f"{evaluation.name}: {note}")


def _score_table(
    checkpointed: CheckpointedModel, evaluations: Sequence[Evaluation]
) -> tuple[list[str], list[list[object]]]:
    """Return the columns and rows of a table of evaluations: their values, and their intervals if there are some."""
    names = _metric_order(checkpointed, evaluations[0])
    rows: list[list[object]] = []
    for evaluation in evaluations:
        scores = map(evaluation.values.get, names)
        rows.append([evaluation.name, checkpointed.step, checkpointed.weights, *scores])
        if evaluation.intervals:
            ends = [evaluation.intervals.get(name) for name in names]
            shown = [None if pair is None else " to ".join(map(format_number, pair)) for pair in ends]
            rows.append(["95% interval", None, None, *shown])
    return ["split", "step", "weights", *names], rows


def _metric_order(checkpointed: CheckpointedModel, evaluation: Evaluation) -> list[str]:
    """Return the metrics of an evaluation in the order of its tables: the monitored one first."""
    return monitored_first(evaluation.values, checkpointed.job.checkpoint.monitor or checkpointed.task.monitor)
