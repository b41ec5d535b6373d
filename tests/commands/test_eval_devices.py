"""`trainer eval` on several devices, here a process each on the CPU: the numbers of one device."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import train, working_in, write_csv, write_data, write_roles
from tests.support.launched import start_launched
from tests.support.processes import PATIENCE
from tests.support.ranks import run_ranks
from trainer.cli import main
from trainer.predictions import read_predictions

SMALL = ["loader.eval_batch_size=8", "device=cpu"]
"""Three batches of the test split, and eight of the training split."""


METRICS = "metrics=[auroc,average_precision,mcc,top_2_accuracy]"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("eval-devices")
    with working_in(made):
        assert train(made / "run", *write_data(made), "train.duration=12", "optimizer.lr=0.01", METRICS) == 0
        yield made


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.rmtree(tmp_path / "run/eval")
    return tmp_path / "run"


def scores(run: Path) -> dict[str, dict[str, Any]]:
    return {file.name: json.loads(file.read_text(encoding="utf-8")) for file in (run / "eval").glob("*.json")}


def evaluate(run: Path, devices: int, *arguments: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return the scores that a number of devices write, and what each of them prints; the predictions are moved."""
    output = run.with_name(f"output-{devices}")
    assert run_ranks(["eval", f"run={run}", *SMALL, *arguments], devices, output) == [0] * devices
    written = scores(run)
    for file in (run / "eval").glob("*.parquet"):
        file.replace(output / file.name)
    shutil.rmtree(run / "eval")
    return written, [(output / f"rank-{rank}.txt").read_text(encoding="utf-8") for rank in range(devices)]


@pytest.mark.parametrize("several", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_devices_find_the_temperature_of_one(several: int, run: Path, trained: Path) -> None:
    file, found = run / "decision.json", []
    keys = ["calibrate=true", f"data.validation={trained}/train.csv"]
    for devices in (1, several):
        if devices == 1:
            assert main(["eval", f"run={run}", *SMALL, *keys]) == 0
            written = scores(run)
        else:
            written, _ = evaluate(run, devices, *keys)
        document = json.loads(file.read_text(encoding="utf-8"))
        assert written["test.json"]["decision"] == "a temperature set after training"
        found.append((document["temperature"], *document["validation"]["calibration"].values()))
        file.unlink()
    assert found[0] == found[1]


@pytest.mark.parametrize("split", ["test", pytest.param("train", marks=pytest.mark.slow)])
def test_scores_equal_those_of_one_device(run: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", f"run={run}", *SMALL, f"split={split}"]) == 0
    page, expected = capsys.readouterr().out, scores(run)
    predictions = (run / f"eval/{split}.predictions.parquet").read_bytes()
    shutil.rmtree(run / "eval")
    for devices in (2, 3) if split == "train" else (3,):
        written, pages = evaluate(run, devices, f"split={split}")
        assert written.keys() == expected.keys()
        assert run.with_name(f"output-{devices}").joinpath(f"{split}.predictions.parquet").read_bytes() == predictions
        for name, document in written.items():
            assert document.pop("loss") == pytest.approx(expected[name]["loss"], rel=1e-12)
            assert document == {key: value for key, value in expected[name].items() if key != "loss"}
        assert pages[0].splitlines()[-1].split() == page.splitlines()[-1].split()
        assert set(pages[1:]) == {""}


def test_a_split_with_fewer_batches_than_devices_is_evaluated_once(run: Path) -> None:
    of_class = "metrics=[{_target_: torchmetrics.CalibrationError, name: ece, n_bins: 15}]"
    keys = ("loader.eval_batch_size=20", of_class, "trust=[torchmetrics]")
    one, _ = evaluate(run, 1, *keys)
    three, _ = evaluate(run, 3, *keys)
    assert three == one
    assert "ece" in one["test.json"]["intervals"]


def test_rows_of_other_data_are_reported_by_one_process(run: Path, trained: Path) -> None:
    other = write_csv(trained / "other.csv", 30, seed=9)
    shutil.copyfile(trained / "train.csv", other)
    written, pages = evaluate(run, 2, f"data.test={other}")
    (name,) = written
    assert name.startswith("test-other-")
    assert ["leaked" in page for page in pages] == [True, False]


def test_the_tools_own_launch_writes_the_same_and_reports_an_error_once(run: Path) -> None:
    expected, _ = evaluate(run, 2)
    output = run.with_name("own.txt")
    line = ["eval", f"run={run}", *SMALL, "devices=2"]
    started = start_launched(line, output)
    started.join(PATIENCE)
    assert started.exitcode == 0, output.read_text(encoding="utf-8")
    assert scores(run) == expected
    started = start_launched([*line, "data.test=no.csv"], output)
    started.join(PATIENCE)
    assert started.exitcode == 6
    assert output.read_text(encoding="utf-8").count("no.csv") == 1
    started = start_launched([*line, "checkpoint=step-3"], output)
    started.join(PATIENCE)
    assert started.exitcode == 3
    assert output.read_text(encoding="utf-8").count("no such checkpoint") == 1


@pytest.mark.slow
def test_ranks_of_positives_equal_those_of_one_device(tmp_path: Path) -> None:
    with working_in(tmp_path):
        options = ["task=sentence_embedding", "task.supervision=pairs", *write_roles(tmp_path)]
        assert train(tmp_path / "run", *options, "train.duration=4") == 0
        files = []
        for devices in (1, 2, 3):
            _, pages = evaluate(tmp_path / "run", devices)
            assert "mrr" in pages[0]
            files.append((tmp_path / f"output-{devices}/test.predictions.parquet").read_bytes())
    table, _ = read_predictions(tmp_path / "output-1/test.predictions.parquet")
    assert table["rank"].null_count == 0
    assert files == [files[0]] * 3
