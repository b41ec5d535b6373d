"""Thresholds and temperatures that `trainer eval` finds, and everything that uses them."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score, matthews_corrcoef, roc_auc_score

from tests.support.jobs import train, working_in, write_roles
from trainer.cli import main
from trainer.predictions import read_predictions
from trainer.shapes import seal

FIND = ("threshold=auto", "calibrate=true")


def write_patients(folder: Path) -> list[str]:
    """Write tables in which one of two classes is rare; return the overrides of a job on them."""
    random, files = np.random.default_rng(0), []
    for split, size in {"train": 300, "validation": 120, "test": 100}.items():
        first, second = random.normal(size=(2, size))
        is_sick = random.random(size) < 1 / (1 + np.exp(-(2 * first - second - 1.5)))
        lines = [
            f"{a:.4f},{b:.4f},{'sick' if sick else 'well'}" for a, b, sick in zip(first, second, is_sick, strict=True)
        ]
        (folder / f"{split}.csv").write_text("\n".join(["a,b,label", *lines]) + "\n", encoding="utf-8")
        files.append(f"data.{split}={folder}/{split}.csv")
    return ["data=files", *files, f"data.cache_dir={folder}/cache"]


JOBS = {
    "labels": ("task=multilabel_classification", "train.duration=16"),
    "two": ("task=tabular_classification", "model=mlp", "train.duration=20"),
    "three": ("task=text_classification", "train.duration=10"),
    "tree": ("task=text_classification", "loss=hierarchical_softmax", "train.duration=10"),
    "values": ("task=regression", "train.duration=1"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("decision")
    (made / "tables").mkdir()
    with working_in(made):
        texts, table = write_roles(made), write_patients(made / "tables")
        for name, overrides in JOBS.items():
            if name == "two":
                common = ("export.formats=[]", "logger.console=none", "logger.tensorboard=false", "device=cpu")
                command = ["train", f"run.dir={made}/two", *common, *table, *overrides, "ema.decay=null"]
                assert main(command) == 0
            else:
                assert train(made / name, *texts, *overrides) == 0
        yield made


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Iterator[Path]:
    """Return a working directory with a copy of each run."""
    for name in JOBS:
        shutil.copytree(trained / name, tmp_path / name)
    with working_in(tmp_path):
        yield tmp_path


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command and returns its output and its notes."""

    def run(*argv: str, code: int = 0) -> tuple[str, str]:
        capsys.readouterr()
        device = ["device=cpu"] if argv[0] in ("eval", "predict") and "run=two/export" not in argv else []
        assert main([*argv, *device]) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def document(run: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(run, "decision.json").read_text(encoding="utf-8"))
    return read


def score(run: str, split: str = "test") -> dict[str, Any]:
    read: dict[str, Any] = json.loads(Path(run, "eval", f"{split}.json").read_text(encoding="utf-8"))
    read.pop("checksum")
    return read


def checkpoints(run: str) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in Path(run, "checkpoints").rglob("*") if file.is_file()}


def answers(output: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.splitlines()]


def test_thresholds_of_labels_are_found_kept_and_used(runs: Path, trained: Path, said: Any) -> None:
    before, own = checkpoints("labels"), score("labels")
    output, notes = said("eval", "run=labels", *FIND, "split=validation")

    assert "thresholds on the validation split" in output
    assert "expected calibration error" in output
    assert "fewer than 10 validation rows have 'animal', 'fruit': the threshold is uncertain" in notes
    assert "no temperature between 0.01 and 100 is best for " in notes
    assert "'tool' on the validation split (too few rows" in notes
    found = document("labels")
    assert [*found["thresholds"]] == [*found["temperature"]] == ["animal", "fruit", "tool"]
    calibration = found["validation"]["calibration"]
    assert calibration["nll"] < calibration["nll_before"]
    assert all(each["f1"] >= each["f1_before"] for each in found["validation"]["thresholds"].values())
    assert checkpoints("labels") == before

    # The metrics of eval are those of the labels that predict shows, and the better ones.
    texts = trained / "validation.jsonl"
    output, notes = said("predict", "run=labels", f"input={texts}")
    assert "note: decides with thresholds and temperatures set after training (labels/decision.json)." in notes
    rows = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()]
    predicted = answers(output)
    names = [*found["thresholds"]]
    target, decided = (
        np.array([[name in row["labels"] for name in names] for row in table]) for table in (rows, predicted)
    )
    metrics = score("labels", "validation")
    assert metrics["decision"] == "thresholds and temperatures set after training"
    assert metrics["macro_f1"] == pytest.approx(f1_score(target, decided, average="macro"), abs=1e-6)
    for row in predicted:
        assert row["labels"] == [name for name in row["probabilities"] if name in row["labels"]]

    # threshold=null and calibrate=false go back.
    said("eval", "run=labels", "threshold=null", "calibrate=false")
    assert not Path("labels", "decision.json").exists()
    assert score("labels") == own


