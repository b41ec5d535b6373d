"""Compares what this machine makes of the golden rows with what the trained model made of them."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).resolve().parent


def check(predictor: Any, limit: float) -> bool:
    """Whether the golden rows give the golden inputs, those the golden output, and that the golden answers."""
    path = FOLDER / "golden.json"
    if not path.is_file():
        print(f"{path}: is missing. Exports with export.golden=0 have no golden rows.", file=sys.stderr)
        raise SystemExit(3)
    task = predictor.task
    golden = task["read_json"]("golden.json")
    rows = [{**row, **({"image": str(FOLDER / row["image"])} if predictor.are_files else {})} for row in golden["rows"]]
    inputs = task["encode"](rows)
    with task["opened"]("golden.npz", lambda path: np.load(path, allow_pickle=False)) as arrays:
        tensors = {name.removeprefix("input."): arrays[name] for name in arrays.files}
    output = tensors.pop("output")
    answers = task["answer"](output, rows, inputs, golden["top"])
    found = [(name, apart(inputs[name], tensor), 1e-6) for name, tensor in tensors.items()]
    found.append(("output", apart(predictor.run(tensors), output), limit))
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
