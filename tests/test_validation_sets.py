"""Several named validation sets: each is scored, and one of them monitors the run."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from datasets import Dataset

from tests.support.jobs import (
    TINY,
    assert_resumes,
    checkpoint_files,
    events,
    train,
    without_clock,
    working_in,
    write_csv,
)
from tests.support.ranks import run_ranks
from tests.support.sources import FOLDER_SETS, IDX_SETS, write_image_sets
from trainer.cli import main
from trainer.commands.run_folders import read_run
from trainer.config.command import check_command
from trainer.config.stored import config_text, job_from_text, load_stored_config
from trainer.data.quality import GROUP_DIGEST, INPUT_DIGEST, TARGET_DIGEST, measure_quality
from trainer.errors import ConfigError
from trainer.report.screen import Course, EvaluationTable
from trainer.run import Validation
from trainer.state import Score, TrainState
from trainer.validation_sets import by_split, file_stem, select_monitored, set_problem

STEPS = ("train.duration=8", "train.eval_every=4", "checkpoint.every=4", "checkpoint.keep=8")
SETS = ["clean", "noisy"]
SPLITS = ["validation/clean", "validation/noisy"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The arguments of a job without a validation set, and the files of two."""
    folder = tmp_path_factory.mktemp("sets")
    with working_in(folder):
        files = {
            name: str(write_csv(folder / f"{name}.csv", size, seed))
            for seed, (name, size) in enumerate({"train": 61, "clean": 20, "noisy": 27}.items())
        }
        yield files


def job(data: dict[str, str], validation: str, *keys: str) -> list[str]:
    return ["data=files", f"data.train={data['train']}", f"data.validation={validation}", "data.split.test=0", *keys]


def both(data: dict[str, str]) -> str:
    return f"{{clean: {data['clean']}, noisy: {data['noisy']}}}"


