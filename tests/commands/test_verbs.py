"""`train`, `eval` and `export` on one small run: the files they write, and errors with their exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from tests.support.jobs import events, train, working_in, write_data
from trainer.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("verbs")
    with working_in(made):
        options = ["train.duration=3ep", "export.formats=[onnx,torchscript]", "logger.tensorboard=true"]
        assert train(made / "run", *write_data(made), *options) == 0
        yield made


def read(path: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def test_run_folder_is_complete(folder: Path) -> None:
    run = folder / "run"
    newest = sorted((run / "checkpoints").iterdir())[-1]

    assert {path.name for path in run.iterdir()} == {
        *(
            "config.yaml",
            "metrics.jsonl",
            "trainer.log",
            "tensorboard",
            "checkpoints",
            "eval",
            "export",
            "model",
            "report.html",
            ".lock",
        )
    }
    assert {path.name for path in newest.iterdir()} == {
        *("model.safetensors", "ema.safetensors", "optimizer.safetensors"),
        *("state.json", "config.yaml", "task.json", "MANIFEST.json"),
    }
    assert {path.name for path in (run / "export").iterdir()} == {
        *("model.onnx", "model.torchscript.pt", "manifest.json", "README.md"),
        *("predict.py", "rows.py", "check.py", "shapes.py", "texts.py", "answers.py", "task.json"),
        *("golden.npz", "golden.json", "golden.pt", "labels.json", "tokenizer.json"),
    }
    # Every file follows the umask.
    assert {path.stat().st_mode for path in (run / "model").iterdir()} == {(run / "config.yaml").stat().st_mode}
    assert events(run)[0]["event"] == "start"
    assert events(run)[-1]["event"] == "end"
    assert list((run / "tensorboard").iterdir())


def test_format_of_another_task_is_refused_and_removes_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted((folder / "run" / "export").iterdir())
    assert main(["export", f"run={folder / 'run'}", "export.formats=[onnx_cache]"]) == 2
    assert "export.formats: onnx_cache needs a causal language model" in capsys.readouterr().err
    assert sorted((folder / "run" / "export").iterdir()) == before


def test_best_weights_are_exported(folder: Path) -> None:
    run = folder / "run"
    scores = [event for event in events(run, "eval") if event["split"] == "validation"]
    best = max(scores, key=lambda event: (event["accuracy"], -event["step"], event["weights"] == "raw"))
    provenance = read(run / "export" / "manifest.json")["provenance"]
    assert isinstance(provenance, dict)

    assert (provenance["step"], provenance["weights"]) == (best["step"], best["weights"])
    name = "ema" if best["weights"] == "ema" else "model"
    kept = load_file(run / "checkpoints" / f"step-{best['step']:08d}" / f"{name}.safetensors")
    left = load_file(run / "model" / "model.safetensors")
    assert kept.keys() == left.keys()
    assert all((kept[key] == left[key]).all() for key in kept)


def test_eval_repeats_the_score_of_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reported = read(folder / "run" / "eval" / "test.json")
    (folder / "run" / "eval" / "test.json").unlink()

    assert main(["eval", f"run={folder / 'run'}", "device=cpu"]) == 0
    assert read(folder / "run" / "eval" / "test.json") == reported
    assert f"{reported['accuracy']:.4f}" in capsys.readouterr().out


def test_eval_of_another_checkpoint_split_weights_and_precision(folder: Path) -> None:
    arguments = ["split=validation", "checkpoint=last", "weights=ema", "precision=bf16", "loader.eval_batch_size=7"]
    assert main(["eval", f"run={folder / 'run'}", "device=cpu", *arguments]) == 0
    document = read(folder / "run" / "eval" / "validation.json")

    assert (document["step"], document["weights"], document["precision"]) == (24, "ema", "bf16")
    expected = [event for event in events(folder / "run", "eval") if event["step"] == 24 and event["weights"] == "ema"]
    assert document["accuracy"] == pytest.approx(expected[0]["accuracy"], abs=0.051)


def test_checkpoint_can_be_named_by_its_path(folder: Path) -> None:
    first = sorted((folder / "run" / "checkpoints").iterdir())[0]

    assert main(["eval", f"run={first}", "device=cpu", "split=train"]) == 0
    assert read(folder / "run" / "eval" / "train.json")["step"] == int(first.name.removeprefix("step-"))


def test_artifact_folder_predicts_without_trainer(folder: Path) -> None:
    script = folder / "run" / "export" / "predict.py"
    done = subprocess.run(
        [sys.executable, "-I", str(script), "apple pear banana", "cat dog horse"], capture_output=True, check=True
    )
    predictions = [json.loads(line) for line in done.stdout.splitlines()]

    assert len(predictions) == 2
    assert {prediction["label"] for prediction in predictions} <= {"fruit", "tool", "animal"}
    assert subprocess.run([sys.executable, "-I", str(script), "--check"], capture_output=True).returncode == 0


def test_export_of_fewer_formats_removes_the_others(folder: Path) -> None:
    assert main(["export", f"run={folder / 'run'}", "export.formats=[torchscript]", "split=validation"]) == 0
    manifest = read(folder / "run" / "export" / "manifest.json")

    assert manifest["formats"] == ["torchscript"]
    assert not (folder / "run" / "export" / "model.onnx").exists()


def test_artifact_beyond_the_tolerance_is_not_published_but_the_report_is_written(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # No two float32 implementations agree to 1e-12.
    options = ["train.duration=2", "export.formats=[onnx]", "export.tolerance=1e-12"]
    assert train(folder / "failed", *write_data(folder), *options) == 4

    assert list((folder / "failed" / "export").iterdir()) == []
    assert "model.onnx: output[" in capsys.readouterr().err
    assert "accuracy" in (folder / "failed" / "report.html").read_text("utf-8")


def test_chinese_texts_and_labels(tmp_path: Path) -> None:
    kinds = {"水果": "苹果香蕉葡萄柠檬", "动物": "老虎大象猴子熊猫"}
    lines = [
        f"我喜欢{signs[i % 8]}和{signs[(i * 3 + 1) % 8]}{i},{kind}" for i in range(60) for kind, signs in kinds.items()
    ]
    (tmp_path / "数据.csv").write_text("\n".join(["正文,类别", *lines]), encoding="utf-8")
    data = [
        "data=files",
        "data.train=数据.csv",
        "data.text=正文",
        "data.label=类别",
        f"data.cache_dir={tmp_path}/cache",
    ]
    with working_in(tmp_path):
        assert train(tmp_path / "run", *data, "train.duration=60", "optimizer.lr=0.02", "scheduler=constant") == 0

    assert read(tmp_path / "run" / "eval" / "test.json")["accuracy"] == 1.0
    assert json.loads((tmp_path / "run" / "model" / "labels.json").read_text(encoding="utf-8")) == ["动物", "水果"]


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["optimizer=sgd", "optimizer.lr=1e30", "train.max_grad_norm=null"], 5, "the run diverged"),
        (["data.train=nowhere.csv"], 6, "data.train: no such file, got 'nowhere.csv'"),
        (["data.label=kind"], 6, "'kind'"),
        (["checkpoint.monitor=acc"], 2, "checkpoint.monitor: "),
        (["model.heads=3"], 2, "model.heads: must divide dim (16), got 3"),
        (["loss._target_=nowhere.Loss"], 2, "loss._target_: there is no package nowhere"),
        (["resume=nowhere"], 3, "resume: no such folder, got 'nowhere'"),
    ],
)
def test_errors_have_an_exit_code_and_no_traceback(
    overrides: list[str], code: int, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overridden = {word.partition("=")[0] for word in overrides}
    data = [word for word in write_data(folder) if word.partition("=")[0] not in overridden]

    assert train(tmp_path / "run", *data, "train.duration=30", *overrides) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_rare_labels_and_empty_texts_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"text number {n},{'common' if n % 2 else 'usual'}" for n in range(120)]
    lines += [f"a rare text {n},rare{n}" for n in range(30)] + [" ,common", ",usual"]
    (tmp_path / "my.csv").write_text("\n".join(["text,label", *lines]), encoding="utf-8")
    with working_in(tmp_path):
        data = ["data=files", "data.train=my.csv", f"data.cache_dir={tmp_path}/cache"]
        assert train(tmp_path / "run", *data, "train.duration=2") == 0

    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert any("dropped 2 rows without a text or a label" in message for message in warnings)
    assert any("rows with a label that occurs in no training row" in message for message in warnings)


def test_run_without_a_test_split_is_scored_on_validation(folder: Path, tmp_path: Path) -> None:
    data = [word for word in write_data(folder) if not word.startswith("data.test=")]
    assert train(tmp_path / "run", *data, "data.split.test=0", "train.duration=4") == 0

    written = {path.name for path in (tmp_path / "run" / "eval").iterdir()}
    assert written == {"validation.json", "validation.predictions.parquet"}
