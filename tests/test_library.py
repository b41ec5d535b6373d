"""`trainer.train`, `trainer.load` and `Run`: the jobs of the command line as functions in the caller's process."""

import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import trainer
from tests.support.jobs import TINY, rows, working_in
from trainer.cli import main
from trainer.errors import CheckpointError, ConfigError, DataError

JOB = [*TINY, "train.duration=6st", "train.eval_every=3st", "checkpoint.every=3st"]


def frame(count: int = 61, seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame(rows(count, seed), columns=["text", "label"])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[trainer.Run]:
    """A run on a data frame; the working directory is the one that it was started in."""
    with working_in(tmp_path_factory.mktemp("library")):
        yield trainer.train(*JOB, "run.dir=runs/demo", data=frame(), test=frame(20, 2))


def test_a_run_has_the_scores_of_the_test_split(run: trainer.Run) -> None:
    stored = json.loads((run.path / "eval/test.json").read_text())
    assert run.metrics == {name: stored[name] for name in ("loss", "accuracy", "macro_f1")}
    assert run.best is not None
    assert run.best["step"] in (3, 6)
    assert run.config["data"]["train"] == "runs/demo/data/train.parquet"


def test_predictions_equal_those_of_the_command(run: trainer.Run, capsys: pytest.CaptureFixture[str]) -> None:
    texts = [text for text, _ in rows(5, 7)]
    Path("texts.txt").write_text("\n".join(texts))
    assert main(["predict", f"run={run.path}", "input=texts.txt", "top=2"]) == 0
    expected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert run.predict(texts, "top=2") == expected
    assert run.predict([{"text": text} for text in texts], "top=2") == expected
    assert run.predict(pd.DataFrame({"other": 1, "text": texts}), "top=2") == expected
    assert run.predict([]) == []
    assert run.predict(texts[0], "top=2") == expected[:1]


def test_a_text_may_look_like_anything(run: trainer.Run) -> None:
    for text in ("{'a': 1}", "a\nb", "texts.txt", "-", "null"):
        assert run.predict([text])[0].keys() == {"label", "probability"}


def test_rows_that_cannot_be_predicted_are_all_listed(run: trainer.Run) -> None:
    with pytest.raises(DataError) as caught:
        run.predict([{"text": "a pear"}, {"text": " "}, {"words": "a pear"}])
    assert caught.value.exit_code == 6
    assert caught.value.messages == (
        "row 2: has no text.",
        "row 3: has no text.",
    )


def test_tables_are_passed_by_name() -> None:
    with pytest.raises(trainer.TrainerError) as caught:
        trainer.train(frame(), "loss=focal", validaton=frame(), datas=np.zeros((2, 2)))  # type: ignore[arg-type]
    remedy = "Pass rows by name: data=, validation= or test=."
    assert caught.value.messages == (
        f"overrides: takes no rows, got 'DataFrame'. {remedy}",
        f"validaton: takes no rows, got 'DataFrame'. {remedy}",
        f"datas: takes no rows, got 'ndarray'. {remedy}",
    )


def test_rows_that_cannot_be_evaluated_are_not_kept(run: trainer.Run) -> None:
    before = sorted(run.path.rglob("*"))
    with pytest.raises(DataError, match=r"^data: has no column 'label'"):
        run.evaluate(data=frame()[["text"]])
    assert sorted(run.path.rglob("*")) == before


def test_named_validation_sets(tmp_path: Path) -> None:
    with working_in(tmp_path):
        frame(20, 1).to_csv("clean.csv", index=False)
        sets = {"noisy": frame(20, 2), "clean": "clean.csv"}
        run = trainer.train(*JOB, "run.dir=run", "data.split.test=0", data=frame(), validation=sets, verbose=False)
        assert run.best is not None
        assert run.best["split"] == "validation/noisy"
        assert run.config["data"]["validation"] == {"noisy": "run/data/validation.noisy.parquet", "clean": "clean.csv"}
        assert {file.stem for file in (run.path / "eval").glob("*.json")} == {"validation.noisy", "validation.clean"}
        assert run.evaluate(split="validation/clean")["loss"] > 0
        with pytest.raises(ConfigError, match=r"validation: the name of a validation set is letters, .* got 'a b'"):
            trainer.train(*JOB, data=frame(), validation={"a b": frame(20, 2)})
        with pytest.raises(DataError, match=r"validation\.noisy: has no rows"):
            trainer.train(*JOB, data=frame(), validation={"noisy": frame(0)})


def test_what_is_no_row_is_reported(run: trainer.Run) -> None:
    for value in (None, 5, (row for row in [{"text": "a pear"}])):
        with pytest.raises(DataError, match="rows: must be a data frame"):
            run.predict(value)
    assert run.predict([]) == []


def test_the_command_evaluates_a_run_on_a_frame(run: trainer.Run, tmp_path: Path) -> None:
    scores = run.metrics
    with working_in(tmp_path):
        assert main(["eval", f"run={run.path}"]) == 0
    assert run.metrics == scores == run.evaluate()


def test_other_rows_are_evaluated_under_another_name(run: trainer.Run) -> None:
    before = run.metrics
    scores = run.evaluate(data=frame(30, 5))
    assert scores != before == run.metrics
    (kept,) = (run.path / "data").glob("rows-*.parquet")
    assert run.evaluate(data=frame(30, 5)) == scores
    assert list((run.path / "data").glob("rows-*.parquet")) == [kept]
    assert len([*(run.path / "eval").glob(f"test-{kept.stem}-*.json")]) == 1


def test_an_export_returns_the_formats_that_were_asked_for(run: trainer.Run) -> None:
    (weights,) = run.export("pth").values()
    assert weights == run.path / "export/model.pth"
    assert run.export("pth_legacy") == {"pth_legacy": run.path / "export/model.legacy.pth"}
    assert weights.exists()
    assert list(run.export(overrides=["export.formats=[pth_legacy,pth]"])) == ["pth_legacy", "pth"]


def test_a_run_that_is_loaded_is_the_same(run: trainer.Run) -> None:
    loaded = trainer.load(run.path)
    assert loaded.metrics == run.metrics
    assert loaded.path == run.path == trainer.load().path
    assert loaded.predict(["a pear"]) == run.predict(["a pear"])


def test_the_config_of_a_strangers_run_names_no_code(run: trainer.Run, tmp_path: Path) -> None:
    stranger = tmp_path / "stranger"
    shutil.copytree(run.path, stranger)
    for file in stranger.rglob("config.yaml"):
        file.write_text(file.read_text().replace("trainer.task.text_classification.TextClassification", "os.system"))
    loaded = trainer.load(stranger)
    for act in (lambda: loaded.predict(["a"]), loaded.evaluate, loaded.export):
        with pytest.raises(CheckpointError, match=r"os\.system"):
            act()


def test_all_errors_of_a_job_come_in_one_exception() -> None:
    with pytest.raises(trainer.TrainerError) as caught:
        trainer.train("loss=focl", "optimizer.lr=-1", seed="x", data=frame())
    assert caught.value.exit_code == 2
    assert [message.partition(":")[0] for message in caught.value.messages] == ["loss", "seed", "optimizer.lr"]


@pytest.mark.parametrize(
    ("overrides", "data", "message"),
    [
        (["loss"], {}, "overrides: expected key=value, got 'loss'."),
        (["data=digits"], {"data": frame()}, "data: the argument data names the data too. Leave one of the two out."),
        ([], {"test": frame()}, "data: is missing. Pass data=, as for test."),
        (["resume=runs/demo"], {"data": frame()}, "resume: a run resumes on its own data."),
        ([], {"data": [1, 2]}, "data: must be a data frame of pandas or polars"),
        ([], {"data": frame(0)}, "data: has no rows."),
        ([], {"data": pd.DataFrame([["a", "b"]], columns=["text", "text"])}, "data: has several columns 'text'."),
        ([], {"data": frame(), "test": pd.DataFrame({"text": ["a"], 1: ["b"]})}, "test: the name of a column must be"),
        ([], {"data": pd.DataFrame({"text": ["a", {"b": 1}], "label": 1})}, "data: a column cannot be read ("),
        ([], {"data": frame().rename(columns={"label": "topic"})}, "data: has no column 'label'"),
        ([], {"data": frame().assign(text=[["a"]] * len(frame()))}, "data, row 1, column 'text': expected a string"),
    ],
)
def test_wrong_arguments(
    overrides: list[str], data: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(trainer.TrainerError) as caught:
        trainer.train(*JOB, *overrides, **data)
    assert message in str(caught.value)
    assert not [*tmp_path.rglob("*.*")], "nothing is left of a job that has not started"


def state_of_the_process() -> dict[str, Any]:
    root = logging.getLogger()
    return {
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)],
        "mask": signal.pthread_sigmask(signal.SIG_BLOCK, []),
        "logging": (root.level, list(root.handlers), warnings.showwarning, list(warnings.filters)),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()),
        "grad": torch.is_grad_enabled(),
        "random": (random.getstate(), torch.get_rng_state().tolist(), np.random.get_state()[1].tolist()),  # type: ignore[index, union-attr]
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "path": list(sys.path),
        "streams": (sys.stdout, sys.stderr, sys.excepthook, threading.excepthook),
    }


