"""`trainer predict` on the command line: a small run of each task, its predictions compared with `trainer eval`."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.documents import edit_manifest
from tests.support.jobs import TINY, rows, working_in, write_roles
from tests.support.processes import run_without_torch
from tests.support.sources import write_images
from trainer.cli import main

COMMON = tuple(option for option in TINY if not option.startswith(("model.", "task.", "export.")))
TEXTS = tuple(option for option in TINY if option.startswith(("model.", "task.")))
MLP = ("model.hidden=[8]",)
TASKS: dict[str, Sequence[str]] = {
    "text_classification": TEXTS,
    "pair_classification": TEXTS,
    "multilabel_classification": TEXTS,
    "regression": TEXTS,
    "token_classification": TEXTS,
    "masked_lm": TEXTS,
    "causal_lm": TEXTS,
    "sentence_embedding": TEXTS,
    "tabular_classification": MLP,
    "tabular_regression": MLP,
    "image_classification": ("data=imagefolder", "data.root=images"),
}


def write_tables(folder: Path) -> list[str]:
    """Write `<split>.csv` with numbers, a color, a label and a value; return the overrides of a job on them."""
    random = np.random.default_rng(0)
    for split, count in {"train": 61, "validation": 20, "test": 20}.items():
        lines = ["size,weight,colour,label,value"]
        for number in range(count):
            size, weight = random.normal(size=2)
            colour = ("red", "green", "blue")[number % 3]
            label = "large" if size + (colour == "red") > 0.5 else "small"
            lines.append(
                f"{size:.3f},{'' if number % 7 == 3 else f'{weight:.3f}'},{colour},{label},{3 * size + 10:.3f}"
            )
        (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return ["data=files", *(f"data.{split}={folder / f'{split}.csv'}" for split in ("train", "validation", "test"))]


def options_of(task: str, folder: Path) -> list[str]:
    """Return the overrides of a job whose files are in `folder`."""
    options = [f"task={task}", f"run.dir={folder / 'run'}", *COMMON, "train.duration=2ep", *TASKS[task]]
    if task.startswith("tabular"):
        inputs = "data.columns.features=[size,weight,colour]"
        return [*options, *write_tables(folder), inputs, f"data.cache_dir={folder}/cache"]
    if task == "image_classification":
        write_images(folder / "images", 60)
        return [*options, f"data.root={folder / 'images'}", f"data.cache_dir={folder}/cache"]
    return [*options, *write_roles(folder)]


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Path]]:
    """Return a function that gives a folder with a task's data and its `run`, trained once."""
    made: dict[str, Path] = {}
    with working_in(tmp_path_factory.mktemp("predict")):

        def of(task: str) -> Path:
            if task not in made:
                folder = tmp_path_factory.mktemp(task)
                assert main(["train", *options_of(task, folder), "export.formats=[]"]) == 0
                made[task] = folder
            return made[task]

        yield of


def predicted(folder: Path, source: Path | str, *options: str, code: int = 0) -> list[Any]:
    """Predict to a file and return its lines."""
    output = folder / "predictions.jsonl"
    argv = [f"run={folder / 'run'}", f"input={source}", f"output={output}", "force=true", "device=cpu", *options]
    assert main(["predict", *argv]) == code
    return [json.loads(line) for line in output.read_text("utf-8").splitlines()]


def evaluated(folder: Path) -> dict[str, float]:
    assert main(["eval", f"run={folder / 'run'}", "device=cpu"]) == 0
    values: dict[str, float] = json.loads((folder / "run/eval/test.json").read_text())
    return values


