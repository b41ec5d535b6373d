"""Predict with the model in this folder: one JSON object per row and line, {"error": ...} for a row that is broken."""

from __future__ import annotations

import argparse
import csv
import hashlib
import inspect
import os
import re
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime

BATCH_SIZE = 32
FILE_NAME = re.compile(r"(?![{\[])\S*(/\S*|\.[A-Za-z][A-Za-z0-9]{0,9})")
FORMATS = ("onnx", "onnx_fp16", "onnx_int8")
READERS = {
    "texts": "texts.py",
    "pairs": "texts.py",
    "words": "texts.py",
    "spans": "texts.py",
    "images": "images.py",
    "tables": "tables.py",
}
"""The module of each type of rows; the field "predict.py" of task.json names the types of rows and of answers."""

_FILE = {"file": str, "sha256": str}
_CELLS = {"columns": {str: object}, "list_separator?": str, "separator?": (str, None), "quote?": (str, None)}
SHAPES: dict[str, object] = {
    "manifest.json": {
        "reads": [str],
        "provenance": {"config?": {"data": _CELLS}},
        "tolerance": float,
        "axes": {str: [int, (int, None)]},
        "pad_id": (int, None),
        "artifacts": {str: {**_FILE, "beside?": [_FILE], "exact": bool, "largest_difference": (float, None)}},
        "files": [_FILE],
    },
    "task.json": {"predict.py": [str, str]},
    "labels.json": [str],
    "tags.json": [str],
    "transitions.json": {"start": [float], "between": [[float]], "end": [float]},
    "threshold.json": (float, {str: float}),
    "temperature.json": (float, {str: float}),
    "values.json": {"mean": [float], "std": [float]},
    "image.json": {"size": [int, int], "channels": int, "resize": str, "mean": [float], "std": [float]},
    "table.json": {
        "columns": [
            (
                {"kind": str, "name": str, "missing": bool, "mean": float, "std": float},
                {"kind": str, "name": str, "missing": bool, "categories": [str], "constant": bool},
            )
        ]
    },
    "golden.json": {"top": int, "rows": [{str: object}], "answers": [object]},
}
"""The shape of each document in this folder, as shapes.py explains them."""

Row = dict[str, Any]
Inputs = dict[str, np.ndarray]


