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

from tests.export.conftest import Published
from tests.support.bare_python import bare, run_bare
from tests.support.export_models import ToyModel, ToyTask

TEXTS = ["w1 w2 w3", "w4", " ".join(["w7", "w8"] * 30)]


def run(folder: Path, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def expected(top: int = 1) -> list[dict[str, Any]]:
    """PyTorch's answers to `TEXTS`."""
    task, rows = ToyTask(), {"text": TEXTS}
    encoded = task.encode_inputs(rows)
    with torch.no_grad():
        output = ToyModel().eval()(**task.model_inputs(encoded, "padded"))
    return task.predictions(output, rows=rows, encoded=encoded, batching="padded", top=top)


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
    lines = [json.dumps({"text": text}).encode() for text in TEXTS]
    broken = [b'{"txt": "w1"}', b'{"text": ', b'{"text": " "}', b"[1]", b'{"text": "\xff"}', b'{"text": ["w1"]}', b""]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([lines[0], *broken, *lines[1:]]))
    result = run(published.folder, str(file))
    assert (result.returncode, result.stderr) == (6, "6 of 9 rows could not be used; the others are answered.\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["error"].removeprefix(f"{file}, ") for answer in answers[1:7]] == [
        "line 2: has no column 'text'. It has 'txt'",
        "line 3: broken JSON at column 10: Expecting value",
        "line 4: is empty",
        "line 5: expected an object in JSON, got list",
        "line 6: is not UTF-8",
        "line 7: expected a text, got list",
    ]
    assert [answer["label"] for answer in (answers[0], *answers[7:])] == [answer["label"] for answer in expected()]


def test_broken_tables_stop_no_others(published: Published, tmp_path: Path) -> None:
    files = {
        "cells.csv": b'more,text\n1,w1 w2 w3\n2\n3,"w"4\n4,\n5,w4\n',
        "columns.csv": b"more,txt\n1,w1\n",
        "twice.csv": b"text,text\nw1,w2\n",
        "empty.csv": b"",
        "bytes.csv": b"text\nw\xff\nw4\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = run(published.folder, *(str(tmp_path / name) for name in files))
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert (result.returncode, result.stderr) == (6, "7 of 10 rows could not be used; the others are answered.\n")
    assert [answer.get("error", answer.get("label")).removeprefix(f"{tmp_path}/") for answer in answers] == [
        expected()[0]["label"],
        "cells.csv, line 3: broken CSV: expected 2 cells as in the header, got 1",
        "cells.csv, line 4: broken CSV: ',' expected after '\"'",
        "cells.csv, row 4: is empty",
        expected()[1]["label"],
        "columns.csv: needs one column 'text'. It has 'more', 'txt'",
        "twice.csv: needs one column 'text'. It has 'text', 'text'",
        "empty.csv: needs one column 'text'. It has none",
        "bytes.csv, row 1: is not UTF-8",
        expected()[1]["label"],
    ]


def test_a_blank_line_is_a_row(published: Published) -> None:
    result = run(published.folder, lines=f"\ufeff{TEXTS[0]}\n\n{TEXTS[1]}\n")
    assert result.returncode == 6
    first, blank, last = map(json.loads, result.stdout.splitlines())
    assert [first["label"], last["label"]] == [answer["label"] for answer in expected()[:2]]
    assert blank == {"error": "standard input, line 2: is empty"}


def test_a_line_is_answered_before_the_next_one_is_waited_for(published: Published) -> None:
    command = [sys.executable, "-I", str(published.folder / "predict.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text, want in zip(TEXTS, expected(), strict=True):
            print(text, file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline())["label"] == want["label"]


def test_a_file_that_is_not_there_is_no_text(published: Published, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("text\n")
    result = run(published.folder, "w1", "zh.cs", "gone/rows", str(tmp_path / "rows.tsv"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "zh.cs: no such file. Pass a text that looks like a file by standard input.",
        "gone/rows: no such file. Pass a text that looks like a file by standard input.",
        f"{tmp_path}/rows.tsv: unknown type of file. Known: .txt, .jsonl, .csv.",
    ]


def test_columns_of_a_file_have_the_names_of_training(copy: Path, tmp_path: Path) -> None:
    manifest = json.loads((copy / "manifest.json").read_text("utf-8"))
    manifest["provenance"]["config"] = {"data": {"columns": {"text": "content"}}}
    (copy / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    (tmp_path / "rows.csv").write_text("content\n" + "\n".join(TEXTS), "utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "w1", "Content": "w2"}), "utf-8")

    assert_answers(run(copy, str(tmp_path / "rows.csv")))
    assert_answers(run(copy, *TEXTS))
    result = run(copy, str(tmp_path / "rows.jsonl"))
    assert "rows.jsonl, line 1: has no column 'content'. It has 'text', 'Content'" in result.stdout
    assert (result.returncode, result.stderr) == (6, "1 of 1 rows could not be used.\n")


@pytest.mark.parametrize(
    "name", ["model.onnx", "tokenizer.json", "labels.json", "manifest.json", "rows.py", "task.json", "texts.py"]
)
def test_a_folder_that_is_not_whole(copy: Path, name: str) -> None:
    (copy / name).unlink()
    result = run(copy, "w1")
    problem = f"{copy / name}: is missing. Get the folder again.\n"
    assert (result.returncode, result.stdout, result.stderr) == (3, "", problem)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "labels.json", "manifest.json"])
def test_a_folder_that_is_damaged(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-100] + b"\0" * 3)
    result = run(copy, "w1")
    problem = f"{copy / name}: is damaged. Get the folder again.\n"
    assert (result.returncode, result.stdout, result.stderr) == (3, "", problem)


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
    for name in ("predict.py", "texts.py", "answers.py", "rows.py", "check.py"):
        source = (published.folder / name).read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("trainer."):
                imported.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "tokenizers"}
