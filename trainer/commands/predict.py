"""`trainer predict`: predictions of a run's model, or of its exported graph, for rows without targets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from trainer.commands.decision import note_rule, rule_problems, set_threshold, use_kept_rule
from trainer.commands.run_folders import find_run_folder, run_argument, select_checkpoint
from trainer.config.jobs import PredictJob, TrainJob
from trainer.config.signatures import attribute
from trainer.config.stored import blaming_config, exported_config, load_stored_config, with_overrides
from trainer.config.trust import resolve_environment, trust_problems
from trainer.data.cells import short_repr, unescape_tab
from trainer.data.line_reader import first_line_of
from trainer.display import counted, print_lines
from trainer.documents import SHAPES, TRANSITION_SCORES, UNSEALED, is_sealed, read_document, read_export_manifest
from trainer.errors import CheckpointError, ConfigError, DataError, format_error, raise_if_any
from trainer.layout import (
    CHECKPOINTS,
    EXPORT,
    EXPORT_MANIFEST,
    ONNX,
    PREDICT_FORMATS,
    PREDICT_SCRIPT,
    TASK,
    TRANSITIONS,
    Document,
)
from trainer.predict.files import PredictionPaths, open_output, resolve_paths
from trainer.predict.input_rows import RowFormat, read_rows
from trainer.progress import phase
from trainer.protocols import Prediction
from trainer.report.console import open_console
from trainer.report.screen import phases_shown

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from trainer.precision import Precision
    from trainer.predict.neighbors import Corpus
    from trainer.predict.predictor import Forward, Predictor, RowCounts, Window
    from trainer.protocols import Batching, Task

_MAX_PRINTED_ERRORS = 100
"""Errors of single rows that are printed; the output contains all of them."""

_CELL_FORMAT = {"list_separator": " ", "separator": None, "quote": '"'}
"""Format of cells if the source does not declare it."""

_ARTIFACT_DEFAULTS = {"checkpoint": ("best",), "weights": ("auto",), "precision": ("fp32",), "device": ("auto", "cpu")}
"""Keys that an artifact folder does not support, and the values that are accepted for it."""

_NO_EMBEDDINGS = format_error(
    "neighbours",
    "needs a task that computes embeddings",
    "Train one: trainer train task=sentence_embedding",
)


def run(job: PredictJob, config: Document) -> None:
    """Predict each row of the input in order: one JSON object per line, or a file.

    Raises:
        ConfigError: An input does not exist, or the run cannot predict it.
        CheckpointError: The run, its checkpoint or its artifact cannot be used.
        DataError: Some rows could not be used; the others were predicted.
    """
    paths = resolve_paths(job.input, job.corpus, job.output, force=job.force)
    with phases_shown(open_console("auto")), phase("loading the model"):
        predictor, row_format = load_predictor(job)
    from trainer.predict.predictor import RowCounts

    counts = RowCounts()
    # On a terminal, the error that a printed row contains would be there twice.
    most_errors = 0 if paths.output is None and sys.stdout.isatty() else _MAX_PRINTED_ERRORS
    num_printed = num_written = 0
    with open_output(paths.output) as write:
        for window in _predict(job, paths, predictor, row_format, counts):
            for row, prediction in window:
                if row.error is not None and (num_printed := num_printed + 1) <= most_errors:
                    print_lines(row.error)
                write(prediction)
                num_written += 1
            if paths.output is None:
                sys.stdout.flush()
    if paths.output is not None:
        print_lines(f"{paths.output}: {counted(num_written, 'row')}", to=sys.stdout)
    _conclude(counts, predictor)


def load_predictor(job: PredictJob) -> tuple[Predictor, RowFormat]:
    """Load the model or the artifact that predicts, and the format of the rows that it reads.

    Raises:
        ConfigError: The run cannot predict with these keys.
        CheckpointError: The run, its checkpoint or its artifact cannot be used.
    """
    exported = None if job.run is None or job.backend == "torch" else exported_config(job.run)
    folder = find_run_folder(job.run) if exported is None else Path(str(job.run))
    graph = _find_graph(folder / EXPORT if exported is None else folder)
    _check(job, folder, graph, exported)
    if exported is None:
        return _load_from_run(job, folder, graph if job.backend == "onnx" else None)
    assert graph is not None, "it was checked"
    return _load_from_artifacts(job, graph, exported)


def _find_graph(folder: Path) -> Path | None:
    """Return the ONNX file of an artifact folder that `predict` can run; None if there is none."""
    # The manifest is written last: without it the artifacts are incomplete or not proved.
    manifest = read_export_manifest(folder) or {"artifacts": {}}
    artifacts = manifest["artifacts"]
    files = [folder / artifacts[name]["file"] for name in PREDICT_FORMATS if name in artifacts]
    return next((file for file in files if file.is_file()), None)


def _check(job: PredictJob, folder: Path, graph: Path | None, exported: Document | None) -> None:
    """Report everything that prevents the prediction and shows before anything heavy is loaded."""
    problems = []
    config = load_stored_config(folder, key="run") if exported is None else exported
    problems += rule_problems(config, job.threshold)
    task = str(config["task"]["_target_"])
    # Tasks that compute embeddings have no fixed target: it depends on their keys.
    if job.neighbours is not None and task.startswith("trainer.") and attribute(task, "target") is not None:
        problems.append(_NO_EMBEDDINGS)
    if exported is not None:
        unsupported = [key for key, values in _ARTIFACT_DEFAULTS.items() if getattr(job, key) not in values]
        problem, remedy = "applies only to a run, not to an artifact folder", "Leave it out, or name the run folder"
        problems += [format_error(key, problem, remedy, value=getattr(job, key)) for key in unsupported]
    needs_graph = exported is not None or job.backend == "onnx"
    if graph is None and needs_graph:
        owner, path, run = ("run", folder / EXPORT, folder) if exported is None else ("folder", folder, Path("PATH"))
        remedy = f"Write one: trainer export {run_argument('run', run)} export.formats=[onnx]"
        problem = f"the {owner} has no such artifact"
        problems.append(format_error("backend", problem, remedy, value=str(path / ONNX)))
        if len(problems) == 1:
            raise CheckpointError(*problems)
    raise_if_any(*problems)


def prediction_config(written: Document, job: TrainJob, task: Task) -> Document:
    """Return the part of a run's config that predictions from its artifacts need; it names no file of the run.

    Args:
        written: The run's config as it is stored: references to the environment are not resolved.
        job: The same, resolved; the format of cells and the batch size are needed as values and cannot be secrets.
        task: The run's task.

    Returns:
        The keys `task`, `data` and `loader` of the config.
    """
    columns = _find_columns(written["data"])
    types = {"text": (str, list)}  # a text may have several columns
    known = {
        role: columns[role] for role in task.input_columns() if isinstance(columns.get(role), types.get(role, str))
    }
    cells = {key: job.data.get(key, default) for key, default in _CELL_FORMAT.items()}
    return {
        # The task's state contains the tokenizer.
        "task": written["task"] | ({"tokenizer": None} if "tokenizer" in written["task"] else {}),
        "data": {"columns": known, **cells},
        "loader": {"eval_batch_size": job.loader.eval_batch_size},
    }


def _load_from_artifacts(job: PredictJob, graph: Path, config: Document) -> tuple[Predictor, RowFormat]:
    """Load an exported graph and its task; needs nothing but the artifact folder.

    Args:
        job: The checked config.
        graph: The file of the graph.
        config: The result of `prediction_config`, as the folder's manifest contains it.

    Raises:
        CheckpointError: The folder is damaged, or names code that is not trusted.
    """
    from trainer.builders.instantiate import instantiate
    from trainer.export.folder import blaming_artifact, require_intact
    from trainer.predict.predictor import Predictor

    if problems := trust_problems(config, job.trust, [path for path, _ in job.stored_overrides]):
        raise CheckpointError(*problems)
    require_intact(graph, [TASK])
    config = resolve_environment(with_overrides(config, job.stored_overrides))
    with blaming_config(graph.parent / EXPORT_MANIFEST):
        task: Task = instantiate("task", config["task"])
    try:
        state = read_document(graph.parent / TASK, SHAPES[TASK], "Copy the artifact folder again")
        state.pop(PREDICT_SCRIPT, None)  # for the script next to the artifacts, not for the task
        task.load_state_dict(state)
    except CheckpointError:
        raise
    except Exception as error:  # many types: the folder may come from anywhere
        problem = f"cannot be used ({type(error).__name__}: {first_line_of(error)})"
        remedy = "Copy the artifact folder again"
        raise CheckpointError(format_error(str(graph.parent / TASK), problem, remedy)) from error
    note_rule(graph.parent / TASK, task, job.threshold)
    set_threshold(task, job.threshold)
    if not is_sealed(read_export_manifest(graph.parent) or {}):
        print_lines(f"note: {graph.parent}: {UNSEALED}.")
    forward = _load_graph(graph, task)
    batch_size = config["loader"]["eval_batch_size"]
    predictor = Predictor(task, forward, "padded", batch_size, job.top, partial(blaming_artifact, graph))
    return predictor, _row_format(config["data"], task, job)


def _load_from_run(job: PredictJob, folder: Path, graph: Path | None) -> tuple[Predictor, RowFormat]:
    """Load the model of a checkpoint, or an exported graph and the run's task.

    Args:
        job: The checked config.
        folder: The run folder.
        graph: The file of the graph; None uses the model.

    Raises:
        CheckpointError: The checkpoint or the artifact cannot be used.
        ConfigError: The run's task cannot predict.
    """
    from trainer.builders.checkpointed import load_checkpointed_model, load_task
    from trainer.builders.model import choose_batching
    from trainer.checkpoint.store import Store
    from trainer.export.folder import blaming_artifact, require_intact
    from trainer.precision import Precision
    from trainer.predict.predictor import Predictor, check_task

    checkpoint = select_checkpoint(job.run, job.checkpoint)

    batching: Batching = "padded"
    if graph is not None:
        # The weights are not read.
        snapshot = Store(folder / CHECKPOINTS, keep=2).load(checkpoint, on_demand=True)
        own, task = load_task(snapshot, job.trust, job.stored_overrides, needs_loss=False)
        require_intact(graph)
        _use_transitions(graph.parent, task)
        forward = _load_graph(graph, task)
        origin = (read_export_manifest(graph.parent) or {"provenance": {}})["provenance"]
    else:
        checkpointed = load_checkpointed_model(
            folder,
            job.trust,
            job.stored_overrides,
            checkpoint=checkpoint,
            weights=job.weights,
            device=job.device,
            needs_loss=False,
        )
        own, task, origin = checkpointed.job, checkpointed.task, checkpointed.origin
        batching = "packed" if choose_batching(own, checkpointed.model) == "packed" else "padded"
        model = checkpointed.inference_model().eval()
        forward = _make_forward(model, checkpointed.device, Precision(job.precision, checkpointed.device))
    check_task(task)
    use_kept_rule(folder, origin, task, job.threshold)
    set_threshold(task, job.threshold)
    context = nullcontext if graph is None else partial(blaming_artifact, graph)
    predictor = Predictor(task, forward, batching, own.loader.eval_batch_size, job.top, context)
    return predictor, _row_format(own.data, task, job)


def _use_transitions(folder: Path, task: Task) -> None:
    """Give the task of a run the scores of transitions between tags in an artifact folder, if there are some.

    Raises:
        CheckpointError: The file of the scores is missing or altered.
    """
    from trainer.export.folder import require_intact
    from trainer.protocols import UsesTagTransitions
    from trainer.tags import parse_transitions

    listed = {entry["file"] for entry in (read_export_manifest(folder) or {"files": []})["files"]}
    if not isinstance(task, UsesTagTransitions) or TRANSITIONS not in listed:
        return
    require_intact(folder / TRANSITIONS)
    document = read_document(folder / TRANSITIONS, TRANSITION_SCORES, "Export it again: trainer export")
    task.transitions = parse_transitions(document, len(task.info().class_names or ()))


def _make_forward(model: nn.Module, device: torch.device, precision: Precision) -> Forward:
    import torch

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        with torch.inference_mode(), precision.autocast():
            output: Tensor = model(**{name: value.to(device) for name, value in inputs.items()})
        return output

    return forward


def _load_graph(path: Path, task: Task) -> Forward:
    """Return the function of a graph, whose outputs have the width of the task."""
    from trainer.export.folder import raise_if_no_memory
    from trainer.export.formats.onnx import open_session

    try:
        forward, _, _ = open_session(path, has_signals=True)
    except Exception as error:  # ONNX Runtime raises types of its own
        raise_if_no_memory(error)  # some releases compute a constant when they load it
        reason = str(error).strip().splitlines()[0]
        remedy = "Export it again: trainer export"
        raise CheckpointError(format_error(str(path), f"cannot be loaded ({reason})", remedy)) from error
    info = task.info()

    def checked(inputs: Mapping[str, Tensor]) -> Tensor:
        output = forward(inputs)
        is_wide = info.output_level is None and info.num_outputs is not None and output.ndim == 2
        if is_wide and output.shape[1] != info.num_outputs:
            raise ValueError(f"a row has {output.shape[1]} outputs, but the task has {info.num_outputs}")
        return output

    return checked


def _find_columns(data: Document) -> Document:
    """Return the columns of the run's own data by role."""
    columns: Document = {"text": data["text"]} if "text" in data else {}
    return columns | (dict(data["columns"]) if isinstance(data.get("columns"), Mapping) else {})


