"""The scripts next to the artifacts, run as their users would, and the answers of every task's script."""

import ast
import base64
import csv
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from starlette.testclient import TestClient

from tests.export.conftest import Published
from tests.support.answers import assert_close
from tests.support.bare_python import bare, run_bare
from tests.support.documents import edit_manifest
from tests.support.export_models import ToyModel, ToyTask
from tests.support.jobs import TINY, working_in, write_roles
from tests.support.sources import write_idx
from trainer.cli import main
from trainer.export.bundle_files import script_usage
from trainer.export.folder import describe
from trainer.serve.app import Service
from trainer.serve.batcher import Batcher, LoopBatcher
from trainer.serve.model import ServedModel
from trainer.serve.prediction import Limits

TEXTS = ["w1 w2 w3", "w4", " ".join(["w7", "w8"] * 30)]


def run_script(folder: Path, *arguments: str, lines: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(folder / "predict.py"), *arguments]
    return subprocess.run(command, input=lines, capture_output=True, text=True, check=False)


def expected(top: int = 1) -> list[dict[str, Any]]:
    """Return PyTorch's answers to `TEXTS`."""
    task, rows = ToyTask(), {"text": TEXTS}
    encoded = task.encode_inputs(rows)
    with torch.no_grad():
        output = ToyModel().eval()(**task.model_inputs(encoded, "padded"))
    return task.predictions(output, rows=rows, encoded=encoded, batching="padded", top=top)


def assert_answers(result: subprocess.CompletedProcess[str], top: int = 1) -> None:
    assert (result.returncode, result.stderr) == (0, "")
    for ours, theirs in zip(map(json.loads, result.stdout.splitlines()), expected(top), strict=True):
        assert ours.keys() == theirs.keys()
        assert ours["label"] == theirs["label"]
        assert ours["probability"] == pytest.approx(theirs["probability"], abs=2e-6)
        assert ours.get("probabilities") == pytest.approx(theirs.get("probabilities"), abs=2e-6)


def test_texts_as_arguments_are_answered(published: Published) -> None:
    assert_answers(run_script(published.folder, *TEXTS))


def test_texts_as_lines_are_answered(published: Published) -> None:
    assert_answers(run_script(published.folder, "--top", "2", lines="\n".join(TEXTS) + "\n"), top=2)


def test_script_needs_neither_this_package_nor_torch(published: Published, tmp_path: Path) -> None:
    assert_answers(run_bare(bare(tmp_path), str(published.folder / "predict.py"), *TEXTS))


def test_texts_in_files_are_answered(published: Published, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"\ufeff{TEXTS[0]}\r\n", "utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": TEXTS[1], "more": None}) + "\n\n", "utf-8")
    (tmp_path / "c.csv").write_text(f'more,text\n"1,\n2",{TEXTS[2]}\n', "utf-8")
    assert_answers(run_script(published.folder, *(str(tmp_path / name) for name in ("a.txt", "b.jsonl", "c.csv"))))
    kept = run_script(published.folder, "--keep", "more,row", *(str(tmp_path / name) for name in ("b.jsonl", "c.csv")))
    rows = [json.loads(line) for line in kept.stdout.splitlines()]
    assert [(row["row"], row["input_more"], row["label"] != "") for row in rows] == [
        (1, None, True),
        (1, "1,\n2", True),
    ]
    refused = run_script(published.folder, "--keep", "more", str(tmp_path / "a.txt"))
    assert (refused.returncode, refused.stderr.partition("--keep")[1]) == (2, "--keep")


def test_broken_rows_do_not_stop_the_others(published: Published, tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}).encode() for text in TEXTS]
    broken = [b'{"txt": "w1"}', b'{"text": ', b'{"text": " "}', b"[1]", b'{"text": "\xff"}', b'{"text": ["w1"]}', b""]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([lines[0], *broken, *lines[1:]]))
    result = run_script(published.folder, str(file))
    assert (result.returncode, result.stderr) == (6, "6 of 9 rows could not be used; the others are answered.\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["error"].removeprefix(f"{file}, ") for answer in answers[1:7]] == [
        "line 2: has no column 'text'. It has 'txt'",
        "line 3: broken JSON at column 10: Expecting value",
        "line 4: is empty",
        "line 5: expected an object in JSON, got an array",
        "line 6: is not UTF-8",
        "line 7: expected a text, got list",
    ]
    assert [answer["label"] for answer in (answers[0], *answers[7:])] == [answer["label"] for answer in expected()]