def read_test_rows(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of the test file."""
    return [json.loads(line) for line in (folder / "test.jsonl").read_text("utf-8").splitlines()]


def share(right: Sequence[bool]) -> float:
    return float(np.mean(right))


@pytest.mark.parametrize("task", ["text_classification", "pair_classification"])
def test_predicted_classes_match_the_evaluation(task: str, run_of: Callable[[str], Path]) -> None:
    folder = run_of(task)
    predictions = predicted(folder, folder / "test.jsonl", "top=2")
    right = [
        prediction["label"] == row["label"] for prediction, row in zip(predictions, read_test_rows(folder), strict=True)
    ]

    assert share(right) == pytest.approx(evaluated(folder)["accuracy"])
    for prediction in predictions:
        best, probability = next(iter(prediction["probabilities"].items()))
        assert (prediction["label"], prediction["probability"]) == (best, probability)
        assert probability == max(prediction["probabilities"].values())


def test_predicted_classes_of_tables_match_the_evaluation(
    run_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("tabular_classification")
    predictions = predicted(folder, folder / "test.csv")
    assert "note:" not in capfd.readouterr().err
    labels = [line.split(",")[3] for line in (folder / "test.csv").read_text().splitlines()[1:]]

    assert share(
        [prediction["label"] == label for prediction, label in zip(predictions, labels, strict=True)]
    ) == pytest.approx(evaluated(folder)["accuracy"])
    line = '{"size": -0.5, "weight": null, "colour": "violet"}'
    assert predicted(folder, line)[0]["label"] in ("large", "small")
    assert (
        "note: 1 of 1 row has categories that the model does not know, such as 'violet' in column 'colour' (input): "
        "they were not among the most frequent ones of training (task.max_categories)"
    ) in " ".join(capfd.readouterr().err.split())
    colors = ["red", "violet", *["pink"] * 20, "violet", *"abc"]
    file = folder / "colors.csv"
    file.write_text("\n".join(["size,weight,colour", *(f"1,2,{color}" for color in colors)]))
    predicted(folder, file)
    note = " ".join(capfd.readouterr().err.split())
    assert "note: 25 of 26 rows have categories" in note
    places = ", ".join(
        f"'{name}' in column 'colour' ({file}, row {row})" for name, row in [("violet", 2), ("pink", 3), ("a", 24)]
    )
    assert f"know, such as {places}: they" in note


def test_predicted_values_match_the_evaluation(run_of: Callable[[str], Path]) -> None:
    tables, texts = run_of("tabular_regression"), run_of("regression")
    values = [float(line.split(",")[4]) for line in (tables / "test.csv").read_text().splitlines()[1:]]
    values_predicted = [prediction["value"] for prediction in predicted(tables, tables / "test.csv")]
    assert np.abs(np.subtract(values_predicted, values)).mean() == pytest.approx(evaluated(tables)["mae"], rel=1e-5)

    values_predicted = [prediction["value"] for prediction in predicted(texts, texts / "test.jsonl")]
    values = [row["value"] for row in read_test_rows(texts)]
    assert np.abs(np.subtract(values_predicted, values)).mean() == pytest.approx(evaluated(texts)["mae"], rel=1e-5)


def test_predicted_labels_match_the_evaluation(run_of: Callable[[str], Path]) -> None:
    folder = run_of("multilabel_classification")
    predictions = predicted(folder, folder / "test.jsonl", "top=3")
    right = [
        set(prediction["labels"]) == set(row["labels"])
        for prediction, row in zip(predictions, read_test_rows(folder), strict=True)
    ]

    assert share(right) == pytest.approx(evaluated(folder)["exact_match"])
    assert all(set(prediction["probabilities"]) == {"animal", "fruit", "tool"} for prediction in predictions)


def test_predicted_tags_match_the_evaluation(run_of: Callable[[str], Path]) -> None:
    folder = run_of("token_classification")
    predictions = predicted(folder, folder / "test.jsonl")
    pairs = [
        (predicted_tag, tag)
        for prediction, row in zip(predictions, read_test_rows(folder), strict=True)
        for predicted_tag, tag in zip(prediction["tags"], row["tags"], strict=True)
        if predicted_tag is not None
    ]

    assert share([predicted_tag == tag for predicted_tag, tag in pairs]) == pytest.approx(evaluated(folder)["accuracy"])
    assert [prediction["words"] for prediction in predictions] == [row["words"] for row in read_test_rows(folder)]
    (line,) = predicted(folder, "a saw  here")
    assert line["words"] == ["a", "saw", "here"]
    assert len(predicted(folder, "word " * 40)[0]["tags"]) == 40


def test_images_of_a_folder_are_predicted(run_of: Callable[[str], Path]) -> None:
    folder = run_of("image_classification")
    predictions = predicted(folder, folder / "images")
    (one,) = predicted(folder, folder / "images/corner_2/2.png")

    assert len(predictions) == 60
    assert predictions[0]["image"] == "corner_0/0.png"
    assert {"image": "corner_2/2.png", **one} in [{**prediction} for prediction in predictions]


def test_language_models_match_a_direct_computation(run_of: Callable[[str], Path]) -> None:
    from trainer.builders.checkpointed import load_checkpointed_model

    direct = {}
    for task in ("masked_lm", "causal_lm", "sentence_embedding"):
        loaded = load_checkpointed_model(
            run_of(task) / "run",
            [],
            checkpoint="best",
            weights="auto",
            device="cpu",
        )
        encoded = loaded.task.encode_inputs({"text": ["apple [MASK] saw"]})
        direct[task] = encoded["input_ids"][0], loaded.model(**loaded.task.model_inputs(encoded, "padded"))[0].detach()
    text = "apple [MASK] saw"
    (masked,) = predicted(run_of("masked_lm"), text)
    (causal,) = predicted(run_of("causal_lm"), text)
    (vector,) = predicted(run_of("sentence_embedding"), text)

    ids, output = direct["masked_lm"]
    place = int(np.flatnonzero(ids == 4)[0])
    assert masked["filled"][0]["probability"] == pytest.approx(float(output[place].softmax(-1).max()), abs=2e-6)
    assert masked["text"].startswith("apple")
    assert "[MASK]" not in masked["text"]
    ids, output = direct["causal_lm"]
    surprises = -output.log_softmax(-1)[range(len(ids) - 1), ids[1:].tolist()]
    assert causal["perplexity"] == pytest.approx(float(surprises.mean().exp()), rel=1e-4)
    assert causal["next"][0]["probability"] == pytest.approx(float(output[-1].softmax(-1).max()), abs=2e-6)
    assert vector["embedding"] == pytest.approx(direct["sentence_embedding"][1].tolist(), abs=1e-5)


def test_nearest_texts_are_found(run_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = run_of("sentence_embedding")
    corpus = folder / "corpus.txt"
    texts = [text for text, _ in rows(30)]
    corpus.write_text("\n".join([*texts[:10], "", *texts[10:], texts[3]]), "utf-8")
    options = ["neighbours=3", f"corpus={corpus}"]
    (prediction,) = predicted(folder, texts[3], *options, code=6)
    vectors = [np.array(line["embedding"]) for line in predicted(folder, corpus, code=6) if "embedding" in line]
    units = np.stack([vector / np.linalg.norm(vector) for vector in vectors])
    cosines = units @ units[3]

    assert [hit["row"] for hit in prediction["neighbours"][:2]] == [4, 32]  # the same text twice: the first row first
    assert [hit["text"] for hit in prediction["neighbours"][:2]] == [texts[3]] * 2
    assert [hit["cosine"] for hit in prediction["neighbours"]] == pytest.approx(
        np.sort(cosines)[::-1][:3].tolist(), abs=2e-6
    )
    assert "corpus.txt, line 11: has no text" in capfd.readouterr().err
    assert main(["predict", f"run={run_of('regression') / 'run'}", "input=x", *options]) == 2
    assert "neighbours: needs a task that computes embeddings" in capfd.readouterr().err


def test_broken_rows_of_standard_input_and_exit_code(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("text_classification")
    (tmp_path / "input").write_bytes(b"apple\n\nsaw\n" + b"\xff\nfox\n")
    capfd.readouterr()
    with (tmp_path / "input").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert main(["predict", f"run={folder / 'run'}", "device=cpu"]) == 6
    output, errors_output = capfd.readouterr()
    predictions = [json.loads(line) for line in output.splitlines()]

    assert [list(prediction) for prediction in predictions] == [
        *(["label", "probability"], ["error"], ["label", "probability"], ["error"], ["label", "probability"])
    ]
    errors = errors_output.splitlines()
    assert errors[0] == predictions[1]["error"] == "standard input, line 2: has no text."
    assert errors[1] == predictions[3]["error"]
    assert errors[2] == "2 of 5 rows could not be used; the others were predicted."


def test_a_terminal_shows_the_error_of_a_row_once(
    run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_of("text_classification") / "gap.jsonl"
    file.write_text('{"text": "apple"}\n{"text": ""}\n', encoding="utf-8")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["predict", f"run={file.parent / 'run'}", f"input={file}", "device=cpu"]) == 6
    output, errors = capsys.readouterr()
    assert "has no text" in output
    assert errors == "1 of 2 rows could not be used; the others were predicted.\n"


def test_broken_rows_of_files_get_errors(run_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    texts, images = run_of("text_classification"), run_of("image_classification")
    file = texts / "broken.jsonl"
    file.write_bytes(b'{"text": "apple"}\n{"text": \n{"label": "x"}\n{"text": "fox"}\n')
    first, *broken, last = predicted(texts, file, code=6)
    assert first["label"]
    assert last["label"]
    assert [prediction["error"].removeprefix(f"{file}, ").split(":")[0] for prediction in broken] == [
        "line 2",
        "line 3",
    ]

    gallery = images / "gallery"
    gallery.mkdir()
    (gallery / "a.png").write_bytes((images / "images/corner_0/0.png").read_bytes())
    (gallery / "b.png").write_bytes(b"no image")
    whole, none = predicted(images, gallery, code=6)
    assert whole["label"]
    assert none["image"] == "b.png"
    assert f"{gallery}/b.png: image: cannot be decoded" in none["error"]
    assert none["error"].count("b.png") == 1
    assert "1 of 2 rows could not be used" in capfd.readouterr().err


def test_columns_and_separators_can_be_set(run_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]) -> None:
    folder = run_of("text_classification")
    file = folder / "bodies.csv"
    file.write_text("id;body\n1;apple pear\n2;saw\n")
    (apple,) = predicted(folder, "apple pear")

    assert predicted(folder, file, "columns.text=body", "data.separator=';'")[0] == apple
    assert predicted(folder, file, "data.text=body", "data.separator=';'")[0] == apple
    assert main(["predict", f"run={folder / 'run'}", f"input={file}", "columns.txt=body"]) == 2
    assert "columns.text" in capfd.readouterr().err


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_to_single(precision: str, run_of: Callable[[str], Path]) -> None:
    folder = run_of("text_classification")
    exact, half = (predicted(folder, folder / "test.jsonl", f"precision={name}") for name in ("fp32", precision))
    differences = [abs(one["probability"] - two["probability"]) for one, two in zip(exact, half, strict=True)]

    assert 0 < max(differences) < 0.02


def test_newest_run_is_the_default_and_weights_can_be_chosen(
    run_of: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("text_classification")
    raw, ema = (predicted(folder, "apple", f"weights={weights}") for weights in ("raw", "ema"))
    assert raw != ema
    (folder / "runs").mkdir()
    (folder / "run").rename(folder / "runs/newest")
    try:
        with working_in(folder):
            capsys.readouterr()
            assert main(["predict", "input=apple", "output=newest.jsonl", "force=true", "weights=raw"]) == 0
            assert capsys.readouterr().out == "newest.jsonl: 1 row\n"
    finally:
        (folder / "runs/newest").rename(folder / "run")
    assert [json.loads((folder / "newest.jsonl").read_text())] == raw


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["input=tst.jsonl"], 2, "input: no such file, got 'tst.jsonl'. Did you mean test.jsonl?"),
        (
            ["input=tst.json", "neighbours=3", "top=0"],
            2,
            "input: no such file, got 'tst.json'. Did you mean test.jsonl?",
        ),
        (["input=tst.json", "neighbours=3", "top=0"], 2, "corpus: must be set together with neighbours"),
        (["input=tst.json", "neighbours=3", "top=0"], 2, "top: must be at least 1"),
        (
            ["input=x", "neighbours=3", "corpus=test.jsonl", "backend=onnx"],
            2,
            "neighbours: needs a task that computes embeddings",
        ),
        (["input=x", "neighbours=3", "corpus=test.jsonl", "backend=onnx"], 2, "backend: the run has no such artifact"),
        (["input=notes.md"], 2, "input: unknown file format, got 'notes.md'. Allowed: .csv"),
        (["input=x", "output=out.xls"], 2, "output: unknown file format"),
        (["input=test.jsonl", "output=./test.jsonl"], 2, "output: is the same file as input"),
        (["input=x", "backend=onx"], 2, "backend: must be one of torch, onnx or null, got 'onx'. Did you mean onnx?"),
        (["input=x", "backend=onnx"], 3, "backend: the run has no such artifact"),
        (["input=x", "backend=onnx", "precision=bf16"], 2, "precision: has no effect on artifacts"),
        (["input=x", "backend=onnx", "device=cuda"], 2, "device: artifacts run only on the CPU"),
        (["input=x", "neighbours=3"], 2, "corpus: must be set together with neighbours"),
        (["input=x", "corpus=test.jsonl"], 2, "neighbours: must be set together with corpus"),
        (["input=x", "top=0"], 2, "top: must be at least 1"),
        (["input=empty.csv"], 6, "empty.csv: is empty"),
        (["input=images"], 2, "input: contains images, but the task reads text"),
        (["input="], 6, "input: has no text"),
        (["input=x", "neighbours=3", "corpus="], 2, "corpus: must be a file, got ''"),
    ],
)
def test_errors(
    options: list[str], code: int, message: str, run_of: Callable[[str], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("text_classification")
    (folder / "notes.md").write_text("text")
    (folder / "empty.csv").write_text("")
    (folder / "images").mkdir(exist_ok=True)
    with working_in(folder):
        assert main(["predict", "run=run", *options]) == code
    assert message in capfd.readouterr().err


def test_errors_are_reported_before_torch_is_loaded(run_of: Callable[[str], Path]) -> None:
    folder = run_of("text_classification")
    cases = [
        (["input=gone.csv"], 2),
        (["input=x", "backend=onnx"], 3),
        *([] if torch.cuda.is_available() else [(["input=x", "device=cuda"], 2)]),
        (["input=x", "neighbours=3", f"corpus={folder}/test.jsonl"], 2),
    ]
    codes, _ = run_without_torch([["predict", f"run={folder}/run", *options] for options, _ in cases])
    assert codes == [code for _, code in cases]


def close(one: Any, other: Any) -> bool:
    """Return True if two values are equal, numbers within 1e-4."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return one == pytest.approx(other, abs=1e-4, rel=1e-4) if isinstance(one, float) else one == other


@pytest.mark.parametrize(
    "task", [task if task == "text_classification" else pytest.param(task, marks=pytest.mark.slow) for task in TASKS]
)
def test_exported_graph_predicts_as_the_model_does(task: str, run_of: Callable[[str], Path], tmp_path: Path) -> None:
    folder = run_of(task)
    if not (folder / "run/export/model.onnx").exists():
        assert main(["export", f"run={folder / 'run'}", "export.formats=[onnx]"]) == 0
    source = next(path for path in (folder / "test.jsonl", folder / "test.csv", folder / "images") if path.exists())
    if task == "masked_lm":
        source = folder / "masked.txt"
        source.write_text("apple [MASK] saw\n[MASK] fox\nno mask\n")
    by_model = predicted(folder, source)
    by_graph = predicted(folder, source, "backend=onnx")
    alone = shutil.copytree(folder / "run/export", tmp_path / "alone")

    assert len(by_model) > 2
    assert close(by_model, by_graph), (by_model[:2], by_graph[:2])
    assert predicted(folder, source, f"run={alone}") == by_graph
    assert predicted(folder, source, f"run={folder / 'run/export'}") == by_graph
    assert predicted(folder, source, f"run={folder / 'run/export'}", "backend=torch") == by_model


def test_artifact_folder_without_its_run(
    run_of: Callable[[str], Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = run_of("text_classification")
    assert (folder / "run/export/model.onnx").exists() or main(
        ["export", f"run={folder / 'run'}", "export.formats=[onnx]"]
    ) == 0
    alone = shutil.copytree(folder / "run/export", tmp_path / "alone")
    shown = (alone / "manifest.json").read_text("utf-8")
    assert str(folder) not in shown, "artifacts must not contain paths of this machine"

    def error_of(*options: str, code: int) -> str:
        assert main(["predict", f"run={alone}", "input=a text", *options]) == code
        return capfd.readouterr().err

    of_run = "applies only to a run, not to an artifact folder"
    assert f"weights: {of_run}" in (errors := error_of("weights=raw", "precision=bf16", code=2))
    assert f"precision: {of_run}" in errors
    assert "own script: python" in error_of("backend=torch", code=3)
    assert "loader.eval_batch_sise: unknown key" in error_of("loader.eval_batch_sise=3", code=2)
    (alone / "model.onnx").rename(alone / "model.bin")
    assert "backend: the folder has no such artifact" in error_of(code=3)
    (alone / "model.bin").rename(alone / "model.onnx")
    edit_manifest(alone, lambda document: document["provenance"]["config"]["task"].update(_target_="os.path.Join"))
    assert "a stored config may name only" in error_of(code=3)
    (alone / "manifest.json").write_text(shown)
    for name in ("task.json", "model.onnx"):
        intact = (alone / name).read_bytes()
        # One bit, which still is a readable file: another label, or another weight.
        at = intact.index(b"fruit") if name == "task.json" else len(intact) // 2
        (alone / name).write_bytes(intact[:at] + bytes([intact[at] ^ 1]) + intact[at + 1 :])
        assert f"{alone / name}: has the SHA-256 " in error_of(code=3)
        (alone / name).write_bytes(intact)
    assert error_of(code=0) == ""
    (alone / "manifest.json").unlink()
    assert f"own script: python {alone}/predict.py" in error_of(code=3)