class Folder:
    """The files of an export, which are next to this script. If one cannot be used, the process ends with exit code 3.

    Args:
        path: The folder; None is the one of this script.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = Path(__file__).resolve().parent if path is None else path
        self._loaded: dict[str, Any] = {}
        self._has_rule: dict[str, bool] = {}

    def open(self, name: str, read: Callable[[str], Any]) -> Any:
        """Return `read` of the path of a file that has not changed since the export; the result is kept."""
        if name not in self._loaded:
            try:
                if name != "manifest.json":
                    self._compare(name)
                self._loaded[name] = read(str(self.path / name))
            except Exception as error:  # of many types; without the file there are no answers
                if not (self.path / name).exists():
                    self.refuse(name, "is missing")
                # An error of a library may have many lines.
                self.refuse(name, f"is damaged: {' '.join(str(error).split()) or type(error).__name__}")
        return self._loaded[name]

    def _compare(self, name: str) -> None:
        """Compare the checksum of a file with the one in the manifest, if that lists the file."""
        artifacts = self.manifest["artifacts"].values()
        further = [entry for artifact in artifacts for entry in artifact.get("beside", ())]
        checksums = {entry["file"]: entry["sha256"] for entry in (*artifacts, *further, *self.manifest["files"])}
        if name in checksums:
            with open(self.path / name, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != checksums[name]:
                    raise ValueError("does not match its checksum in manifest.json")

    def refuse(self, name: str, problem: str) -> NoReturn:
        """End the process: without the file there are no answers."""
        print(f"{self.path / name}: {problem}. Get the folder again.", file=sys.stderr)
        raise SystemExit(3)

    def read_json(self, name: str) -> Any:
        def read(path: str) -> Any:
            shapes = self.load("shapes.py")
            return shapes["parse_json"](shapes["read_bytes"](path), SHAPES[name])

        return self.open(name, read)

    def read_rule(self, name: str, default: Any) -> Any:
        """Return a part of the rule that was set after training; the default if there is none."""
        if name not in self._has_rule:
            listed = name in (entry["file"] for entry in self.manifest["files"])
            self._has_rule[name] = listed or (self.path / name).exists()
        return self.read_json(name) if self._has_rule[name] else default

    def rule_note(self) -> str | None:
        """Return a sentence about the rule that answers follow if one was set after training."""
        thresholds, temperature = self.read_rule("threshold.json", 0.5), self.read_rule("temperature.json", None)
        names = [*(["thresholds"] if isinstance(thresholds, dict) else []), *(["a temperature"] if temperature else [])]
        return f"note: decides with {' and '.join(names)} set after training." if names else None

    def module_path(self, module: str) -> Path:
        """Return the file of a module that this script loads."""
        if not (self.path / module).is_file():
            self.refuse(module, "is missing")
        return self.path / module

    def load(self, module: str) -> Row:
        """Return the names that a module defines."""
        if module not in self._loaded:
            self._loaded[module] = runpy.run_path(str(self.module_path(module)))
        names: Row = self._loaded[module]
        return names

    @property
    def manifest(self) -> Row:
        manifest: Row = self.read_json("manifest.json")
        if "checked" not in self._loaded:
            self._loaded["checked"] = True
            try:
                self.load("shapes.py")["check_seal"](manifest)
            except ValueError as error:
                self.refuse("manifest.json", f"is damaged: {error}")
        return manifest

    @property
    def max_length(self) -> int:
        """The largest number of tokens."""
        longest = self.manifest["axes"].get("sequence", (1, None))[1]
        if longest is None or not 0 < longest < 2**31:
            self.refuse("manifest.json", f"is damaged: axes: a text has at most {longest} tokens")
        return int(longest)

    def make_task(self) -> tuple[Any, Any]:
        """Return what makes model inputs of rows, and what makes answers of outputs, as task.json says."""
        rows, answers = self.read_json("task.json")["predict.py"]
        if rows not in READERS or answers not in self.load("answers.py")["ANSWERS"]:
            self.refuse("task.json", f"is damaged: unknown types {rows!r} and {answers!r}")
        return self.load(READERS[rows])["READERS"][rows](self), self.load("answers.py")["ANSWERS"][answers](self)


class Predictor:
    """Answers rows with an ONNX file of this folder.

    Args:
        file: Name of the ONNX file.
        keep: Columns of files that answers repeat as input_<column>; "row" is the number of the row.
        folder: The folder; None is the one of this script.
        threads: Number of threads of the model; 0 is the number of cores.
    """

    def __init__(
        self, file: str = "model.onnx", keep: tuple[str, ...] = (), folder: Folder | None = None, threads: int = 0
    ) -> None:
        self.folder = folder or Folder()
        self.rows = self.folder.load("rows.py")
        self.reader, self.answerer = self.folder.make_task()
        self.keep_number = "row" in keep
        self.kept = {f"input_{column}": column for column in keep if column != "row"}
        self.are_files = self.folder.manifest["reads"] == ["image"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised
        options.intra_op_num_threads = threads
        # Threads that spin after a batch would slow the encoding of the next one.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        cpu = ["CPUExecutionProvider"]
        self.session = self.folder.open(file, lambda path: onnxruntime.InferenceSession(path, options, cpu))
        self.input_names = [node.name for node in self.session.get_inputs()]

    def run(self, inputs: Inputs) -> np.ndarray:
        """Return the model's output for its inputs."""
        try:
            used = {name: inputs[name] for name in self.input_names}
            return np.asarray(self.session.run(["output"], used)[0])
        except TimeoutError:  # of a server's session
            raise
        except Exception as error:
            self._refuse_all(error)

    def predict(self, rows: list[Row], top: int = 1) -> list[Row]:
        """Return an answer for each row, {"error": ...} for a row that is broken."""
        if not rows:
            return []
        try:
            inputs: Inputs = self.reader.encode(rows)
        except Exception as error:  # a broken row can raise anything
            if len(rows) == 1:
                return [{"error": self.rows["reason_of"](error)}]
            return [answer for row in rows for answer in self.predict([row], top)]
        return self.answer(self.run(inputs), rows, inputs, top)

    def answer(self, output: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
        """Return the answers for the rows of a batch, given the model's output."""
        try:
            answers: list[Row] = self.answerer.answer(output, rows, inputs, top)
            # Half precision may overflow; the answer to such a row would be any class and no probability.
            for place in find_undefined(output, inputs):
                answers[place] = {"error": "the output of the model is NaN"}
        except Exception as error:
            self._refuse_all(error)
        return answers

    def _refuse_all(self, error: Exception) -> NoReturn:
        """End the process: a document belongs to another model, although each file is intact."""
        self.folder.refuse("", f"the files do not fit together ({type(error).__name__}: {error})")

    def answers(self, sources: list[str], top: int) -> Iterator[list[Row]]:
        """Yield the answers for the rows of all sources in order, batch by batch; errors name the place of the row."""
        reading = self.reader.read_line, {**self.columns(), **self.kept}, self.csv_format(), self.are_files
        for batch in self.rows["batches"](sources, *reading, BATCH_SIZE):
            answers = iter(self.predict([row for _, _, row, _ in batch if row is not None], top))
            placed = []
            for number, place, row, fault in batch:
                answer = {"error": fault} if row is None else next(answers)
                own = {"row": number} if self.keep_number else {}
                own |= {name: row[name] for name in self.kept} if row is not None else {}
                placed.append({**own, "error": f"{place}: {answer['error']}"} if "error" in answer else own | answer)
            yield placed

    def fault_of(self, source: str) -> str | None:
        """Return the problem of an argument: `-`, a file of rows, or a row, which must not look like a missing file."""
        if self.kept and not source.lower().endswith((".csv", ".jsonl")):
            return f"{source}: --keep {' '.join(self.kept.values())} needs a .csv or .jsonl file."
        if os.path.exists(source):
            known = self.are_files or source.lower().endswith(self.rows["SUFFIXES"])
            return None if known else f"{source}: unknown type of file. Known: {', '.join(self.rows['SUFFIXES'])}."
        is_name = source != "-" and (self.are_files or FILE_NAME.fullmatch(source))
        return f"{source}: no such file. Pass a text that looks like a file by standard input." if is_name else None

    def csv_format(self) -> Row:
        """Return the arguments of csv.reader for the files of training."""
        data = self.folder.manifest["provenance"].get("config", {"data": {}})["data"]
        separator, quote = data.get("separator") or ",", data.get("quote", '"')
        quoting = csv.QUOTE_NONE if quote is None else csv.QUOTE_MINIMAL
        return {"delimiter": "\t" if separator == r"\t" else separator, "quotechar": quote, "quoting": quoting}

    def columns(self) -> Row:
        """Return the columns of a file, as in training, by their names in a row."""
        manifest = self.folder.manifest
        if manifest["reads"] == ["features"]:
            return {column["name"]: column["name"] for column in self.folder.read_json("table.json")["columns"]}
        return columns_by_role(manifest)


def find_undefined(output: np.ndarray, inputs: Inputs) -> list[int]:
    """Return the rows whose outputs (B, C), (B, T, C) or (B, C, T, T) of rows, tokens or their pairs contain NaN."""
    undefined = np.isnan(output)
    if output.ndim > 2:
        is_token = inputs["attention_mask"] > 0  # what is computed for padding is not used
        if output.ndim == 3:
            undefined &= is_token[..., None]
        else:
            undefined &= np.triu(is_token[:, None, :, None] & is_token[:, None, None, :])
    places: list[int] = np.flatnonzero(undefined.any(axis=tuple(range(1, output.ndim)))).tolist()
    return places


def columns_by_role(manifest: Row) -> Row:
    """Return the column of a file, or the list of its columns, for each role that the model reads."""
    own = manifest["provenance"].get("config", {"data": {"columns": {}}})["data"]["columns"]
    return {role: own.get(role, role) for role in manifest["reads"]}


def describe(reader: type, answerer: type, columns: Row) -> str:
    """Return the docstrings of two classes, what is read and what is printed, with the names of the columns."""
    read, printed = (inspect.cleandoc(part.__doc__ or "") for part in (reader, answerer))
    for role, column in columns.items():
        if column != role:  # the docstring has the role
            names = [column] if isinstance(column, str) else column
            read = read.replace(f"`{role}`", " and ".join(map(repr, names)))
    return f"{read}\n\n{printed}"


def find_models(folder: Folder) -> Row:
    """Return the entries of the models in the manifest that can be run, by format; there is at least one."""
    models = {name: entry for name, entry in folder.manifest["artifacts"].items() if name in FORMATS}
    if not models:
        folder.refuse("manifest.json", f"lists no model in any of the formats {', '.join(FORMATS)}")
    return models


def allowed_difference(folder: Folder, model: Row) -> float:
    """Return by how much outputs for the golden rows may differ on another machine."""
    tolerance, measured = folder.manifest["tolerance"], model["largest_difference"]
    return float(tolerance if model["exact"] else 2 * measured)


def main() -> int:
    folder = Folder()
    models = find_models(folder)
    reader, answerer = folder.make_task()
    description = describe(type(reader), type(answerer), columns_by_role(folder.manifest))
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=description)
    parser.add_argument("rows", nargs="*", default=["-"], help="default: standard input")
    parser.add_argument("--model", choices=models, default=next(iter(models)), help="default: %(default)s")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--keep", default="", metavar="A,B", help="columns to repeat; row is the row's number")
    parser.add_argument("--check", action="store_true", help="compare with the golden rows, exit code 1 if they differ")
    arguments = parser.parse_args()
    model = models[arguments.model]
    predictor = Predictor(model["file"], tuple(filter(None, arguments.keep.split(","))))
    if arguments.check:
        return 0 if folder.load("check.py")["check"](predictor, allowed_difference(folder, model)) else 1
    if faults := [fault for fault in map(predictor.fault_of, arguments.rows) if fault]:
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    if note := folder.rule_note():
        print(note, file=sys.stderr)
    to_json = folder.load("shapes.py")["to_json"]
    count = broken = 0
    for answers in predictor.answers(arguments.rows, arguments.top):
        print(*(to_json(answer, ensure_ascii=False) for answer in answers), sep="\n", flush=True)
        count, broken = count + len(answers), broken + sum("error" in answer for answer in answers)
    if broken:
        others = "; the others are answered" if broken < count else ""
        print(f"{broken} of {count} {'row' if count == 1 else 'rows'} could not be used{others}.", file=sys.stderr)
    return 6 if broken else 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler waits until the model has answered
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
