"""The scripts that are copied beside the artifacts, run as their user would: in a process of its own."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.bare import bare, run_bare
from tests.export.conftest import Published
from tests.export.toy import ToyModel, ToyTask

TEXTS = ["w1 w2 w3", "w4", " ".join(["w7", "w8"] * 30)]


def run(folder: Path, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def expected(top: int = 1) -> list[dict[str, Any]]:
    """PyTorch's answers to `TEXTS`."""
    task, rows = ToyTask(), {"text": TEXTS}
    encoded = task.encode_inputs(rows)
    with torch.no_grad():
        output = ToyModel().eval()(**task.inputs_of(encoded, "padded"))
    return task.answers(output, rows=rows, encoded=encoded, batching="padded", top=top)


def assert_answers(result: subprocess.CompletedProcess[str], top: int = 1) -> None:
    assert (result.returncode, result.stderr) == (0, "")
    for got, want in zip(map(json.loads, result.stdout.splitlines()), expected(top), strict=True):
        assert got.keys() == want.keys()
        assert got["label"] == want["label"]
        assert got["probability"] == pytest.approx(want["probability"], abs=2e-6)
        assert got.get("probabilities") == pytest.approx(want.get("probabilities"), abs=2e-6)


def test_texts_as_arguments(published: Published) -> None:
    assert_answers(run(published.folder, *TEXTS))


def test_texts_as_lines(published: Published) -> None:
    assert_answers(run(published.folder, "--top", "2", lines="\n".join(TEXTS) + "\n"), top=2)


def test_texts_without_this_tool_and_without_torch(published: Published, tmp_path: Path) -> None:
    assert_answers(run_bare(bare(tmp_path), str(published.folder / "predict.py"), *TEXTS))


def test_texts_in_files(published: Published, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"\ufeff{TEXTS[0]}\r\n", "utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXTS[1], "more": None}) + "\n\n", "utf-8")
    (tmp_path / "c.csv").write_text(f'more,text\n"1,\n2",{TEXTS[2]}\n', "utf-8")
    assert_answers(run(published.folder, *(str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.csv"))))


def test_broken_rows_stop_no_others(published: Published, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}) for text in TEXTS]
    broken = ['{"txt": "w1"}', '{"text": ', '{"text": " "}', "[1]"]
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], *broken, *lines[1:]]), "utf-8")
    result = run(published.folder, str(tmp_path / "rows.jsonl"))
    assert (result.returncode, result.stderr) == (1, "")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["error"].partition(":")[0] for answer in answers[1:5]] == [
        "KeyError",
        "KeyError",
        "ValueError",
        "KeyError",
    ]
    assert "Expecting value" in answers[2]["error"]
    assert [answer["label"] for answer in (answers[0], *answers[5:])] == [answer["label"] for answer in expected()]


def test_a_blank_line_is_a_row(published: Published) -> None:
    result = run(published.folder, lines=f"{TEXTS[0]}\n\n{TEXTS[1]}\n")
    assert result.returncode == 1
    assert ["error" in json.loads(line) for line in result.stdout.splitlines()] == [False, True, False]


@pytest.fixture
def copy(published: Published, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published.folder, tmp_path / "copy"))


def test_check_holds(copy: Path) -> None:
    result = run(copy, "--check")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(":")[:2] for line in result.stdout.splitlines()] == [
        ["ok", " input_ids"],
        ["ok", " attention_mask"],
        ["ok", " output"],
        ["ok", " answers"],
    ]


def test_check_sees_another_model(copy: Path) -> None:
    with np.load(copy / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output"][-1, -1] += 0.01
    np.savez(copy / "golden.npz", **arrays)
    result = run(copy, "--check")
    assert result.returncode == 1
    assert "FAILED: output: largest difference 0.01, allowed 0.0001" in result.stdout


def test_check_sees_another_tokenizer(copy: Path) -> None:
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    words = content["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    file.write_text(json.dumps(content), "utf-8")
    result = run(copy, "--check")
    assert result.returncode == 1
    assert "FAILED: input_ids: largest difference 1, allowed" in result.stdout


@pytest.mark.parametrize("labels", [["green", "red", "blue"], ["red", "green"]])
def test_check_sees_other_labels(copy: Path, labels: list[str]) -> None:
    (copy / "labels.json").write_text(json.dumps(labels), "utf-8")
    result = run(copy, "--check")
    assert result.returncode == 1
    assert "FAILED: answers: largest difference inf" in result.stdout or "IndexError" in result.stderr


def test_scripts_need_three_packages_alone(published: Published) -> None:
    imported = set()
    for name in ("predict.py", "task.py"):
        source = (published.folder / name).read_text("utf-8")
        assert len(source.splitlines()) <= 120
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom):
                imported.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "tokenizers"}