def test_the_process_of_the_caller_is_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    logging.captureWarnings(True)
    try:
        torch.manual_seed(5)
        random.seed(5)
        before = state_of_the_process()
        run = trainer.train(*JOB, "loader.workers=1", data=frame())
        assert state_of_the_process() == before
        run.predict(["a pear"])
        run.evaluate()
        with pytest.raises(DataError):
            trainer.train(*JOB, data=frame().rename(columns={"label": "topic"}))
        assert state_of_the_process() == before
    finally:
        logging.captureWarnings(False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def weights(folder: Path) -> bytes:
    (step,) = (folder / "checkpoints").glob("step-00000006")
    return (step / "model.safetensors").read_bytes() + (step / "optimizer.safetensors").read_bytes()


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_what_the_process_did_before(run: trainer.Run, tmp_path: Path) -> None:
    torch.manual_seed(9)
    again = trainer.train(*JOB, f"run.dir={tmp_path}/again", data=frame(), test=frame(20, 2))
    trained: list[trainer.Run] = []
    job = (*JOB, f"run.dir={tmp_path}/thread")
    thread = threading.Thread(target=lambda: trained.append(trainer.train(*job, data=frame(), test=frame(20, 2))))
    thread.start()
    thread.join()
    assert weights(again.path) == weights(trained[0].path) == weights(run.path)
    data = [f"data.{split}={run.path}/data/{split}.parquet" for split in ("train", "test")]
    command = [sys.executable, "-m", "trainer", "train", *JOB, f"run.dir={tmp_path}/command", "data=files", *data]
    subprocess.run(command, check=True, capture_output=True)
    assert weights(tmp_path / "command") == weights(run.path)


def test_ctrl_c_leaves_a_checkpoint_from_which_the_run_resumes(
    run: trainer.Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = [*JOB, "resume=auto", "run.name=stopped"]
    _interrupt_after_logs(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt, match="Resume with: trainer train resume=runs/stopped"):
        trainer.train(*job, data=frame(), test=frame(20, 2))
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert [path.name for path in Path("runs/stopped/checkpoints").iterdir()] == ["step-00000002"]
    with pytest.raises(DataError, match="data: differs from the rows that the run was trained on"):
        trainer.train(*job, data=frame(60), test=frame(20, 2))
    assert weights(trainer.train(*job, data=frame(), test=frame(20, 2)).path) == weights(run.path)


def test_a_second_ctrl_c_ends_the_run_and_not_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _interrupt_after_logs(monkeypatch, 2, times=2)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(*JOB, "run.dir=runs/killed", data=frame())
    assert not [*Path("runs/killed/checkpoints").glob("step-*")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def _interrupt_after_logs(monkeypatch: pytest.MonkeyPatch, step: int, times: int = 1) -> None:
    """Send Ctrl-C to this process when a step is logged."""
    from trainer.report.events import Reports

    log = Reports.log

    def interrupt(self: Reports, event: str, **values: Any) -> None:
        log(self, event, **values)
        if event == "train" and values["step"] == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Reports, "log", interrupt)


def test_settings_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = trainer.train(*JOB, data=frame(), seed=3, optimizer={"lr": 2e-3}, run={"name": "a 'b', c"}, trust=[])
    assert (run.config["seed"], run.config["optimizer"]["lr"]) == (3, 2e-3)
    assert run.path.name.endswith("_a 'b', c")


def test_verbose_false_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = [override for override in JOB if not override.startswith("logger.console")]
    trainer.train(*job, f"run.dir={tmp_path}/quiet", data=frame(), verbose=False)
    assert capfd.readouterr() == ("", "")
    trainer.train(*job, f"run.dir={tmp_path}/loud", data=frame())
    assert "accuracy" in capfd.readouterr().out


def test_importing_the_package_imports_nothing_of_it() -> None:
    code = "import trainer, sys; print([name for name in sys.modules if name.startswith('trainer.')])"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout == "[]\n"
    with pytest.raises(AttributeError, match="has no attribute 'fit'"):
        trainer.fit  # noqa: B018  # type: ignore[attr-defined]


def test_a_run_is_shown_as_a_table(run: trainer.Run, tmp_path: Path) -> None:
    html = run._repr_html_()
    assert "<th>test</th>" in html
    for name, value in run.metrics.items():
        assert f"<td>{name}</td><td>{value:.4g}</td>" in html
    copy = tmp_path / "<script>"
    shutil.copytree(run.path, copy)
    assert "<script>" not in trainer.load(copy)._repr_html_()
    (copy / "eval/test.json").unlink()
    assert "<th>validation</th>" in trainer.load(copy)._repr_html_()
    shutil.rmtree(copy / "eval")
    assert "not evaluated yet" in trainer.load(copy)._repr_html_()


def test_a_sweep_is_left_to_the_command() -> None:
    with pytest.raises(ConfigError, match="several values need a sweep"):
        trainer.train("seed=0,1", data=frame())
