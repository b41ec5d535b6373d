"""The exported model that is served: its rows, its answers, and what a client must know about them."""

from __future__ import annotations

import base64
import binascii
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from itertools import cycle, islice, pairwise
from pathlib import Path
from threading import Lock, Thread
from time import monotonic, perf_counter, sleep
from typing import Any, NoReturn
from weakref import ref

import numpy as np
import onnxruntime

from trainer import shapes
from trainer.errors import CheckpointError, ConfigError, ProofError, format_error
from trainer.export.bundle.predict import Folder, Inputs, Predictor, Row, allowed_difference, find_models
from trainer.layout import EXPORT_MANIFEST, GOLDEN_ROWS, PREDICT_SCRIPT, TASK
from trainer.serve.columns import Columns

_MODULES = Path(__file__).parent.parent / "export/bundle"
_MAX_CATEGORIES = 200
"""Categories of a column that a description lists; the others are allowed too."""

TOKENS_PER_CALL = 32
"""Tokens that take as long as a call of the model: reading all weights once costs as much as using them for about 10
tokens on one core and 40 on many, whatever their number."""

QUICK_SECONDS = 0.002
"""Time for which the event loop may answer rows itself and do nothing else."""

_REMEDY = "Export it again: trainer export"


class ExportFolder(Folder):
    """The files of an export. Modules come from this package: no code in the folder is run."""

    def module_path(self, module: str) -> Path:
        """Return the file of a module in this package."""
        return Path(shapes.__file__) if module == Path(shapes.__file__).name else _MODULES / module

    def refuse(self, name: str, problem: str) -> NoReturn:
        """Raise CheckpointError: without the file there are no answers."""
        raise CheckpointError(format_error(str(self.path / name), problem, "Get the folder again, or export it again"))


class TimedSession:
    """A session of ONNX Runtime that ends calls that take too long: a graph may contain a loop that has no end.

    Args:
        session: The session.
        seconds: The longest time of a call.
    """

    def __init__(self, session: onnxruntime.InferenceSession, seconds: float) -> None:
        self._session, self._seconds = session, seconds
        self._deadlines: dict[onnxruntime.RunOptions, float] = {}
        Thread(target=_end_late_calls, args=(ref(self), min(1.0, seconds / 4)), name="deadlines", daemon=True).start()

    def run(self, names: list[str], inputs: Inputs) -> list[np.ndarray]:
        """Return outputs by name.

        Raises:
            TimeoutError: The call has taken too long.
        """
        options = onnxruntime.RunOptions()
        options.log_severity_level = 4  # errors are raised
        self._deadlines[options] = monotonic() + self._seconds
        try:
            outputs: list[np.ndarray] = self._session.run(names, inputs, options)
        except Exception:
            if options.terminate:
                raise TimeoutError from None
            raise
        finally:
            del self._deadlines[options]
        return outputs

    def end_late_calls(self) -> None:
        """End the calls whose time is over."""
        now = monotonic()
        for options, deadline in [*self._deadlines.items()]:
            if deadline < now:
                options.terminate = True


def _end_late_calls(session: ref[TimedSession], interval: float) -> None:
    """End late calls of a session as long as it exists."""
    while (own := session()) is not None:
        own.end_late_calls()
        del own
        sleep(interval)


class EncodedImage(BytesIO):
    """The bytes of an image, which messages name by its field."""

    def __str__(self) -> str:
        return "image"