def test_broken_tables_do_not_stop_the_others(published: Published, tmp_path: Path) -> None:
    files = {
        "cells.csv": b'more,text\n1,w1 w2 w3\n2\n3,"w"4\n4,\n5,w4\n',
        "columns.csv": b"more,txt\n1,w1\n",
        "twice.csv": b"text,text\nw1,w2\n",
        "empty.csv": b"",
        "bytes.csv": b"text\nw\xff\nw4\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    result = run_script(published.folder, *(str(tmp_path / name) for name in files))
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


def test_blank_line_is_a_row(published: Published) -> None:
    result = run_script(published.folder, lines=f"\ufeff{TEXTS[0]}\n\n{TEXTS[1]}\n")
    assert result.returncode == 6
    first, blank, last = map(json.loads, result.stdout.splitlines())
    assert [first["label"], last["label"]] == [answer["label"] for answer in expected()[:2]]
    assert blank == {"error": "standard input, line 2: is empty"}


def test_each_line_is_answered_before_the_next_is_read(published: Published) -> None:
    command = [sys.executable, "-I", str(published.folder / "predict.py")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for text, want in zip(TEXTS, expected(), strict=True):
            print(text, file=process.stdin, flush=True)
            assert json.loads(process.stdout.readline())["label"] == want["label"]


def test_missing_and_unknown_files_are_reported(published: Published, tmp_path: Path) -> None:
    (tmp_path / "rows.tsv").write_text("text\n")
    result = run_script(published.folder, "w1", "zh.cs", "gone/rows", str(tmp_path / "rows.tsv"))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "zh.cs: no such file. Pass a text that looks like a file by standard input.",
        "gone/rows: no such file. Pass a text that looks like a file by standard input.",
        f"{tmp_path}/rows.tsv: unknown type of file. Known: .txt, .jsonl, .csv.",
    ]


def test_columns_of_files_have_the_names_of_training(copy: Path, tmp_path: Path) -> None:
    config = {"data": {"columns": {"text": "content"}}}
    edit_manifest(copy, lambda document: document["provenance"].update(config=config))
    (tmp_path / "rows.csv").write_text("content\n" + "\n".join(TEXTS), "utf-8")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "w1", "Content": "w2"}), "utf-8")

    assert_answers(run_script(copy, str(tmp_path / "rows.csv")))
    assert_answers(run_script(copy, *TEXTS))
    result = run_script(copy, str(tmp_path / "rows.jsonl"))
    assert "rows.jsonl, line 1: has no column 'content'. It has 'text', 'Content'" in result.stdout
    assert (result.returncode, result.stderr) == (6, "1 of 1 row could not be used.\n")


@pytest.mark.parametrize(
    ("column", "named"), [("text", "the column `text`"), ("What it is", "the column 'What it is'")]
)
def test_help_names_the_columns_of_training(column: str, named: str, copy: Path) -> None:
    config = {"data": {"columns": {"text": column}}}
    edit_manifest(copy, lambda document: document["provenance"].update(config=config))
    assert f"a text per line, or {named}\n" in run_script(copy, "--help").stdout


@pytest.mark.parametrize(
    ("column", "named"), [("What it is", "the column 'What it is'\n"), (["a", "b"], "the column 'a' and 'b'\n")]
)
def test_readme_names_the_columns_of_training(column: object, named: str) -> None:
    manifest: dict[str, Any] = {"reads": ["text"], "provenance": {"config": {"data": {"columns": {"text": column}}}}}
    assert f"a text per line, or {named}" in script_usage(("texts", "classes"), manifest)