@pytest.fixture(scope="module")
def run(data: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that a set other than the first one monitors."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    assert train(folder, *STEPS, *job(data, both(data), "checkpoint.monitor=noisy/macro_f1")) == 0
    return folder


def evaluations(folder: Path, split: str) -> list[dict[str, object]]:
    """Return the evaluations of a set during training, without the name of the set."""
    return [
        event | {"split": ""}
        for event in without_clock(events(folder, "eval"))
        if event["split"] == split and "best_step" not in event
    ]


@pytest.mark.parametrize("name", ["clean", "noisy"])
def test_each_set_has_the_scores_of_a_run_with_this_set_only(
    name: str, run: Path, data: dict[str, str], tmp_path: Path
) -> None:
    single = tmp_path / "single"
    assert train(single, *STEPS, *job(data, data[name])) == 0

    steps = [without_clock(events(folder, "train")) for folder in (run, single)]
    assert steps[0] == steps[1]
    assert len(evaluations(single, "validation")) == 4
    assert evaluations(run, f"validation/{name}") == evaluations(single, "validation")
    assert b"split" not in checkpoint_files(single, 8)["state.json"]
    assert b'"split":"validation/noisy"' in checkpoint_files(run, 8)["state.json"].replace(b" ", b"")


def test_the_monitored_set_picks_the_best_checkpoint(run: Path) -> None:
    scores = evaluations(run, "validation/noisy")
    best = max(scores, key=lambda event: (event["macro_f1"], -float(str(event["loss"]))))
    stored = read_run(str(run)).best

    assert stored is not None
    assert (stored["name"], stored["split"]) == ("macro_f1", "validation/noisy")
    assert [stored[key] for key in ("step", "value", "loss", "weights")] == [
        best[key] for key in ("step", "macro_f1", "loss", "weights")
    ]


def test_a_run_with_two_sets_resumes_to_the_same_bytes(run: Path, tmp_path: Path, data: dict[str, str]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    moved = shutil.copy(data["clean"], tmp_path / "moved.csv")
    assert_resumes(copy, 4, f"data.validation.clean={moved}")


@pytest.mark.slow
def test_two_devices_score_two_sets_as_one_device(run: Path, data: dict[str, str], tmp_path: Path) -> None:
    keys = [*TINY, *STEPS, *job(data, both(data), "checkpoint.monitor=noisy/macro_f1")]
    two, one = tmp_path / "two", tmp_path / "one"
    assert run_ranks(["train", *keys, f"run.dir={two}"], 2, tmp_path / "output") == [0, 0]
    assert train(one, *keys, "train.accumulate=2") == 0

    assert checkpoint_files(two, 8) == checkpoint_files(one, 8)
    assert without_clock(events(two)) == without_clock(events(one))


def test_every_set_has_an_evaluation_and_its_predictions(run: Path) -> None:
    record = read_run(str(run))
    assert sorted(record.evaluations) == ["validation.clean", "validation.noisy"]
    assert [record.evaluations[file_stem(split)]["split"] for split in SPLITS] == SPLITS
    assert record.monitored_evaluation == "validation.noisy"
    assert {file.name for file in (run / "eval").glob("*.parquet")} == {
        "validation.clean.predictions.parquet",
        "validation.noisy.predictions.parquet",
    }
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(f"{split}, averaged weights" in page for split in SPLITS)
    assert "Validation/noisy macro F1" in page
    assert record.best is not None
    assert f"validation/noisy macro F1 {record.best['value']:.4f}, " in page
    assert ">validation.clean<" not in page


def test_a_set_is_evaluated_by_its_name(run: Path, data: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = {file.name: file.read_bytes() for file in (run / "eval").glob("*.json")}
    for split in ("validation", "validation/clean"):
        assert main(["eval", f"run={run}", f"split={split}"]) == 0
    assert {file.name: file.read_bytes() for file in (run / "eval").glob("*.json")} == before

    # Other files for a set are other rows.
    assert main(["eval", f"run={run}", "split=validation/clean", f"data.validation.clean={data['train']}"]) == 0
    (new,) = {file.name for file in (run / "eval").glob("*.json")} - before.keys()
    assert new.startswith("validation.clean-train-")
    capsys.readouterr()
    assert main(["eval", f"run={run}", "split=validation/clen"]) == 2
    message = "split: the data has no such validation set, got 'validation/clen'. Did you mean validation/clean?\n"
    assert capsys.readouterr().err.endswith(message)
    for file in (run / "eval").glob(f"{new.removesuffix('.json')}*"):
        file.unlink()


def test_the_first_set_monitors_by_default(data: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    keys = [*TINY, *job(data, both(data)), "trial=false"]
    assert main(["plan", *keys, "json=true"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"]["monitor"] == {"split": "validation/clean", "metric": "accuracy"}
    assert list(document["data"]["splits"]) == ["train", *SPLITS]
    assert main(["plan", *keys, "checkpoint.monitor=noisy/loss"]) == 0
    assert "loss on validation/noisy" in capsys.readouterr().out


@pytest.mark.parametrize("source", ["lines", "conll"])
def test_other_sources_of_files_have_named_sets(source: str, tmp_path: Path) -> None:
    contents = {"lines": "one sentence {}\n\nanother {}\n", "conll": "a O\nb{} B-x\n\nc O\n"}
    for name in ("train", "clean", "noisy"):
        (tmp_path / f"{name}.txt").write_text(contents[source].format(name, name), encoding="utf-8")
    sets = f"{{clean: {tmp_path / 'clean.txt'}, noisy: {tmp_path / 'noisy.txt'}}}"
    task = {"lines": ["task=causal_lm", "model=decoder"], "conll": ["task=token_classification"]}[source]
    keys = [f"data={source}", f"data.train={tmp_path / 'train.txt'}", f"data.validation={sets}", "data.split.test=0"]
    with working_in(tmp_path):
        tiny = [key for key in TINY if not key.startswith("model.hidden")]
        assert train(tmp_path / "run", *tiny, *task, *keys, "train.duration=1") == 0
    assert {event["split"] for event in events(tmp_path / "run", "eval")} == set(SPLITS)


@pytest.mark.parametrize("source", ["idx", "imagefolder"])
def test_sets_of_images_are_named_on_the_command_line(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = [key for key in TINY if not key.startswith(("model.", "task."))]
    job = ["model=linear", *images, *(IDX_SETS if source == "idx" else FOLDER_SETS)]
    with working_in(tmp_path):
        write_image_sets(tmp_path)
        line = [*job, "checkpoint.monitor=noisy/loss", "train.duration=2"]
        assert main(["train", *line, "run.dir=run", "train.eval_every=2", "checkpoint.every=1"]) == 0
        assert_resumes(tmp_path / "run", 1)
        assert main(["eval", "run=run", "split=validation/clean", "device=cpu"]) == 0
        capsys.readouterr()
        twice = "{image: a, labels: b}" if source == "idx" else "{clean: clean, noisy: ./clean}"
        assert main(["train", *job, f"data.validation={twice}"]) in (2, 6)
    message = {
        "idx": "data.validation.image: unknown key, got 'a'. Did you mean data.validation.images?",
        "imagefolder": "data.validation.noisy: names a folder of data.validation.clean too, got './clean'. Leave",
    }
    assert message[source] in capsys.readouterr().err
    assert {event["split"] for event in events(tmp_path / "run", "eval") if event["step"] == 2} >= set(SPLITS)


def test_a_run_of_an_earlier_version_may_monitor_a_set_with_the_name_of_a_metric(
    run: Path, data: dict[str, str], tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    stored = load_stored_config(copy)
    stored["data"]["validation"] = {"noisy": data["noisy"], "loss": data["clean"]}
    stored["checkpoint"]["monitor"] = "loss"
    (copy / "config.yaml").write_text(config_text(stored), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^checkpoint\.monitor: is a validation set and a metric, got 'loss'"):
        check_command(
            "train", job(data, f"{{noisy: {data['noisy']}, loss: {data['clean']}}}", "checkpoint.monitor=loss")
        )
    resumed = check_command("train", [f"resume={copy}"]).single
    assert resumed is not None
    assert resumed.config["checkpoint"]["monitor"] == "loss"
    assert job_from_text(config_text(stored), ()).checkpoint.monitor == "loss"


def test_the_end_of_a_run_shows_all_sets(
    data: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = [*job(data, both(data)), "data.split.test=0.1", "train.duration=2", "train.eval_every=2"]
    assert train(tmp_path / "run", *keys, "logger.console=plain") == 0
    table = capsys.readouterr().out.rpartition("95% interval")[0].splitlines()[-6:]
    assert [name for line in table for name in line.split()[:1]][-5:] == [
        "validation/clean",
        "95%",
        "validation/noisy",
        "95%",
        "test",
    ]
    assert events(tmp_path / "run", "eval")[-1]["split"] == "test"
    (start,) = events(tmp_path / "run", "start")
    assert start["device"] == "cpu"


def test_splits_of_the_hub_are_sets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from datasets import Dataset, DatasetDict

    def rows(numbers: range) -> Dataset:
        return Dataset.from_dict({"text": [f"fruit {n}" for n in numbers], "label": ["ab"[n % 2] for n in numbers]})

    tables = {"train": rows(range(40)), "dev": rows(range(40, 50)), "web": rows(range(50, 64))}
    DatasetDict(tables).save_to_disk(str(tmp_path / "saved"))
    keys = ["data=hub", "data.path=saved", "data.split.test=0", "data.splits.test=null", "data.cache_dir=cache"]
    sets = "data.splits.validation={clean: dev, noisy: web}"
    with working_in(tmp_path):
        monitored = "checkpoint.monitor=noisy/accuracy"
        assert train(tmp_path / "run", *keys, sets, monitored, "train.duration=2", "train.eval_every=2") == 0
        assert main(["eval", f"run={tmp_path / 'run'}", "split=validation/clean", "device=cpu"]) == 0
        capsys.readouterr()
        assert train(tmp_path / "other", *keys, sets, "checkpoint.monitor=noise/loss", "data.folds=2") == 2
    message = capsys.readouterr().err
    assert "checkpoint.monitor: there is no validation set 'noise'" in message
    assert "data.folds: folds replace several validation sets, got 2." in message
    logged = {event["split"]: event["step"] for event in events(tmp_path / "run", "eval")}
    assert logged == {"validation/clean": 2, "validation/noisy": 2}


@pytest.mark.parametrize(
    ("validation", "keys", "message"),
    [
        ("{train: a.csv}", [], "data.validation: the name of a validation set is letters, digits, _ and -, from a "),
        ("{Dev: a.csv, dev: a.csv}", [], "data.validation: differs from 'Dev' in case only, so some disks would keep"),
        ("{a b: a.csv}", [], "data.validation: the name of a validation set is letters, digits, _ and -, from a "),
        ("{../x: a.csv}", [], "data.validation: the name of a validation set is letters, digits, _ and -, from a "),
        (
            "{" + "x" * 129 + ": a.csv}",
            [],
            "data.validation: the name of a validation set is letters, digits, _ and -, fr",
        ),
        (
            "{images: a.csv, labels: b.csv}",
            [],
            "data.validation: two sets of the names images and labels would be one ",
        ),
        (
            "{a: a.csv, b: ./a.csv}",
            [],
            "data.validation.b: names a file of data.validation.a too, got './a.csv'. Leave ",
        ),
        (
            "{a: training.csv}",
            [],
            "data.validation.a: names a file of data.train too, got 'training.csv'. Leave it out ",
        ),
        (
            "{a: a.csv, loss: other.csv}",
            ["checkpoint.monitor=loss"],
            "checkpoint.monitor: is a validation set and a metric, got 'loss'. Write loss/<metric> for the set, or a/l",
        ),
        ("{1x: a.csv}", [], "data.validation: the name of a validation set is letters, digits, _ and -, from a "),
        ("{}", [], "data.validation: names no set, got {}. Set a file or a split, or null."),
        ("{a: 3}", [], "data.validation: must be "),
        ("{a: null}", [], "data.validation: must be "),
        ("{clean: a.csv}", ["checkpoint.monitor=clen/loss"], "checkpoint.monitor: there is no validation set 'clen'"),
        (
            "{clean: a.csv}",
            ["checkpoint.monitor=clean/f3"],
            "checkpoint.monitor: must be a metric by which checkpoints",
        ),
        ("a.csv", ["checkpoint.monitor=clean/loss"], "checkpoint.monitor: must be a metric by which checkpoints"),
        ("{clean: a.csv}", ["data.folds=3"], "data.folds: folds replace several validation sets, got 3. Set data."),
        ("{clean: b.csv}", [], "data.validation.clean: no such file, got 'b.csv'. Paths are relative to"),
    ],
)
def test_wrong_sets_are_refused_before_torch_loads(
    validation: str, keys: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with working_in(tmp_path):
        write_csv(Path("a.csv"))
        write_csv(Path("training.csv"))
        write_csv(Path("other.csv"))
        code = main(["train", "data=files", "data.train=training.csv", f"data.validation={validation}", *keys])
    assert code == (6 if "no such file" in message or "names a file" in message else 2)
    assert capsys.readouterr().err.startswith(message)


def test_one_file_cannot_be_two_sets(data: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    sets = f"{{clean: {data['clean']}, noisy: {data['clean']}}}"
    assert main(["plan", *job(data, sets)]) == 6
    assert "data.validation.noisy: names a file of data.validation.clean too, got " in capsys.readouterr().err


def test_names_of_splits() -> None:
    assert by_split(None) == {"validation": None}
    assert by_split(["a", "b"]) == {"validation": ["a", "b"]}
    assert by_split({"images": "a", "labels": "b"}) == {"validation": {"images": "a", "labels": "b"}}
    assert by_split({"b": "x", "a": ["y"]}) == {"validation/b": "x", "validation/a": ["y"]}
    assert select_monitored("a/f1", ["validation/b", "validation/a"]) == ("validation/a", "f1")
    assert select_monitored("f1", ["validation/b", "validation/a"]) == ("validation/b", "f1")
    assert select_monitored(None, ["validation"]) == ("validation", None)
    assert select_monitored("a/f1", ["validation"]) == ("validation", "a/f1")
    assert set_problem("a/f1", "file") is None


def test_sets_are_compared_with_the_splits_before_and_not_with_each_other() -> None:
    def rows(*inputs: int) -> Dataset:
        return Dataset.from_dict({name: list(inputs) for name in (INPUT_DIGEST, TARGET_DIGEST, GROUP_DIGEST, "time")})

    splits = {
        "train": rows(1, 2),
        "validation/clean": rows(3, 4, 2),
        "validation/noisy": rows(3, 4, 5, 1),
        "test": rows(6, 5, 3, 7),
    }
    report = measure_quality(splits, "class")
    for name in ("leaked", "shared groups"):
        assert {split: shares[name] for split, shares in report.shares.items() if name in shares} == {
            "validation/clean": pytest.approx(1 / 3),
            "validation/noisy": pytest.approx(1 / 4),
            "test": pytest.approx(2 / 4),
        }
    assert report.shares["validation/noisy"]["too old"] == 1 / 4
    assert report.shares["test"]["too old"] == 2 / 4
    assert report.times["validation/noisy"] == ("1", "5")


def test_the_split_of_a_score_survives_and_is_left_out_of_a_single_set() -> None:
    for split, is_stored in (("validation", False), ("validation/noisy", True)):
        state = TrainState(3, None, Score("accuracy", 0.5, True, "raw", 1.0, split), 2)
        document = json.loads(json.dumps(state.state_dict()))
        assert ("split" in document["best"]) is is_stored
        copy = TrainState()
        copy.load_state_dict(document)
        assert copy == state


def test_the_table_of_evaluations_names_the_set_and_marks_the_monitored_one() -> None:
    noisy = Validation({}, "validation/noisy", "accuracy", lambda: True)
    course = Course(8, 1.0, "accuracy", noisy.score, split="validation/noisy")
    table, lines = EvaluationTable(), []
    for split, accuracy in (("validation/clean", 0.9), ("validation/noisy", 0.5)):
        values = {"split": split, "weights": "raw", "loss": 1.0, "accuracy": accuracy}
        lines += table.lines(course, 4, 0.5, values, course.observe(4, values), 80)
    assert [line.split() for line in lines] == [
        ["step", "epoch", "set", "weights", "loss", "accuracy"],
        ["4", "0.50", "clean", "raw", "1.0000", "0.9000"],
        ["*", "4", "0.50", "noisy", "raw", "1.0000", "0.5000"],
    ]
    assert course.best is not None
    assert course.best.value == 0.5
