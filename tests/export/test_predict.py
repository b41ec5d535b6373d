"""The script that is copied beside the artifacts, run as its user would: in a process of its own."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.export.conftest import Published
from tests.export.toy import ToyModel, ToyTask, inputs_of

TEXTS = ["w1 w2 w3", "w4", " ".join(["w7", "w8"] * 30)]


def run(folder: Path, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def assert_predictions(output: str) -> None:
    samples = [[int(word[1:]) for word in text.split()][:24] for text in TEXTS]
    with torch.no_grad():
        expected = ToyTask().predictions(ToyModel().eval()(**inputs_of(samples)))
    got = [json.loads(line) for line in output.splitlines()]
    assert [row["label"] for row in got] == [row["label"] for row in expected]
    assert [row["probability"] for row in got] == pytest.approx([row["probability"] for row in expected], abs=2e-6)


def test_texts_as_arguments(published: Published) -> None:
    result = run(published.folder, *TEXTS)
    assert (result.returncode, result.stderr) == (0, "")
    assert_predictions(result.stdout)


def test_texts_as_lines(published: Published) -> None:
    result = run(published.folder, lines="\n".join(TEXTS) + "\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert_predictions(result.stdout)


def test_check(published: Published, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(published.folder, tmp_path / "copy"))
    result = run(folder, "--check")
    assert result.returncode == 0
    assert result.stdout.startswith("ok: largest difference ")
    with np.load(folder / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output"][-1, -1] += 0.01
    np.savez(folder / "golden.npz", **arrays)
    result = run(folder, "--check")
    assert result.returncode == 1
    assert result.stdout.startswith("FAILED: largest difference 0.01, tolerance 0.0001")


def test_script_needs_three_packages_alone(published: Published) -> None:
    source = (published.folder / "predict.py").read_text("utf-8")
    tree = ast.walk(ast.parse(source))
    imported = {
        name.partition(".")[0]
        for node in tree
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "tokenizers"}
    assert len(source.splitlines()) <= 120