def _row_format(data: Document, task: Task, job: PredictJob) -> RowFormat:
    """Return the columns of the run's own data, replaced by those that the command line names."""
    from trainer.protocols import HasNumericColumns

    cells: Document = {key: data.get(key, default) for key, default in _CELL_FORMAT.items()}
    cells |= {key: unescape_tab(cells[key]) for key in ("list_separator", "separator") if cells[key]}
    if len(cells["separator"] or "") > 1:  # of another format, such as CoNLL
        cells["separator"] = None
    return RowFormat(
        roles=tuple(task.input_columns()),
        columns=_find_columns(data) | {role: name for role, name in vars(job.columns).items() if name is not None},
        numeric=task.numeric if isinstance(task, HasNumericColumns) else {},
        keep=tuple(job.keep),
        **cells,
    )


def _predict(
    job: PredictJob, paths: PredictionPaths, predictor: Predictor, row_format: RowFormat, counts: RowCounts
) -> Iterator[Window]:
    if paths.corpus is None:
        yield from predictor.predict(read_rows(paths.input, row_format), counts)
        return
    assert job.neighbours is not None, "the config was checked"
    if predictor.task.target not in ("views", "similarity"):
        raise ConfigError(_NO_EMBEDDINGS)
    from trainer.predict.neighbors import Corpus

    with TemporaryDirectory() as folder:
        corpus = Corpus(Path(folder))
        try:
            for window in predictor.predict(read_rows(paths.corpus, row_format), counts):
                for row, prediction in window:
                    if row.error is not None:
                        print_lines(row.error)
                    elif row.values is not None:
                        corpus.add(row.number, row.values["text"], prediction["embedding"])
            if not len(corpus):
                raise DataError(format_error("corpus", "contains no text", value=str(paths.corpus)))
            for window in predictor.predict(read_rows(paths.input, row_format), counts):
                yield from _replace_by_neighbors(window, corpus, job.neighbours, predictor.batch_size)
        finally:
            corpus.close()