@pytest.mark.parametrize(
    "name", ["model.onnx", "tokenizer.json", "labels.json", "manifest.json", "rows.py", "task.json", "texts.py"]
)
def test_missing_file_is_reported(copy: Path, name: str) -> None:
    (copy / name).unlink()
    result = run_script(copy, "w1")
    problem = f"{copy / name}: is missing. Get the folder again.\n"
    assert (result.returncode, result.stdout, result.stderr) == (3, "", problem)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "labels.json", "manifest.json"])
def test_damaged_file_is_reported(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-100] + b"\0" * 3)
    result = run_script(copy, "w1")
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"{copy / name}: is damaged: ")
    assert result.stderr.endswith(". Get the folder again.\n")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def copy(published: Published, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published.folder, tmp_path / "copy"))


def test_check_passes(copy: Path) -> None:
    result = run_script(copy, "--check")
    assert (result.returncode, result.stderr) == (0, "")
    assert [line.split(":")[:2] for line in result.stdout.splitlines()] == [
        ["ok", " input_ids"],
        ["ok", " attention_mask"],
        ["ok", " output"],
        ["ok", " answers"],
    ]


def list_again(folder: Path, name: str) -> None:
    """Put the present checksum of a file into the manifest."""

    def change(document: dict[str, Any]) -> None:
        (entry,) = (each for each in document["files"] if each["file"] == name)
        entry.update(describe(folder / name, folder))

    edit_manifest(folder, change)


def test_check_detects_another_model(copy: Path) -> None:
    with np.load(copy / "golden.npz") as golden:
        arrays = {name: golden[name] for name in golden.files}
    arrays["output"][-1, -1] += 0.01
    np.savez(copy / "golden.npz", **arrays)
    list_again(copy, "golden.npz")
    result = run_script(copy, "--check")
    assert result.returncode == 1
    assert "FAILED: output: largest difference 0.01, allowed 0.0001" in result.stdout


def test_check_detects_another_tokenizer(copy: Path) -> None:
    file = copy / "tokenizer.json"
    content = json.loads(file.read_text("utf-8"))
    words = content["model"]["vocab"]
    words["w1"], words["w2"] = words["w2"], words["w1"]
    file.write_text(json.dumps(content), "utf-8")
    list_again(copy, "tokenizer.json")
    result = run_script(copy, "--check")
    assert result.returncode == 1
    assert "FAILED: input_ids: largest difference 1, allowed" in result.stdout


@pytest.mark.parametrize("labels", [["green", "red", "blue"], ["red", "green"]])
def test_check_detects_other_labels(copy: Path, labels: list[str]) -> None:
    (copy / "labels.json").write_text(json.dumps(labels), "utf-8")
    assert "labels.json: is damaged: does not match its checksum" in run_script(copy, "--check").stderr

    list_again(copy, "labels.json")
    result = run_script(copy, "--check")
    if len(labels) == 3:
        assert (result.returncode, result.stderr) == (1, "")
        assert "FAILED: answers: largest difference inf" in result.stdout
    else:
        assert result.returncode == 3
        assert result.stderr.startswith(f"{copy}: the files do not fit together (IndexError: ")