def test_artifacts_and_their_script_decide_as_the_run(runs: Path, trained: Path, said: Any) -> None:
    table = trained / "tables" / "test.csv"
    plain, _ = said("predict", "run=two", f"input={table}", "top=2")
    _, notes = said("eval", "run=two", *FIND)
    assert "note: 'sick', the rarer class of training, is predicted above the threshold." in notes
    found = document("two")
    own, _ = said("predict", "run=two", f"input={table}", "top=2")
    _, notes = said("export", "run=two", "export.formats=[onnx]")
    assert "decides with thresholds and a temperature" in notes

    exported, notes = said("predict", "run=two/export", f"input={table}", "top=2")
    assert "decides with thresholds and a temperature set after training (two/export/task.json)" in notes
    onnx, notes = said("predict", "run=two", "backend=onnx", f"input={table}", "top=2")
    assert "(two/decision.json)" in notes
    command = [sys.executable, "-I", "two/export/predict.py", "--top", "2", str(table)]
    script = subprocess.run(command, capture_output=True, text=True, check=True)
    assert script.stderr == "note: decides with thresholds and a temperature set after training.\n"
    for others in (exported, onnx, script.stdout):
        for ours, theirs in zip(answers(own), answers(others), strict=True):
            assert ours["label"] == theirs["label"]
            assert ours["probabilities"] == pytest.approx(theirs["probabilities"], abs=2e-6)

    # The label follows the threshold, and all scores are those of the labels.
    threshold = found["thresholds"]["sick"]
    decided = [row["label"] for row in answers(own)]
    assert decided == ["sick" if row["probabilities"]["sick"] > threshold else "well" for row in answers(own)]
    assert decided != [row["label"] for row in answers(plain)]
    target = [line.rsplit(",")[-1] for line in table.read_text(encoding="utf-8").splitlines()[1:]]
    metrics = score("two")
    assert metrics["accuracy"] == pytest.approx(accuracy_score(target, decided), abs=1e-6)
    assert metrics["macro_f1"] == pytest.approx(f1_score(target, decided, average="macro"), abs=1e-6)
    manifest = json.loads(Path("two/export/manifest.json").read_text(encoding="utf-8"))
    assert manifest["provenance"]["decision"] == {key: found[key] for key in ("thresholds", "temperature")}

    # Without the rule, the next export leaves nothing of it.
    said("eval", "run=two", "threshold=null", "calibrate=false")
    said("export", "run=two", "export.formats=[onnx]")
    assert not Path("two/export/threshold.json").exists()
    assert not Path("two/export/temperature.json").exists()
    script = subprocess.run(command, capture_output=True, text=True, check=True)
    assert script.stderr == ""
    assert [row["label"] for row in answers(script.stdout)] == [row["label"] for row in answers(plain)]


def test_a_temperature_changes_probabilities_and_no_class(runs: Path, trained: Path, said: Any) -> None:
    texts = trained / "test.jsonl"
    before, _ = said("predict", "run=three", f"input={texts}", "top=3")
    own = score("three")
    said("eval", "run=three", "calibrate=true")
    after, _ = said("predict", "run=three", f"input={texts}", "top=3")

    assert [[*row["probabilities"]] for row in answers(before)] == [[*row["probabilities"]] for row in answers(after)]
    assert before != after
    assert {key: score("three")[key] for key in ("accuracy", "macro_f1")} == {
        key: own[key] for key in ("accuracy", "macro_f1")
    }