class ServedModel:
    """An ONNX file of an export folder with its task.

    Args:
        folder: The export folder.
        artifact: The format to serve; None is the first of onnx, onnx_fp16, onnx_int8 in the manifest.
        threads: Number of threads of the model; 0 is the number of cores.
        timeout: Seconds after which a call of the model ends with TimeoutError; None is no limit.

    Attributes:
        file: Name of the ONNX file.
        rows: The type of rows: `texts`, `pairs`, `words`, `spans`, `images` or `tables`.
        answers: The type of answers: `classes`, `labels`, `values`, `embeddings`, `tags`, `spans`, `masked`,
            `next_tokens`.
        length: Returns the characters of a row; None if the time that a row takes does not depend on them.
        reason_of: Returns why a row is broken, given the exception that it raised.

    Raises:
        CheckpointError: The folder is no export, is damaged or has no such artifact.
    """

    def __init__(
        self, folder: Path, artifact: str | None = None, threads: int = 0, timeout: float | None = None
    ) -> None:
        self.folder = ExportFolder(folder)
        if not (folder / EXPORT_MANIFEST).is_file():
            problem = "is not a folder of artifacts"
            raise CheckpointError(format_error("run", problem, f"{_REMEDY} run=RUN", value=str(folder)))
        models = find_models(self.folder)
        if artifact is not None and artifact not in models:
            raise ConfigError(format_error("artifact", f"the folder has {', '.join(models)}", _REMEDY, value=artifact))
        if PREDICT_SCRIPT not in (read_document(folder / TASK) or {}):
            problem = f"has no {PREDICT_SCRIPT}, so what its rows and answers are is known to its task only"
            raise CheckpointError(format_error(str(folder), problem, "Use trainer predict"))
        self._model = models[artifact or next(iter(models))]
        self.file = str(self._model["file"])
        self.rows, self.answers = map(str, self.folder.read_json(TASK)[PREDICT_SCRIPT])
        self._predictor = Predictor(self.file, folder=self.folder, threads=threads)
        self._timeout = timeout
        if timeout is not None:
            self._predictor.session = TimedSession(self._predictor.session, timeout)
        reading = self.folder.load("rows.py")
        self._pick, self.reason_of = reading["pick"], reading["reason_of"]
        self._columns = self._predictor.columns()
        self._column_names = [  # a text may have several
            name for column in self._columns.values() for name in ([column] if isinstance(column, str) else column)
        ]
        # Cells of a table and bytes of an image are not divided into tokens, so the characters do not matter.
        self.length: Callable[[Row], int] | None = None if self.rows in ("tables", "images") else count_characters
        self._encoding, self._computing = Lock(), Lock()  # a tokenizer serves one thread at a time

    @property
    def rule_note(self) -> str | None:
        """Return a sentence about thresholds or a temperature that were set after training."""
        return self.folder.rule_note()

    def check(self) -> bool:
        """Compare the answers to the golden rows with those of the trained model; False if there are no golden rows.

        Raises:
            ProofError: They differ.
            CheckpointError: The model does not answer in time.
        """
        if not (self.folder.path / GOLDEN_ROWS).is_file():
            return False
        with self._answers_in_time():
            equal = self.folder.load("check.py")["check"](self._predictor, allowed_difference(self.folder, self._model))
        if not equal:
            problem = "does not give the golden answers on this machine"
            remedy = "Export it again here, or lower the number of formats to those that trainer export proves"
            raise ProofError(format_error(str(self.folder.path / self.file), problem, remedy))
        return True

    def parse(self, item: object) -> Row:
        """Return a row of a request: a text, or an object with the columns of training.

        Raises:
            ValueError: It is no such row.
        """
        if isinstance(item, str) and self.rows != "images":  # as a line, it would be a path
            row: Row = self._predictor.reader.read_line(item)
            return row
        if self.rows == "tables" and isinstance(item, dict):
            return item  # its columns have the names of training; `encode` says which are missing
        if isinstance(item, str):
            item = dict.fromkeys(self._column_names, item)
        row = self._pick(item, self._columns)
        return {**row, "image": decode_image(row["image"])} if self.rows == "images" else row

    def answer(self, rows: list[Row] | Columns, top: int) -> list[Row]:
        """Return an answer for each row, {"error": ...} for a row that is broken. Only tables have columns.

        Several threads may call this: one encodes its rows while the model computes the outputs of the other.
        """
        if isinstance(rows, Columns):
            try:
                with self._encoding:
                    inputs = self._predictor.reader.encode_columns(rows.cells)
            except Exception:  # then a row is broken; row by row, each gets its reason
                return self.answer(rows.rows(), top)
            return self._answer_inputs(inputs, [{}] * len(rows), top)  # answers of tables repeat nothing of their rows
        try:
            with self._encoding:
                inputs = self._predictor.reader.encode(rows)
        except Exception as error:  # a broken row can raise anything
            if len(rows) == 1:
                return [{"error": self.reason_of(error)}]
            half = len(rows) // 2
            return self.answer(rows[:half], top) + self.answer(rows[half:], top)
        return self._answer_inputs(inputs, rows, top)

    def _answer_inputs(self, inputs: Inputs, rows: list[Row], top: int) -> list[Row]:
        answers: list[Row] = [{}] * len(rows)
        for places, part in split_by_length(inputs):
            with self._computing:
                output = self._predictor.run(part)
            with self._encoding:  # answers that contain tokens use the tokenizer, too
                part_answers = self._predictor.answer(output, [rows[place] for place in places], part, top)
            for place, answer in zip(places, part_answers, strict=True):
                answers[place] = answer
        return answers

    def count_quick_rows(self, batch_size: int) -> int:
        """Return how many rows the model answers in `QUICK_SECONDS`; 0 if rows differ in their time, as texts do.

        Raises:
            CheckpointError: The model does not answer in time.
        """
        golden = read_document(self.folder.path / GOLDEN_ROWS) if self.rows == "tables" else None
        if not golden or not golden["rows"]:
            return 0
        rows = list(islice(cycle(golden["rows"]), batch_size))
        seconds = []
        for _ in range(5):
            begin = perf_counter()
            with self._answers_in_time():
                self.answer(rows, 1)
            seconds.append(perf_counter() - begin)
        return int(QUICK_SECONDS / min(seconds) * batch_size)

    @contextmanager
    def _answers_in_time(self) -> Iterator[None]:
        """Refuse the folder if the model does not answer its golden rows in time."""
        try:
            yield
        except TimeoutError:
            problem = f"does not answer its golden rows within {self._timeout:g} seconds (timeout)"
            remedy = "Set a larger timeout, or get the folder again"
            raise CheckpointError(format_error(str(self.folder.path / self.file), problem, remedy)) from None

    def describe(self) -> dict[str, Any]:
        """Return what a client must know: the columns of a row, and an example of rows with their answers."""
        golden = read_document(self.folder.path / GOLDEN_ROWS) or {"rows": [], "answers": []}
        # Golden rows contain neither images in base64 nor the columns that were joined to a text.
        has_example = self.rows != "images" and len(self._column_names) == len(self._columns)
        examples = [self._request_row(row) for row in golden["rows"][:1]] if has_example else []
        return {
            "name": self.folder.path.resolve().parent.name,
            "file": self.file,
            "rows": self.rows,
            "answers": self.answers,
            "columns": self._describe_columns(),
            "example": {"rows": examples, "answers": golden["answers"][:1]} if has_example else None,
        }

    def _request_row(self, row: Row) -> Row:
        """Return a golden row under the columns of training."""
        return row if self.rows == "tables" else {column: row.get(role) for role, column in self._columns.items()}

    def _describe_columns(self) -> list[dict[str, Any]]:
        if self.rows != "tables":
            kinds = {"words": "words", "images": "image"}
            return [{"name": name, "kind": kinds.get(self.rows, "text")} for name in self._column_names]
        return [
            {"name": column["name"], "kind": column["kind"]}
            | ({"categories": column["categories"][:_MAX_CATEGORIES]} if column["kind"] != "number" else {})
            for column in self.folder.read_json("table.json")["columns"]
        ]


