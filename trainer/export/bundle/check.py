"""Compares this machine's results for the golden rows with the trained model's."""

import sys
from typing import Any

import numpy as np


def check(predictor: Any, limit: float) -> bool:
    """Return whether the golden rows give the golden inputs, these the golden output, and that the golden answers."""
    folder = predictor.folder
    path = folder.path / "golden.json"
    if not path.is_file():
        print(f"{path}: is missing. Exports with export.golden=0 have no golden rows.", file=sys.stderr)
        raise SystemExit(3)
    golden = folder.read_json("golden.json")
    rows = golden["rows"]
    if predictor.are_files:
        rows = [{**row, "image": str(folder.path / row["image"])} for row in rows]
    tensors = dict(folder.open("golden.npz", read_arrays))
    inputs = predictor.reader.encode(rows)
    if "output" not in tensors or not tensors.keys() <= {*inputs, "output"}:
        folder.refuse("golden.npz", f"is damaged: contains {', '.join(tensors) or 'nothing'}")
    output = tensors.pop("output")
    answers = predictor.answer(output, rows, inputs, golden["top"])
    results = [(name, difference(inputs[name], tensor), 1e-6) for name, tensor in tensors.items()]
    results.append(("output", difference(predictor.run(tensors), output), limit))
    results.append(("answers", difference(answers, golden["answers"]), 2e-6))
    for name, value, allowed in results:
        result = "ok" if value <= allowed else "FAILED"
        print(f"{result}: {name}: largest difference {value:.3g}, allowed {allowed:g}")
    return all(value <= allowed for _, value, allowed in results)


def read_arrays(path: str) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name.removeprefix("input."): arrays[name] for name in arrays.files}


def difference(value: Any, expected: Any) -> float:
    """Return the largest difference of two numbers, relative for numbers above 1; infinity if anything else differs."""
    if isinstance(expected, np.ndarray):
        return float(np.abs(value - expected).max()) if value.shape == expected.shape else float("inf")
    if isinstance(expected, dict) and isinstance(value, dict) and value.keys() == expected.keys():
        return max((difference(value[key], expected[key]) for key in expected), default=0.0)
    if isinstance(expected, list) and isinstance(value, list) and len(value) == len(expected):
        return max(map(difference, value, expected), default=0.0)
    if isinstance(expected, float) and isinstance(value, float):
        return abs(value - expected) / max(1.0, abs(expected))
    return 0.0 if value == expected else float("inf")