@pytest.mark.parametrize(
    ("run", "keys"),
    [("three", ["calibrate=true"]), ("two", [*FIND]), ("labels", [*FIND]), ("tree", ["calibrate=true"])],
)
def test_metrics_are_those_of_the_probabilities_that_are_recorded(
    runs: Path, said: Any, run: str, keys: list[str]
) -> None:
    said("eval", f"run={run}", "metrics=[auroc,average_precision,mcc]")
    before = score(run)
    said("eval", f"run={run}", "metrics=[auroc,average_precision,mcc]", *keys)
    values = score(run)
    rows, about = read_predictions(Path(run, "eval", "test.predictions.parquet"))
    probabilities = np.array(rows["probabilities"].to_pylist())
    names = about["classes"]
    if run == "labels":
        target = np.array([[name in row for name in names] for row in rows["target"].to_pylist()])
        nll = -np.where(target, np.log(probabilities), np.log1p(-probabilities))
        varied = target.any(axis=0) & ~target.all(axis=0)  # others have no area
        assert varied.any()
        positive, shown = target[:, varied], probabilities[:, varied]
        losses = nll.mean(axis=1)
    else:
        classes = np.array([names.index(name) for name in rows["target"].to_pylist()])
        losses = -np.log(probabilities[np.arange(len(classes)), classes])
        positive, shown = np.eye(len(names), dtype=bool)[classes], probabilities
        if len(names) == 2:
            positive, shown = positive[:, 1:], shown[:, 1:]
    assert rows["loss"].to_numpy() == pytest.approx(losses, rel=1e-4, abs=1e-5)
    assert values["loss"] == pytest.approx(losses.mean(), rel=1e-4)
    assert values["auroc"] == pytest.approx(roc_auc_score(positive, shown), abs=1e-9)
    if run != "labels":
        assert values["average_precision"] == pytest.approx(average_precision_score(positive, shown), abs=1e-9)
    if run == "labels":
        decided = [[name in row for name in names] for row in rows["prediction"].to_pylist()]
        expected = matthews_corrcoef(target.ravel(), np.ravel(decided))
    else:
        expected = matthews_corrcoef(rows["target"].to_pylist(), rows["prediction"].to_pylist())
    assert values["mcc"] == pytest.approx(expected, abs=1e-9)
    assert ("mcc" in values["intervals"]) == bool(values["mcc"])  # it is 0 if one class is always predicted
    assert values["loss"] != before["loss"]
    low, high = values["intervals"]["loss"]
    assert low < losses.mean() < high


def test_the_error_of_the_calibration_is_that_of_the_recorded_probabilities(runs: Path, said: Any) -> None:
    said("eval", "run=three", "calibrate=true", "split=validation")
    found = document("three")["validation"]["calibration"]
    rows, about = read_predictions(Path("three", "eval", "validation.predictions.parquet"))
    probabilities = np.array(rows["probabilities"].to_pylist(), dtype=np.float64)
    is_right = np.array(about["classes"])[probabilities.argmax(axis=1)] == np.array(rows["target"].to_pylist())
    bins = np.ceil(probabilities.max(axis=1) * 15)
    gaps = [abs((is_right - probabilities.max(axis=1))[bins == each].sum()) for each in np.unique(bins)]
    assert found["error"] == pytest.approx(sum(gaps) / len(rows), abs=1e-6)
    assert found["nll"] == pytest.approx(score("three", "validation")["loss"], rel=1e-5)


def test_a_rule_keeps_the_results_of_each_search(runs: Path, said: Any) -> None:
    for first, second in (FIND, FIND[::-1]):
        said("eval", "run=two", first)
        found = document("two")["validation"]
        said("eval", "run=two", second)
        kept = document("two")["validation"]
        assert [*kept] == ["thresholds", "calibration"]
        assert kept.items() >= {key: kept[key] if key == "thresholds" else part for key, part in found.items()}.items()
        # A temperature moves the threshold, whose decisions stay.
        assert kept["thresholds"]["sick"]["value"] == document("two")["thresholds"]["sick"]
        said("eval", "run=two", "threshold=0.3")
        assert [*document("two")["validation"]] == ["calibration"]
        said("eval", "run=two", "threshold=null", "calibrate=false")


