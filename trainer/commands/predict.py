"""`trainer predict`: a run's answers to rows without targets."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainer.commands.folders import existing_run_folder
from trainer.config.jobs import PredictJob
from trainer.errors import CheckpointError, ConfigError, DataError, explain, refuse
from trainer.predict.asked import Reading, is_readable, known_kinds, rows_of
from trainer.predict.writing import check_output, writing

if TYPE_CHECKING:
    from trainer.predict.answering import Answering, Tally, Window

_TOLD = 100
"""Rows that cannot be used are told one by one up to so many; the output has them all."""


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
    given, corpus, output = _checked(job)
    folder = existing_run_folder(job.run)
    graph = _graph(folder) if job.backend == "onnx" else None
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


def _checked(job: PredictJob) -> tuple[Path | str | None, Path | None, Path | None]:
    """What is read and written, as far as that can be checked before anything heavy is loaded."""
    faults: list[str] = []
    output = None if job.output in (None, "-") else Path(str(job.output)).expanduser()
    given: Path | str | None = None
    corpus: Path | str | None = None
    try:
        given = _located("input", job.input)
    except ConfigError as error:
        faults += error.messages
    try:
        corpus = _located("corpus", job.corpus)
        if isinstance(corpus, str):
            faults.append(explain("corpus", "must be a file", value=job.corpus))
    except ConfigError as error:
        faults += error.messages
    if output is not None:
        try:
            check_output(output)
        except ConfigError as error:
            faults += error.messages
        if isinstance(given, Path) and output.exists() and output.resolve() == given.resolve():
            faults.append(explain("output", "is the input", "Name another file", value=job.output))
    refuse(*faults)
    return given, corpus if isinstance(corpus, Path) else None, output


def _graph(folder: Path) -> Path:
    """The artifact that answers in the model's place."""
    graph = folder / "export" / "model.onnx"
    # The manifest comes last: without it the artifacts are not complete, or not proved.
    if not graph.is_file() or not (graph.parent / "manifest.json").is_file():
        remedy = f"Write one: trainer export run={folder} export.formats=[onnx]"
        raise CheckpointError(explain("backend", "the run has no such artifact", remedy, value=str(graph)))
    return graph


def _located(key: str, given: str | None) -> Path | str | None:
    """A file or folder that is there, else the text itself; None for standard input."""
    if given in (None, "-"):
        return None
    if not given:  # no path: that would be the working directory
        return given
    path = Path(given).expanduser()
    try:
        there = path.exists()
    except (OSError, ValueError):  # too long for a name, or with a zero in it
        return given
    if there and not is_readable(path):
        raise ConfigError(explain(key, "is a file of no known kind", known_kinds(), value=given))
    if there:
        return path
    if given.split() != [given] or not (is_readable(path) or given.startswith(("/", "./", "../", "~"))):
        return given
    beside = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    similar = get_close_matches(path.name, beside, n=1, cutoff=0.7)
    remedy = f"Did you mean {path.parent / similar[0]}" if similar else f"Paths are relative to {Path.cwd()}"
    raise ConfigError(explain(key, "no such file", remedy, value=given))


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
        problem = "are of vectors, and the run's task makes none"
        raise ConfigError(explain("neighbours", problem, "Train one: trainer train task=sentence_embedding"))
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