def test_scripts_import_only_three_packages(published: Published) -> None:
    imported = set()
    for name in ("predict.py", "texts.py", "answers.py", "rows.py", "check.py", "shapes.py"):
        source = (published.folder / name).read_text("utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and not str(node.module).startswith("trainer."):
                imported.add(str(node.module).partition(".")[0])
            elif isinstance(node, ast.Import):
                imported.update(alias.name.partition(".")[0] for alias in node.names)
    assert imported - sys.stdlib_module_names == {"numpy", "onnxruntime", "tokenizers"}


TEXT = TINY[:6]
QUIET = ["train.duration=6", "train.batch_size=8", "logger.console=none", "logger.tensorboard=false", "device=cpu"]

SENTENCES = [
    "apple banana cherry 3",
    "saw",
    "Der Fuchs läuft über 20 Äcker \U0001f98a, 这里 and there.",
    " ".join(["hammer drill"] * 20),
    "\u0000",
    "fox, goat & ibis",
]


class Case(NamedTuple):
    """The overrides of a job and a file of rows to predict."""

    overrides: list[str]
    rows: Path


def text_case(task: str, *overrides: str) -> Callable[[Path], Case]:
    """Return a function that prepares a task over text, on data with a column for every role."""

    def make(folder: Path) -> Case:
        pairs = [(first, second) for first, second in product(SENTENCES, SENTENCES[:4])]
        masked = [text.replace("banana", "[MASK]").replace("goat", "[MASK]") for text in SENTENCES]
        rows = [
            {"text": masked[number % len(masked)], "text_pair": pair[1], "words": pair[0].split()}
            for number, pair in enumerate(pairs)
        ]
        lines = [json.dumps(row) for row in rows]
        lines[2:2] = ['{"text": ', "{}", json.dumps({"text": 7.0, "text_pair": 1.5, "words": ["fox", 3]})]
        lines.append(json.dumps({"text": "saw", "text_pair": "axe", "words": "New York| is |fox"}))
        listed = ('["fox", "New York"]', "[]", "[3, 4]", "[not JSON|fox")
        lines.extend(json.dumps({"text": "saw", "text_pair": "axe", "words": words}) for words in listed)
        rows_file = folder / "rows_file.jsonl"
        rows_file.write_text("\n".join(lines) + "\n", "utf-8")
        return Case([f"task={task}", *write_roles(folder), *TEXT, *overrides], rows_file)

    return make


def image_case(folder: Path) -> Case:
    write_idx(folder / "idx", 60)
    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(20, 30, 4), dtype=np.uint8)
    Image.fromarray(pixels[:14, :14, 0]).save(folder / "grey.png")
    Image.fromarray(pixels).save(folder / "clear.png")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels[:, :, :3]).save(folder / "colour.jpg", exif=turned)
    Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "broken.png").write_bytes(b"no image")
    rows_file = folder / "rows_file.csv"
    rows_file.write_text("image\ngrey.png\nclear.png\nbroken.png\ncolour.jpg\ndeep.png\n")
    overrides = ["task=image_classification", "data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
    return Case([*overrides, "model=lenet", "task.resize=crop"], rows_file)


def table_case(task: str) -> Callable[[Path], Case]:
    def make(folder: Path) -> Case:
        random = np.random.default_rng(0)
        lines = ["size,town,constant,level,label,price"]
        for number in range(80):
            size = "" if number % 9 == 0 else f"{random.normal(170, 9):.3f}"
            town = random.choice(["Bern", "Köln", "", "Ulm", "Graz"])
            lines.append(f"{size},{town},1,{random.integers(3)},{'ab'[number % 2]},{random.normal(1e4, 3e3):.2f}")
        (folder / "train.csv").write_text("\n".join(lines) + "\n", "utf-8")
        if task == "tabular_classification":
            rows_file = folder / "rows_file.csv"
            rows = [
                "size,town,constant,level",
                "1e3,Nowhere,2,",
                ",,,1",
                "tall,Bern,1,1",
                "170,7,1,2",
                "170,7",
                "nan,, ,1",
            ]
        else:
            rows_file = folder / "rows_file.jsonl"
            cells = [[170, "Bern", 1, 2], [None, "", " ", None], ["1_7", "Bern", 1, 2], [1e300, "Bern", 1, 2]]
            cells += [[True, 3.0, 1, "2"], [170, ["Bern"], 1, 2], [float("nan"), "Ulm", 1, 1], ["inf", "Ulm", 1, 1]]
            objects = [dict(zip(("size", "town", "constant", "level"), each, strict=True)) for each in cells]
            objects += [{"size": 170, "Town": "Bern", "constant": 1, "level": 2}, {}]
            rows = [*map(json.dumps, objects), "[1]"]
        rows_file.write_text("\n".join(rows) + "\n", "utf-8")
        columns = ["data.columns.features=[size,town,constant,level]", "data.columns.value=price"]
        files = ["data=files", f"data.train={folder}/train.csv", f"data.cache_dir={folder}/cache", *columns]
        return Case([f"task={task}", *files, "task.max_categories=3", "model=mlp", "model.hidden=[8]"], rows_file)

    return make


JOBS: dict[str, Callable[[Path], Case]] = {
    "text_classification": text_case("text_classification"),
    "multilabel_classification": text_case("multilabel_classification", "task.threshold=0.45"),
    "pair_classification": text_case("pair_classification"),
    "regression": text_case("regression"),
    "token_classification": text_case("token_classification", "data.list_separator='|'"),
    "token_classification with a crf": text_case("token_classification", "loss=crf", "optimizer.lr=0.05"),
    "span_classification": text_case("span_classification", "optimizer.lr=0.1"),
    "masked_lm": text_case("masked_lm"),
    "causal_lm": text_case("causal_lm"),
    "sentence_embedding": text_case("sentence_embedding"),
    "image_classification": image_case,
    "tabular_classification": table_case("tabular_classification"),
    "tabular_regression": table_case("tabular_regression"),
}


def test_every_task_has_its_job() -> None:
    tasks = {path.stem for path in (Path(__file__).parents[2] / "conf/task").glob("*.yaml")}
    assert tasks == {name.partition(" ")[0] for name in JOBS}


CELLS: tuple[object, ...] = (
    *(
        "",
        " ",
        "7",
        " 7 ",
        "7.0",
        "1e3",
        "07",
        "1_7",
        "1,5",
        "nan",
        "NaN",
        "NA",
        "null",
        "None",
        "inf",
        "-inf",
        "\uff17",
        "x",
    ),
    *(
        "true",
        "True",
        "TRUE",
        " true ",
        "false",
        "yes",
        "1",
        "0",
        "1.0",
        "Bern",
        " Bern",
        "bern",
        "2024-01-02",
        "Sao Tom\xe9",
    ),
    *(None, True, False, 1, 0, 7, 7.0, 7.5, 1e300, 10**30, [7], {"a": 1}, float("nan"), float("inf"), "\ud800"),
)
"""Cells that two readers may understand differently."""


@pytest.fixture(scope="module")
def table_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a table of numbers, texts and booleans."""
    folder = tmp_path_factory.mktemp("table")
    lines = ["\t".join([*TABLE, "label"])]
    for number in range(80):
        town = ("Bern", "'Ulm'", "NA", "")[number % 4]
        lines.append(f"{number * number / 7:.3f}\t{town}\t{number % 3 > 0}\t{number % 5 % 2}.5\t{'ab'[number % 2]}")
    (folder / "train.csv").write_text("\n".join(lines) + "\n", "utf-8")
    files = ["data=files", f"data.train={folder}/train.csv", f"data.cache_dir={folder}/cache", r"data.separator=\t"]
    job = ["task=tabular_classification", *files, 'data.quote="\'"', "model=mlp", "model.hidden=[8]", *QUIET]
    with working_in(folder):
        assert main(["train", *job, "export.formats=[onnx]", f"run.dir={folder}/run"]) == 0
    return folder / "run"


TABLE = {"size": 170, "town": "Bern", "member": "True", "flag": 1.5}
"""A row of the table, without its label."""


def test_tables_are_read_alike(table_run: Path, tmp_path: Path) -> None:
    objects = [TABLE | {name: cell} for name in TABLE for cell in CELLS]
    texts = [[str(each[name]) for name in TABLE] for each in objects if "\ud800" not in each.values()]
    broken = ["1\tBern", '1\t"Bern"\tTrue\t1', "", "1\tBern\tTrue\t1\t2"]
    rows = ["\t".join([*TABLE][::-1]), *("\t".join(cells[::-1]) for cells in texts), *broken]
    (tmp_path / "unix.csv").write_text("\n".join(rows), "utf-8")
    (tmp_path / "windows.csv").write_text("\ufeff" + "\r\n".join(rows) + "\r\n", "utf-8", newline="")
    (tmp_path / "latin.csv").write_bytes("\n".join([*rows[:40], "1\tTrue\tSao Tom\xe9\t1"]).encode("latin-1", "ignore"))
    (tmp_path / "rows.jsonl").write_text("\n".join(["{", "[]", "{}", *map(json.dumps, objects)]), "utf-8")
    with working_in(tmp_path):
        for name in ("unix.csv", "windows.csv", "latin.csv", "rows.jsonl"):
            predict = ["predict", f"run={table_run}", f"input={name}", "output=want.jsonl", "keep=[row]", "device=cpu"]
            assert main(predict) == 6
            result = run_script(table_run / "export", "--keep", "row", name)
            want = [json.loads(line) for line in Path("want.jsonl").read_text("utf-8").splitlines()]
            got = [json.loads(line) for line in result.stdout.splitlines()]
            Path("want.jsonl").unlink()
            for ours, theirs in zip(got, want, strict=True):
                assert list(ours) == list(theirs), (ours, theirs)
                assert_close(ours, theirs)


@pytest.fixture(scope="module")
def ask(table_run: Path) -> Iterator[Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]]:
    """Returns the status and the document that a server of the table answers a request with."""
    model = ServedModel(table_run / "export")
    batcher, quick = Batcher(model.answer, 2, 1000), LoopBatcher(model.answer, 2)
    service = Service(model, batcher, Limits(6, 10**5, 60.0), "1", quick=quick, quick_rows=3)
    with TestClient(service.app()) as client:

        def ask(request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            response = client.post(
                "/predict", content=json.dumps(request), headers={"Content-Type": "application/json"}
            )
            return response.status_code, response.json()

        yield ask
    batcher.close()


@given(st.data(), st.integers(1, 6), st.integers(1, 3))
def test_columns_are_answered_as_rows(
    ask: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]], data: st.DataObject, count: int, top: int
) -> None:
    sent = [cell for cell in CELLS if json.dumps(cell) not in ("NaN", "Infinity", '"\\ud800"')]
    numbers = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**70), 2**70), st.booleans())
    cells = st.one_of(numbers, st.none(), st.sampled_from(sent))
    kinds = st.sampled_from([numbers, st.floats(-300, 300), st.none() | st.floats(-300, 300), cells])
    columns = {
        name: data.draw(kinds.flatmap(lambda kind: st.lists(kind, min_size=count, max_size=count)), label=name)
        for name in data.draw(st.permutations(["size", "town", "member", "flag", "more"]).map(lambda each: each[:5]))
    }
    if data.draw(st.integers(0, 9)) == 0:
        del columns["flag"]
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (status, want), (own_status, got) = ask({"rows": rows, "top": top}), ask({"columns": columns, "top": top})
    assert own_status == status
    if status == 400:
        assert "which is out of range" in got["error"]
        assert "which is out of range" in want["error"]
        return
    assert got.get("error") == want.get("error")
    names = {name for answer in want["answers"] for name in answer}
    assert got["answers"] == {name: [answer.get(name) for answer in want["answers"]] for name in names}


@pytest.mark.parametrize(
    ("request_fields", "status", "problem"),
    [
        ({"columns": {}}, 400, "columns: is empty. Send at least one row."),
        ({"columns": {"size": []}}, 400, "columns: is empty"),
        ({"columns": [1]}, 400, "columns: must be an object, got [1]. Expected {"),
        ({"columns": {"size": 1}}, 400, "columns.size: must be a list, got 1. Expected {"),
        ({"columns": {"size": [1, 2], "town": ["a"]}}, 400, "columns: 'size' has 2 and 'town' has 1. Send a cell"),
        ({"columns": {"size": [1]}, "rows": [{}]}, 400, "rows, columns: both are there. Send one of them."),
        ({"columns": {"size": [1]}, "k": 1}, 400, "unknown field 'k'. Known: rows, columns, top."),
        ({"columns": {"size": [1] * 7}}, 413, "rows: at most 6 per request (max_rows), got 7"),
        ({"columns": {"size": [1, 2]}}, 422, "rows[0]: has no column 'town', 'member', 'flag'. It has 'size'"),
    ],
)
def test_columns_that_cannot_be_answered_say_why(
    ask: Callable[[dict[str, Any]], tuple[int, dict[str, Any]]],
    request_fields: dict[str, Any],
    status: int,
    problem: str,
) -> None:
    got, document = ask(request_fields)
    assert got == status
    assert problem in document["error"]


def assert_served(export: Path, rows_file: Path, want: list[dict[str, Any]]) -> None:
    """Check that a server gives the answers that the script gave for the rows of a file."""
    if rows_file.suffix == ".jsonl":
        lines = [line for line in rows_file.read_text("utf-8").split("\n") if line]
        rows = [json.loads(line) if line != '{"text": ' else 3 for line in lines]
    else:
        with rows_file.open(newline="", encoding="utf-8") as file:
            rows = [row if None not in row.values() else None for row in csv.DictReader(file)]
    for row in rows:
        if isinstance(row, dict) and "image" in row:
            row["image"] = base64.b64encode((rows_file.parent / row["image"]).read_bytes()).decode()
    model = ServedModel(export)
    assert model.check()
    batcher, quick = Batcher(model.answer, 32, 1000), LoopBatcher(model.answer, 32)
    quick_rows = model.count_quick_rows(32)
    assert (quick_rows > 0) == (model.rows == "tables")
    service = Service(model, batcher, Limits(1000, 10**7, 60.0), "1", quick=quick, quick_rows=quick_rows)
    with TestClient(service.app()) as client:
        # Requests cannot contain NaN, nor a line with too few cells.
        usable = [place for place, row in enumerate(rows) if row is not None and not has_nan(row)]
        response = client.post("/predict", json={"rows": [rows[place] for place in usable], "top": 2})
        got = response.json()["answers"]
        assert_columns_answered(client, [rows[place] for place in usable], got)
        assert client.get("/openapi.json").status_code == 200
    batcher.close()
    expected_answers = [want[place] for place in usable]
    assert ["error" in each for each in got] == ["error" in each for each in expected_answers]
    for ours, theirs in zip(got, expected_answers, strict=True):
        if "error" not in theirs:
            assert_close(ours, theirs)


def assert_columns_answered(client: TestClient, rows: list[Any], want: list[dict[str, Any]]) -> None:
    """Check that the rows with all columns are answered in columns as they are one by one."""
    names = max((row.keys() for row in rows if isinstance(row, dict)), key=len)
    kept = [place for place, row in enumerate(rows) if isinstance(row, dict) and row.keys() == names]
    columns = {name: [rows[place][name] for place in kept] for name in names}
    answers = client.post("/predict", json={"columns": columns, "top": 2}).json()["answers"]
    for place, each in enumerate(kept):
        got = {name: cells[place] for name, cells in answers.items() if cells[place] is not None}
        if "error" in want[each]:
            assert got == want[each]
        else:
            assert_close(got, {name: value for name, value in want[each].items() if value is not None})


def has_nan(row: object) -> bool:
    return isinstance(row, dict) and any(cell != cell for cell in row.values())


@pytest.mark.slow
@pytest.mark.parametrize("task", JOBS)
def test_script_answers_as_trainer_predict(task: str, tmp_path: Path) -> None:
    overrides, rows_file = JOBS[task](tmp_path)
    run, answers = tmp_path / "run", tmp_path / "answers.jsonl"
    with working_in(tmp_path):
        assert main(["train", *overrides, *QUIET, "export.formats=[onnx]", f"run.dir={run}"]) == 0
        code = main(
            ["predict", f"run={run}", f"input={rows_file}", f"output={answers}", "top=2", "keep=[row]", "device=cpu"]
        )
    packages = bare(tmp_path)
    checked = run_bare(packages, str(run / "export/predict.py"), "--check")
    assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
    result = run_bare(packages, str(run / "export/predict.py"), "--top", "2", "--keep", "row", str(rows_file))
    assert "rows could not be used; the others are answered." in result.stderr
    assert (result.returncode, code) == (6, 6), "one of the rows is broken"
    want = [json.loads(line) for line in answers.read_text("utf-8").splitlines()]
    assert task != "span_classification" or any(answer.get("entities") for answer in want)
    got = [json.loads(line) for line in result.stdout.splitlines()]
    number = re.compile(r".*?(?:row|line) (\d+)")
    spots = [[number.match(each["error"])[1] if "error" in each else None for each in part] for part in (got, want)]  # type: ignore[index]
    assert spots[0] == spots[1]
    assert_close(got, want)
    assert_served(run / "export", rows_file, [{name: each[name] for name in each if name != "row"} for each in got])