def test_calibration_keeps_the_decisions_of_thresholds_that_are_kept(runs: Path, trained: Path, said: Any) -> None:
    table = trained / "tables" / "test.csv"
    decided = []
    for keys in (["threshold=auto"], ["calibrate=true"], ["calibrate=false"]):
        said("eval", "run=two", *keys)
        output, _ = said("predict", "run=two", f"input={table}")
        decided.append([row["label"] for row in answers(output)])

    assert decided[0] == decided[1] == decided[2]


def test_a_number_is_a_threshold(runs: Path, trained: Path, said: Any) -> None:
    table = f"input={trained}/tables/test.csv"
    counts = []
    for threshold in ("0.05", "0.5", "0.95"):
        output, _ = said("predict", "run=two", table, f"threshold={threshold}")
        counts.append(sum(row["label"] == "sick" for row in answers(output)))
    assert counts[0] > counts[1] > counts[2]
    assert not Path("two", "decision.json").exists()

    said("eval", "run=two", "threshold=0.05")
    output, _ = said("predict", "run=two", table)
    assert sum(row["label"] == "sick" for row in answers(output)) == counts[0]
    output, notes = said("predict", "run=two", table, "threshold=null")
    assert sum(row["label"] == "sick" for row in answers(output)) == counts[1]
    assert notes == ""
    said("eval", "run=two", "threshold={recall: 0.95}", "split=validation")
    assert document("two")["validation"]["thresholds"]["sick"]["recall"] >= 0.95


def test_a_rule_of_other_weights_is_not_used(runs: Path, trained: Path, said: Any) -> None:
    said("eval", "run=two", *FIND, "checkpoint=best")
    table = f"input={trained}/tables/test.csv"
    found = document("two")
    _, notes = said("predict", "run=two", table, "checkpoint=step-20" if found["step"] != 20 else "checkpoint=step-10")
    assert "decision.json: not used: it has thresholds and a temperature of other weights" in notes
    remedy = notes.rpartition("trainer ")[2].split()
    assert remedy == ["eval", "run=two", "threshold=auto", "calibrate=true"]
    said(*remedy)
    _, notes = said("predict", "run=two", table)
    assert "decides with thresholds and a temperature set after training" in notes

    # A pruned copy has other weights, too.
    _, notes = said("export", "run=two", "prune=l1", "export.formats=[onnx]")
    assert "decides with" not in notes
    (pruned,) = Path("two").glob("export-pruned-*")
    assert "decision" not in json.loads((pruned / "task.json").read_text(encoding="utf-8"))


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "no JSON": (lambda text: text[:40], "is not JSON"),
    "a changed number": (lambda text: text.replace('"step": ', '"step": 1'), "does not match its own checksum"),
    "no temperature": (lambda text: resealed(text, temperature=...), "temperature: is missing"),
    "infinite": (lambda text: resealed(text, temperature=1e999), "temperature: contains the number inf"),
    "overflow": (
        lambda text: re.sub(r'"temperature": [0-9.]+', '"temperature": 1e400', text),
        "temperature: contains the number inf",
    ),
    "no number": (lambda text: resealed(text, temperature=float("nan")), "temperature: contains the number nan"),
    "zero": (lambda text: resealed(text, temperature=0.0), "temperature: must be finite and greater than 0, got 0.0"),
    "of each label": (
        lambda text: resealed(text, temperature={"sick": 1.0}),
        "temperature: must be one number, got ['sick']",
    ),
    "a text": (lambda text: resealed(text, thresholds={"sick": "0.5"}), 'thresholds.sick: must be a number, got "0.5"'),
    "out of range": (
        lambda text: resealed(text, thresholds={"sick": 1.0}),
        "thresholds['sick']: must be at least 0 and less than 1, got 1.0",
    ),
    "both classes": (
        lambda text: resealed(text, thresholds={"sick": 0.5, "well": 0.5}),
        "thresholds: must have one of two classes, got ['sick', 'well']",
    ),
    "another label": (
        lambda text: resealed(text, thresholds={"ill": 0.5}),
        "thresholds: must have one of two classes, got ['ill']",
    ),
    "a huge list": (lambda text: resealed(text, thresholds=[0.5] * 100_000), "thresholds: must be an object, got [0.5"),
    "many labels": (
        lambda text: resealed(text, thresholds={f"label {number}": 0.5 for number in range(50_000)}),
        "thresholds: must have one of two classes, got ['label 0'",
    ),
    "deep": (
        lambda text: text.replace('"thresholds"', '"deep": ' + '{"a":' * 300 + "1" + "}" * 300 + ', "thresholds"'),
        "is nested more than 100 levels deep",
    ),
    "a wrong record": (
        lambda text: resealed(text, validation={"thresholds": [1]}),
        "validation.thresholds: must be an",
    ),
    "a list": (lambda text: "[]", "must be an object, got []"),
}


