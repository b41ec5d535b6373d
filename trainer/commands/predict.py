"""`trainer predict`: a run's answers to rows without targets."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from trainer.commands.folders import argument, existing_run_folder
from trainer.config.jobs import PredictJob
from trainer.config.signatures import attribute
from trainer.config.stored import exported_config, load_stored_config
from trainer.errors import CheckpointError, ConfigError, DataError, format_error, raise_if_any
from trainer.export.script import RUN
from trainer.layout import EXPORT, EXPORT_MANIFEST, ONNX
from trainer.predict.asked import Reading, rows_of
from trainer.predict.given import read_given
from trainer.predict.writing import writing

if TYPE_CHECKING:
    from trainer.predict.answering import Answering, Tally, Window

_TOLD = 100
"""Rows that cannot be used are told one by one up to so many; the output has them all."""

_NO_VECTORS = format_error(
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
    alone = None if job.run is None or job.backend == "torch" else exported_config(job.run)
    folder = existing_run_folder(job.run) if alone is None else Path(str(job.run))
    graph = _graph(folder / EXPORT if alone is None else folder)
    _check(job, folder, graph, alone)
    from trainer.commands.answering import answering_of, answering_of_artifact
    from trainer.predict.answering import Tally

    if alone is None:
        answering, reading = answering_of(job, folder, graph if job.backend == "onnx" else None)
    else:
        assert graph is not None, "it was checked"
        answering, reading = answering_of_artifact(job, graph, alone)
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


def _graph(folder: Path) -> Path | None:
    """The ONNX file that answers, of a folder of artifacts; None where there is none."""
    try:
        # The manifest comes last: without it the artifacts are not complete, or not proved.
        found = json.loads((folder / EXPORT_MANIFEST).read_text("utf-8"))["artifacts"]
        files = [folder / found[name]["file"] for name in RUN if name in found]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((file for file in files if file.is_file()), None)


def _check(job: PredictJob, folder: Path, graph: Path | None, alone: Mapping[str, Any] | None) -> None:
    """Whether there is what is to answer and it can, as far as that can be known before anything heavy is loaded."""
    faults = []
    config = load_stored_config(folder, key="run") if alone is None else alone
    task = str(config["task"]["_target_"])
    # The target of a task that makes vectors follows from its keys.
    if job.neighbours is not None and task.startswith("trainer.") and attribute(task, "target") is not None:
        faults.append(_NO_VECTORS)
    if alone is not None:
        own = {"checkpoint": "best", "weights": "auto", "precision": "fp32"}
        wrong = [(key, getattr(job, key)) for key, usual in own.items() if getattr(job, key) != usual]
        wrong += [("device", job.device)] if job.device not in ("auto", "cpu") else []
        remedy = "Leave it out, or name the run folder"
        faults += [
            format_error(key, "is of a run, and this is a folder of artifacts", remedy, value=v) for key, v in wrong
        ]
    absent = graph is None and (alone is not None or job.backend == "onnx")
    if absent:
        name, where, run = ("run", folder / EXPORT, folder) if alone is None else ("folder", folder, Path("PATH"))
        remedy = f"Write one: trainer export {argument('run', run)} export.formats=[onnx]"
        faults.append(format_error("backend", f"the {name} has no such artifact", remedy, value=str(where / ONNX)))
    if absent and len(faults) == 1:
        raise CheckpointError(*faults)
    raise_if_any(*faults)


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
                raise DataError(format_error("corpus", "holds no text", value=str(corpus)))
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
        others = "; the others are answered" if tally.num_faults < tally.num_rows else ""
        raise DataError(f"{tally.num_faults} of {tally.num_rows} rows could not be used{others}.")


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
