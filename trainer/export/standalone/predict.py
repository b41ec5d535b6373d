"""Predicts with the model in this folder: a JSON object a line for each row, {"error": ...} for a broken one."""

import argparse
import json
import os
import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent
BATCH_SIZE = 32
FILE_NAME = re.compile(r"(?![{\[])\S*(/\S*|\.[A-Za-z][A-Za-z0-9]{0,9})")
Row = dict[str, Any]
Inputs = dict[str, np.ndarray]


class Predictor:
    """Rows in, answers out, by an ONNX file of this folder. What rows and answers are is in task.py."""

    def __init__(self, file: str = "model.onnx") -> None:
        self.task, self.rows = load("task.py"), load("rows.py")
        self.manifest = self.task["read_json"]("manifest.json")
        self.are_files = self.manifest["reads"] == ["image"]
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        cpu = ["CPUExecutionProvider"]
        self.session = self.task["opened"](file, lambda path: onnxruntime.InferenceSession(path, options, cpu))

    def run(self, inputs: Inputs) -> np.ndarray:
        wanted = {each.name: inputs[each.name] for each in self.session.get_inputs()}
        return np.asarray(self.session.run(["output"], wanted)[0])

    def predict(self, rows: list[Row], top: int = 1) -> list[Row]:
        if not rows:
            return []
        try:
            inputs: Inputs = self.task["encode"](rows)
        except Exception as error:  # whatever a broken row makes fail
            if len(rows) == 1:
                return [{"error": self.rows["reason_of"](error)}]
            return [answer for row in rows for answer in self.predict([row], top)]
        answers: list[Row] = self.task["answer"](self.run(inputs), rows, inputs, top)
        return answers

    def answers(self, sources: list[str], top: int) -> Iterator[list[Row]]:
        """Of the rows of all sources in their order, batch by batch; errors say where the row is."""
        reading = self.task["read_line"], self.columns(), self.are_files
        for batch in self.rows["batches"](sources, *reading, BATCH_SIZE):
            found = iter(self.predict([row for _, row, _ in batch if row is not None], top))
            whole = [(place, {"error": fault} if row is None else next(found)) for place, row, fault in batch]
            yield [{"error": f"{place}: {each['error']}"} if "error" in each else each for place, each in whole]

    def fault_of(self, source: str) -> str | None:
        """What is wrong with an argument, which is `-`, a file of rows or a row: an image's file, or else no file."""
        if os.path.exists(source):
            known = self.are_files or source.lower().endswith(self.rows["KINDS"])
            return None if known else f"{source}: is a file of no known kind. Known: {', '.join(self.rows['KINDS'])}."
        named = source != "-" and (self.are_files or FILE_NAME.fullmatch(source))
        return f"{source}: no such file. A text that looks like one comes by standard input." if named else None

    def columns(self) -> Row:
        """The columns of a file, by their names in a row: those of training."""
        if self.manifest["reads"] == ["features"]:
            return {column["name"]: column["name"] for column in self.task["read_json"]("table.json")["columns"]}
        own = self.manifest["provenance"].get("config", {"data": {"columns": {}}})["data"]["columns"]
        return {role: own.get(role, role) for role in self.manifest["reads"]}


def load(name: str) -> Row:
    if not (FOLDER / name).is_file():
        print(f"{FOLDER / name}: is missing. Get the folder again.", file=sys.stderr)
        raise SystemExit(3)
    return runpy.run_path(str(FOLDER / name))


def main() -> int:
    task = load("task.py")
    manifest = task["read_json"]("manifest.json")
    models = {name: each for name, each in manifest["artifacts"].items() if name in ("onnx", "onnx_fp16", "onnx_int8")}
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=task["__doc__"])
    parser.add_argument("rows", nargs="*", default=["-"], help="default: standard input")
    parser.add_argument("--model", choices=models, default=next(iter(models)), help="default: %(default)s")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--check", action="store_true", help="compare with the golden rows, exit code 1 if they differ")
    given = parser.parse_args()
    model = models[given.model]
    predictor = Predictor(model["file"])
    if given.check:
        limit = manifest["tolerance"] if model["exact"] else 2 * model["largest_difference"]
        return 0 if load("check.py")["check"](predictor, limit) else 1
    if faults := [each for each in map(predictor.fault_of, given.rows) if each]:
        print(*faults, sep="\n", file=sys.stderr)
        return 2
    count = broken = 0
    for answers in predictor.answers(given.rows, given.top):
        print(*(json.dumps(answer, ensure_ascii=False) for answer in answers), sep="\n", flush=True)
        count, broken = count + len(answers), broken + sum("error" in answer for answer in answers)
    if broken:
        others = "; the others are answered" if broken < count else ""
        print(f"{broken} of {count} rows could not be used{others}.", file=sys.stderr)
    return 6 if broken else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read the answers has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