def resealed(text: str, **changed: object) -> str:
    fields = {key: value for key, value in (json.loads(text) | changed).items() if value is not ...}
    return json.dumps(seal(fields))


def test_a_damaged_rule_is_refused_by_name(runs: Path, trained: Path, said: Any) -> None:
    said("eval", "run=two", *FIND)
    file = Path("two", "decision.json")
    intact = file.read_text(encoding="utf-8")
    for number, (name, (damage, expected)) in enumerate(DAMAGES.items()):
        file.write_text(damage(intact), encoding="utf-8")
        for verb in (["eval"], ["predict", f"input={trained}/tables/test.csv"])[number % 2 :][:1]:
            _, problem = said(verb[0], "run=two", *verb[1:], code=3)
            assert expected in problem, (name, problem[:300])
            assert len(problem) < 600
            assert problem.startswith("two/decision.json: is damaged: "), (name, problem)
            assert problem.endswith("Delete the file to go back to the rule of the task.\n")
    file.unlink()
    said("eval", "run=two")


@pytest.mark.parametrize(
    ("run", "key", "problem"),
    [
        ("values", "threshold=auto", "threshold: does not apply to this run, got 'auto'. Leave it out"),
        ("values", "calibrate=true", "calibrate: does not apply to this run, got true. Leave it out"),
        ("three", "threshold=auto", "needs several labels of a row, or two classes, and this run has 3 classes"),
        ("three", "threshold=0.3", "needs several labels of a row, or two classes, and this run has 3 classes"),
        ("two", "threshold={}", "threshold: names no recall, got {}. Write threshold={recall: 0.9}"),
        ("two", "threshold=atuo", "Did you mean auto?"),
        ("two", "threshold={recal: 0.9}", "threshold.recal: unknown key, got 0.9. Did you mean recall"),
        ("two", "threshold={recall: 2}", "threshold.recall: must be greater than 0 and at most 1, got 2"),
    ],
)
def test_a_wrong_key_is_reported(runs: Path, said: Any, run: str, key: str, problem: str) -> None:
    _, message = said("eval", f"run={run}", key, code=2)
    assert problem in message
    assert not Path(run, "decision.json").exists()


def test_training_goes_on_with_a_rule_that_is_damaged_or_becomes_stale(runs: Path, said: Any) -> None:
    said("eval", "run=three", "calibrate=true")
    file = Path("three", "decision.json")
    intact = file.read_text(encoding="utf-8")
    file.write_text("{}", encoding="utf-8")
    said("train", "resume=three", "train.duration=12")
    log = Path("three", "trainer.log").read_text(encoding="utf-8")
    assert "trainer.commands.finish: three/decision.json: is damaged: " in log

    file.write_text(intact, encoding="utf-8")
    _, notes = said("eval", "run=three", "checkpoint=step-12")
    assert "three/decision.json: not used: it has a temperature of other weights" in notes
    assert "decision" not in score("three")
