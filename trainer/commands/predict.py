"""`trainer predict`: a run's answers to rows without targets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainer.commands.folders import existing_run_folder
from trainer.config.jobs import PredictJob
from trainer.config.signature import attribute
from trainer.config.stored import load_stored_config
from trainer.errors import CheckpointError, ConfigError, DataError, explain, refuse
from trainer.predict.asked import Reading, rows_of
from trainer.predict.given import read_given
from trainer.predict.writing import writing

if TYPE_CHECKING:
    from trainer.predict.answering import Answering, Tally, Window

_TOLD = 100
"""Rows that cannot be used are told one by one up to so many; the output has them all."""

_NO_VECTORS = explain(
    "neighbours",
    "are of vectors, and the run's task makes none",
    "Train one: trainer train task=sentence_embedding",
)


def run(job: PredictJob, config: dict[str, Any]) -> None:
    """Answers each row of the input, in its order: one JSON object a line, or a file.

    Args:
        job: The checked config.
        config: The same as plain data; not needed.

    Raises:
        ConfigError: An input is not there, or the run cannot answer it.
        CheckpointError: The run, its checkpoint or its artifact cannot be used.
        DataError: Rows could not be used; the others were answered.
    """
    given, corpus, output = read_given(job.input, job.corpus, job.output)
    folder = existing_run_folder(job.run)
    graph = folder / "export" / "model.onnx" if job.backend == "onnx" else None
    _check_run(job, folder, graph)
    from trainer.commands.answering import answering_of
    from trainer.predict.answering import Tally

    answering, reading = answering_of(job, folder, graph)
    tally = Tally()
    windows = _answered(job, given, corpus, answering, reading, tally)
    with writing(output) as write:
        told = 0
        for window in windows:
            for row, answer in window:
                if row.fault is not None and (told := told + 1) <= _TOLD:
                    _tell(row.fault)
                write(answer)
            if output is None:
                sys.stdout.flush()
    _conclude(tally, answering)


def _check_run(job: PredictJob, folder: Path, graph: Path | None) -> None:
    """Whether the run can answer, as far as that can be known before anything heavy is loaded."""
    faults = []
    task = str(load_stored_config(folder, key="run")["task"]["_target_"])
    # The target of a task that makes vectors follows from its keys.
    if job.neighbours is not None and task.startswith("trainer.") and attribute(task, "target") is not None:
        faults.append(_NO_VECTORS)
    # The manifest comes last: without it the artifacts are not complete, or not proved.
    absent = graph is not None and not (graph.is_file() and (graph.parent / "manifest.json").is_file())
    if absent:
        remedy = f"Write one: trainer export run={folder} export.formats=[onnx]"
        faults.append(explain("backend", "the run has no such artifact", remedy, value=str(graph)))
    if absent and len(faults) == 1:
        raise CheckpointError(*faults)
    refuse(*faults)


def _answered(
    job: PredictJob,
    given: Path | str | None,
    corpus: Path | None,
    answering: Answering,
    reading: Reading,
    tally: Tally,
) -> Iterator[Window]:
    if corpus is None:
        yield from answering.windows(rows_of(given, reading), tally)
        return
    assert job.neighbours is not None, "the config was checked"
    if answering.task.target not in ("views", "similarity"):
        raise ConfigError(_NO_VECTORS)
    from trainer.predict.neighbours import Corpus

    with TemporaryDirectory() as folder:
        texts = Corpus(Path(folder))
        try:
            for window in answering.windows(rows_of(corpus, reading), tally):
                for row, answer in window:
                    if row.fault is not None:
                        _tell(row.fault)
                    elif row.values is not None:
                        texts.add(row.number, row.values["text"], answer["embedding"])
            if not len(texts):
                raise DataError(explain("corpus", "holds no text", value=str(corpus)))
            for window in answering.windows(rows_of(given, reading), tally):
                yield from _nearest(window, texts, job.neighbours, answering.batch_size)
        finally:
            texts.close()


def _nearest(window: Window, texts: Any, count: int, size: int) -> Iterator[Window]:
    import numpy as np

    rest = iter(window)
    while part := list(islice(rest, size)):
        vectors = [answer["embedding"] for row, answer in part if row.fault is None]
        found: Iterator[Sequence[Any]] = iter(texts.nearest(np.array(vectors), count) if vectors else [])
        yield [(row, answer if row.fault is not None else {"neighbours": next(found)}) for row, answer in part]


def _conclude(tally: Tally, answering: Answering) -> None:
    if tally.num_truncated:
        length = answering.task.axis_limits().get("sequence", (1, 0))[1]
        _tell(f"note: {tally.num_truncated} of {tally.num_rows} texts were cut at {length} tokens (task.max_length)")
    if tally.num_faults:
        raise DataError(f"{tally.num_faults} of {tally.num_rows} rows could not be used; the others are answered.")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
