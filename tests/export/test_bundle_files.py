"""The files next to the artifacts: golden rows, scripts, README, manifest."""

import importlib
import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor

import trainer
import trainer.task
from tests.export.conftest import Published
from tests.support.documents import export_manifest
from tests.support.export_models import LABELS, SAMPLES, ToyModel, ToyTask, publish_toy, toy_export_model
from trainer.errors import ProofError
from trainer.export.bundle_files import BUNDLE_FILES, write_bundle_files, write_golden
from trainer.export.folder import describe, verify, write_manifest
from trainer.export.model import ExportModel
from trainer.export.readme import describe_rows, write_readme
from trainer.layout import PREDICT_FORMATS
from trainer.protocols import Batching, Columns
from trainer.task.image_classification import ImageClassification


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text("utf-8"))


def test_golden_rows_inputs_output_and_answers_match(published: Published) -> None:
    golden, task = read(published.folder, "golden.json"), ToyTask()
    assert golden["rows"] == [{"text": sample["text"]} for sample in SAMPLES]
    rows = {"text": [row["text"] for row in golden["rows"]]}
    inputs = task.model_inputs(task.encode_inputs(rows), "padded")
    with np.load(published.folder / "golden.npz", allow_pickle=False) as arrays:
        tensors = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    assert tensors.keys() == {"input.input_ids", "input.attention_mask", "output"}
    for name, value in inputs.items():
        assert torch.equal(tensors[f"input.{name}"], value)
    assert (inputs["attention_mask"] == 0).any()
    with torch.no_grad():
        output = ToyModel().eval()(**inputs)
    torch.testing.assert_close(tensors["output"], output, rtol=0, atol=1e-6)
    answers = task.predictions(tensors["output"], rows=rows, encoded={}, batching="padded", top=golden["top"])
    assert golden["answers"] == answers
    for name, value in torch.load(published.folder / "golden.pt", weights_only=True).items():
        assert torch.equal(tensors[name], value)
    session = onnxruntime.InferenceSession(str(published.folder / "model.onnx"))
    (got,) = session.run(["output"], {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(got, output, atol=1e-6, rtol=0)


def test_large_outputs_leave_one_golden_row(tmp_path: Path) -> None:
    def wide(inputs: Any) -> Tensor:
        return torch.zeros(len(inputs["input_ids"]), 3).repeat(1, 2**18)

    class Wide(ToyTask):
        def predictions(self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int) -> Any:
            return [{"text": text} for text in rows["text"]]

    write_golden(tmp_path, Wide(), SAMPLES, wide)
    assert read(tmp_path, "golden.json")["rows"] == read(tmp_path, "golden.json")["answers"] == [{"text": "w1 w2 w3"}]
    with np.load(tmp_path / "golden.npz") as arrays:
        assert arrays["output"].shape == (1, 3 * 2**18)
        assert arrays["input.input_ids"].shape == (1, 3)


def test_golden_images_are_copied_unchanged(tmp_path: Path) -> None:
    Image.new("L", (4, 4), 9).save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    task = ImageClassification(size=4, channels=1, resize="stretch", mean=[0.0], std=[1.0], augment={})
    task.class_target.classes.fit(["a", "b"], at_least=2)
    samples = [{"image": {"bytes": None, "path": str(tmp_path / "a.png")}}, {"image": {"bytes": content, "path": None}}]
    stage = tmp_path / "stage"
    stage.mkdir()
    files = write_golden(stage, task, samples, lambda inputs: inputs["pixel_values"].flatten(1)[:, :2])
    assert [row["image"] for row in read(stage, "golden.json")["rows"]] == ["golden-0.png", "golden-1"]
    assert [(stage / name).read_bytes() for name in ("golden-0.png", "golden-1")] == [content, content]
    assert {path.name for path in files} == {path.name for path in stage.iterdir()}


GOLDEN = ("golden.json", "golden.npz", "golden.pt")


class Prefixing(ToyTask):
    """Reads other words than its script."""

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return super().encode_inputs({"text": [f"w3 {text}" for text in rows["text"]]})


def test_scripts_with_other_answers_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match=r"predict\.py: does not answer as the task does: FAILED: input_ids: "):
        publish_toy(tmp_path, toy_export_model(ToyModel(), Prefixing()), ["onnx"])
    assert not {"predict.py", "texts.py", "task.json"} & {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "model.onnx").is_file()
    assert "predict.py" not in (tmp_path / "README.md").read_text("utf-8")
    assert "predict.py" not in {entry["file"] for entry in read(tmp_path, "manifest.json")["files"]}


def write_bundle(published: Published, stage: Path, task: ToyTask) -> tuple[set[str], ProofError | None]:
    """Write the files without golden rows; return their names and the failure of the scripts."""
    content = read(published.folder, "manifest.json")
    stage.mkdir()
    for entry in content["artifacts"].values():
        shutil.copy(published.folder / entry["file"], stage)
    with torch.no_grad():
        failure = write_bundle_files(stage, ExportModel(ToyModel(), task, samples=SAMPLES), 0, content)
    return {path.name for path in stage.iterdir()} - {"model.onnx", "model.torchscript.pt"}, failure


class Numbering(ToyTask):
    """Writes the labels in its own way."""

    def artifact_files(self) -> dict[str, str]:
        return super().artifact_files() | {"labels.json": json.dumps(dict(enumerate(LABELS)))}


def test_a_document_of_another_shape_is_not_described(published: Published, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    names, failure = write_bundle(published, stage, Numbering())
    assert failure is not None
    assert "predict.py" not in names
    assert "## Labels" not in (stage / "README.md").read_text("utf-8")


def test_without_golden_rows_no_sample_is_published(published: Published, tmp_path: Path) -> None:
    stage = tmp_path / "stage"
    names, failure = write_bundle(published, stage, ToyTask())
    with_golden = {path.name for path in published.folder.iterdir()}
    assert names == with_golden - {*GOLDEN, "model.onnx", "model.torchscript.pt"}
    assert failure is None
    assert set(verify(stage).values()) == {""}
    text = (stage / "README.md").read_text("utf-8")
    assert "golden" not in text
    assert not [sample for sample in SAMPLES if sample["text"] in text]
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    printed = subprocess.run([sys.executable, "-c", code], cwd=stage, capture_output=True, text=True, check=True)
    assert "input_ids tensor(int64) ['batch', 'sequence']" in printed.stdout.splitlines()
    command = [sys.executable, "-I", str(stage / "predict.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stdout) == (3, "")
    assert checked.stderr.endswith("golden.json: is missing. Exports with export.golden=0 have no golden rows.\n")


def test_without_golden_rows_the_scripts_are_proved(published: Published, tmp_path: Path) -> None:
    names, failure = write_bundle(published, tmp_path / "stage", Prefixing())
    assert "does not answer as the task does: FAILED: input_ids: " in str(failure)
    assert not names & {*GOLDEN, "predict.py", "texts.py", "task.json"}


def test_number_of_golden_rows_is_the_setting(tmp_path: Path) -> None:
    publish_toy(tmp_path, toy_export_model(ToyModel()), ["torchscript"], golden=1)
    assert read(tmp_path, "golden.json")["rows"] == [{"text": SAMPLES[0]["text"]}]


class WithoutScript(Prefixing):
    script = None


def test_task_without_script_has_no_scripts_and_old_ones_are_removed(tmp_path: Path) -> None:
    names = ("predict.py", "task.py", "texts.py", "golden-7.png")
    for name in names:
        (tmp_path / name).write_text("of an earlier call")
    entries = [describe(tmp_path / name, tmp_path) for name in names]
    write_manifest(tmp_path / "manifest.json", export_manifest(files=entries))
    publish_toy(tmp_path, toy_export_model(ToyModel(), WithoutScript()), ["torchscript"])
    assert {path.name for path in tmp_path.iterdir()} == {
        "README.md",
        "golden.json",
        "golden.npz",
        "golden.pt",
        "labels.json",
        "manifest.json",
        "model.torchscript.pt",
        "tokenizer.json",
    }


def test_manifest_records_task_columns_and_versions(published: Published) -> None:
    manifest = read(published.folder, "manifest.json")
    assert (manifest["task"], manifest["reads"], manifest["pad_id"]) == ("ToyTask", ["text"], 0)
    assert manifest["versions"]["trainer"] == trainer.__version__
    assert manifest["versions"].keys() >= {"python", "torch", "onnx", "onnxruntime", "tokenizers", "numpy"}
    assert manifest["timings"]["rows"][0]["milliseconds"].keys() == {"pytorch", "onnx", "torchscript"}


def test_code_in_the_readme_runs(published: Published) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (published.folder / "README.md").read_text("utf-8"), re.DOTALL)
    assert len(blocks) == 2
    # The variable that `trainer` sets for its own processes hides the folder's scripts.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"} | {"PYTHONPATH": ""}
    results = []
    for block in blocks:
        command = [sys.executable, "-W", "error", "-c", block]
        done = subprocess.run(
            command, cwd=published.folder, env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        results.append(done.stdout)
    shape, difference = results[0].rsplit(" ", 1)
    assert shape == "(4, 3)"
    assert float(difference) < 1e-5
    assert [answer["label"] for answer in eval(results[1])] == [
        answer["label"] for answer in read(published.folder, "golden.json")["answers"]
    ]


def test_readme_describes_inputs_outputs_and_files(published: Published) -> None:
    text = (published.folder / "README.md").read_text("utf-8")
    assert "it reads a text." in text
    assert "`red`, `green`, `blue`: the 3 outputs" in text
    assert "| `input_ids` | in | int64 | (batch, sequence) |" in text
    assert "| `output` | out | float32 | (batch, 3) |" in text
    assert "`sequence` is between 1 and 24" in text
    assert "| step | `930` |" in text
    for path in published.folder.iterdir():
        # Other tests run the scripts of this folder, whose bytecode Python stores.
        if path.name not in ("README.md", "labels.json", "__pycache__"):
            assert f"`{path.name}`" in text


@pytest.mark.parametrize(
    ("file", "content", "described"),
    [
        (
            "image.json",
            {"size": [8, 6], "channels": 1, "resize": "pad"},
            "An image is read as gray and, if it has another size, scaled and padded with black to 8 x 6 pixels",
        ),
        (
            "table.json",
            {
                "columns": [
                    {"name": "a", "kind": "number", "missing": False, "mean": 0.5},
                    {"name": "b", "kind": "category", "missing": True, "categories": ["x", "y"]},
                ]
            },
            "A row has `a` (a number), `b` (one of 2 categories, may be missing).",
        ),
        ("labels.json", ["a`b", "c\nd", "e" * 99], f"`` a`b ``, `c\\nd`, `{'e' * 39}…{'e' * 20}`: the 3 outputs"),
        ("tags.json", ["O"] * 101, ", `O` and 1 more: the 101 outputs in the order of `tags.json`"),
    ],
)
def test_readme_describes_rows_and_answers(tmp_path: Path, file: str, content: Any, described: str) -> None:
    (tmp_path / file).write_text(json.dumps(content), "utf-8")
    assert described in describe_rows(tmp_path)


def test_readme_without_measurements(published: Published, tmp_path: Path) -> None:
    manifest = read(published.folder, "manifest.json")
    manifest["metrics"]["macro_f1"] = None
    manifest["artifacts"] = {"torchscript": {**manifest["artifacts"]["torchscript"], "largest_difference": None}}
    text = write_readme(tmp_path, manifest, None).read_text("utf-8")
    assert "onnxruntime.InferenceSession" not in text
    assert "## Labels" not in text
    assert "| `model.torchscript.pt` |" in text


def test_scripts_of_all_tasks_exist() -> None:
    from trainer.export.bundle import answers, predict

    assert predict.FORMATS == PREDICT_FORMATS
    for module in pkgutil.iter_modules(trainer.task.__path__, "trainer.task."):
        for task in vars(importlib.import_module(module.name)).values():
            if isinstance(task, type) and isinstance(script := getattr(task, "script", None), tuple):
                rows, outputs = script
                assert predict.READERS[rows] in BUNDLE_FILES
                assert outputs in answers.ANSWERS
