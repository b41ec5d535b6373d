"""Predicts with the model in this folder: a JSON object a line for each row, {"error": ...} for a broken one."""

import argparse
import csv
import json
import os
import runpy
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

FOLDER = Path(__file__).resolve().parent
BATCH_SIZE = 32
Row = dict[str, Any]
Inputs = dict[str, np.ndarray]


class Predictor:
    """Rows in, answers out, by an ONNX file of this folder. What rows and answers are is in task.py."""

    def __init__(self, file: str = "model.onnx") -> None:
        self.task = runpy.run_path(str(FOLDER / "task.py"))
        self.session = onnxruntime.InferenceSession(str(FOLDER / file), providers=["CPUExecutionProvider"])

    def run(self, inputs: Inputs) -> np.ndarray:
        wanted = {each.name: inputs[each.name] for each in self.session.get_inputs()}
        return np.asarray(self.session.run(["output"], wanted)[0])

    def predict(self, rows: list[Row], top: int = 1) -> list[Row]:
        try:
            inputs: Inputs = self.task["encode"](rows)
        except Exception as error:  # whatever a broken row makes fail
            if len(rows) == 1:
                return [{"error": f"{type(error).__name__}: {rows[0].get('broken', error)}"}]
            return [answer for row in rows for answer in self.predict([row], top)]
        answers: list[Row] = self.task["answer"](self.run(inputs), rows, inputs, top)
        return answers

    def check(self, limit: float) -> bool:
        """Whether the golden rows give the golden inputs, those the golden output, and that the golden answers."""
        os.chdir(FOLDER)  # golden rows may name files in it
        golden = json.loads(Path("golden.json").read_text("utf-8"))
        inputs = self.task["encode"](golden["rows"])
        with np.load("golden.npz", allow_pickle=False) as arrays:
            tensors = {name.removeprefix("input."): arrays[name] for name in arrays.files}
        output = tensors.pop("output")
        answers = self.task["answer"](output, golden["rows"], inputs, golden["top"])
        found = [(name, apart(inputs[name], tensor), 1e-6) for name, tensor in tensors.items()]
        found.append(("output", apart(self.run(tensors), output), limit))
        found.append(("answers", apart(answers, golden["answers"]), 2e-6))
        for name, difference, allowed in found:
            result = "ok" if difference <= allowed else "FAILED"
            print(f"{result}: {name}: largest difference {difference:.3g}, allowed {allowed:g}")
        return all(difference <= allowed for _, difference, allowed in found)


def apart(found: Any, expected: Any) -> float:
    """The largest difference of two numbers, relative to those above 1; infinite where anything else differs."""
    if isinstance(expected, np.ndarray):
        return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return max((apart(found[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        return max(map(apart, found, expected), default=0.0)
    if isinstance(expected, float) and isinstance(found, float):
        return abs(found - expected) / max(1.0, abs(expected))
    return 0.0 if found == expected else float("inf")


def read_rows(source: str, read_line: Callable[[str], Row]) -> Iterator[Row]:
    suffix = os.path.splitext(source)[1]
    if source == "-" or suffix not in (".txt", ".jsonl", ".csv") or not os.path.isfile(source):
        yield from (read_row(line, read_line) for line in (sys.stdin if source == "-" else [source]))
        return
    with open(source, encoding="utf-8-sig", newline="") as file:
        lines = (line for line in file if suffix == ".txt" or line.strip())
        read = read_line if suffix == ".txt" else json.loads
        for row in csv.DictReader(file) if suffix == ".csv" else (read_row(line, read) for line in lines):
            image = {"image": os.path.join(os.path.dirname(source), row["image"])} if "image" in row else {}
            yield {**row, **image}


def read_row(line: str, read: Callable[[str], Any]) -> Row:
    try:
        return dict(read(line.rstrip("\r\n")))
    except (ValueError, TypeError) as error:
        return {"broken": error}


def main() -> int:
    manifest = json.loads((FOLDER / "manifest.json").read_text("utf-8"))
    found = manifest["artifacts"]
    models = {name: found[name] for name in ("onnx", "onnx_fp16", "onnx_int8") if name in found}
    parser = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.description = runpy.run_path(str(FOLDER / "task.py"))["__doc__"]
    parser.add_argument("rows", nargs="*", default=["-"], help="default: standard input")
    parser.add_argument("--model", choices=models, default=next(iter(models)), help="default: %(default)s")
    parser.add_argument("--top", type=int, default=1, metavar="N", help="default: 1")
    parser.add_argument("--check", action="store_true", help="compare with the golden rows, exit code 1 if they differ")
    arguments = parser.parse_args()
    model = models[arguments.model]
    predictor = Predictor(model["file"])
    if arguments.check:
        return 0 if predictor.check(manifest["tolerance"] if model["exact"] else 2 * model["largest_difference"]) else 1
    rows = (row for source in arguments.rows for row in read_rows(source, predictor.task["read_line"]))
    broken = False
    while batch := list(islice(rows, BATCH_SIZE)):
        for answer in predictor.predict(batch, arguments.top):
            broken |= "error" in answer
            print(json.dumps(answer, ensure_ascii=False), flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