def _replace_by_neighbors(window: Window, corpus: Corpus, count: int, batch_size: int) -> Iterator[Window]:
    import numpy as np

    rest = iter(window)
    while part := list(islice(rest, batch_size)):
        vectors = [prediction["embedding"] for row, prediction in part if row.error is None]
        neighbors: Iterator[Sequence[Prediction]] = iter(corpus.nearest(np.array(vectors), count) if vectors else [])
        yield [
            (row, prediction if row.error is not None else {"neighbours": next(neighbors)}) for row, prediction in part
        ]


def _conclude(counts: RowCounts, predictor: Predictor) -> None:
    """Print notes about truncated rows and unknown categories, and raise DataError if some rows could not be used."""
    if counts.num_truncated:
        length = predictor.task.axis_limits().get("sequence", (1, 0))[1]
        texts = counted(counts.num_truncated, "text", "was", of=counts.num_rows)
        print_lines(f"note: {texts} truncated to {length} tokens (task.max_length)")
    if counts.num_unknown:
        rows = counted(counts.num_unknown, "row", "has", of=counts.num_rows)
        first = [f"{short_repr(value)} in column {name!r} ({place})" for (name, value), place in counts.unknown.items()]
        such_as = f", such as {', '.join(first)}" if first else ""
        print_lines(
            f"note: {rows} categories that the model does not know{such_as}: they were not among the most frequent "
            "ones of training (task.max_categories)"
        )
    if counts.num_errors:
        others = "; the others were predicted" if counts.num_errors < counts.num_rows else ""
        raise DataError(f"{counted(counts.num_errors, 'row', of=counts.num_rows)} could not be used{others}.")