def count_characters(value: object) -> int:
    """Return the characters of all texts in a row, also in a list of words."""
    if isinstance(value, str):
        return len(value)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(count_characters, inner))


def split_by_length(inputs: Inputs) -> list[tuple[list[int], Inputs]]:
    """Divide a batch into parts of rows of similar length, so that little of them is padding.

    Returns:
        The rows and the inputs of each part. Of all divisions by length, their padded tokens and calls cost least.
    """
    if "attention_mask" not in inputs:  # all rows have one size
        return [(list(range(len(next(iter(inputs.values()))))), inputs)]
    lengths = inputs["attention_mask"].sum(axis=1)
    order = np.argsort(lengths, kind="stable")
    parts = []
    for start, end in pairwise(_cut([int(length) for length in lengths[order]])):
        places = order[start:end]
        width = int(lengths[places[-1]])
        parts.append((places.tolist(), {name: tensor[places, :width] for name, tensor in inputs.items()}))
    return parts


def _cut(lengths: list[int]) -> list[int]:
    """Return the bounds of the parts that cost least, given the lengths of rows, which ascend.

    The least cost of the first `end` rows is the minimum over `start` of cost[start] + width * (end - start), where
    width is the length of the last row. So each start is a line in width; later starts have smaller slopes and width
    never decreases. The lower envelope of the lines therefore gives all minima in one pass (the convex hull trick).
    """
    costs, starts = [0], [0]  # of the first rows, and where their last part starts
    envelope: deque[int] = deque()

    def crossing(first: int, second: int) -> float:
        """Return the width from which the line of a later start is the lower one."""
        return (costs[second] - costs[first]) / (second - first)

    for end, width in enumerate(lengths, start=1):
        start = end - 1
        while len(envelope) > 1 and crossing(envelope[-1], start) <= crossing(envelope[-2], envelope[-1]):
            envelope.pop()
        envelope.append(start)
        while len(envelope) > 1 and crossing(envelope[0], envelope[1]) <= width:
            envelope.popleft()
        costs.append(costs[envelope[0]] + width * (end - envelope[0]) + TOKENS_PER_CALL)
        starts.append(envelope[0])
    bounds = [len(lengths)]
    while bounds[-1]:
        bounds.append(starts[bounds[-1]])
    return bounds[::-1]


def decode_image(value: object) -> EncodedImage:
    """Return the image that a row contains in base64, with or without the start of a data URL.

    Raises:
        ValueError: It contains none. The name of a file is none: the server opens no file for a client.
    """
    if not isinstance(value, str):
        raise ValueError(f"expected an image in base64, got {type(value).__name__}")
    start, comma, rest = value.partition(",")
    try:
        return EncodedImage(base64.b64decode(rest if comma and start.startswith("data:") else value, validate=True))
    except (binascii.Error, ValueError):
        raise ValueError("expected an image in base64") from None


def read_document(path: Path) -> Mapping[str, Any] | None:
    """Return a JSON object; None if the file does not exist or contains none."""
    try:
        document = shapes.parse_json(shapes.read_bytes(path), {})
    except (OSError, shapes.DocumentError):
        return None
    assert isinstance(document, dict)
    return document
