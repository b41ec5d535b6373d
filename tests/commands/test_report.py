"""`trainer report`: a page about runs."""

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.support.documents import artifact_entry, export_manifest
from tests.support.jobs import train, working_in, write_data, write_roles
from tests.support.pages import check_page
from tests.support.stored_predictions import write_predictions
from trainer.cli import main
from trainer.commands.report import write_page
from trainer.commands.report_comparison import Comparison, decide
from trainer.commands.report_sections import NamedRun
from trainer.commands.run_folders import read_run
from trainer.export.folder import write_manifest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("report")
    with working_in(made):
        data, lengths = write_data(made), ["train.duration=6", "train.eval_every=2"]
        assert train(made / "runs" / "one", *data, *lengths) == 0
        assert train(made / "runs" / "two", *data, *lengths, "optimizer.lr=0.5", "ema.decay=null") == 0
        yield made


def cells(page: str) -> list[list[str]]:
    rows = re.findall(r"<tr[^>]*>(.*?)</tr>", page, re.DOTALL)
    return [[html.unescape(cell) for cell in re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_page_of_a_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "run=runs/one"]) == 0
    assert capsys.readouterr().out.strip() == "runs/one/report.html"
    page = Path("runs/one/report.html").read_text(encoding="utf-8")
    evaluation = json.loads(Path("runs/one/eval/test.json").read_text())
    check_page(page)

    assert "<title>one: text classification</title>" in page
    assert f"Test accuracy {evaluation['accuracy']:.4f}" in page
    assert re.search(
        r"against 0\.\d{4} for always answering \w+, the commonest here\. The run is complete, 6 steps\.", page
    )
    assert "The run is complete, 6 steps." in page
    rows = cells(page)
    shown = next(row for row in rows if row[:1] == ["test"])
    assert any(cell.startswith(f"{evaluation['accuracy']:.4f}") for cell in shown)
    assert ["train", "61"] in [row[:2] for row in rows]
    assert any("torch" in row[-1] and row[0] == "start at step 0" for row in rows if row)
    # Losses, two metrics, learning rate, norm, two rates and memory.
    assert page.count('aria-label="loss over step: training, validation, validation, averaged weights"') == 1
    assert page.count(" over step: ") == 8
    assert page.count('class="mark"') >= 3


TASKS = {
    "text_classification": ("Test accuracy", {"Confusion matrix", "Calibration"}, {"Scores of each class"}),
    "multilabel_classification": ("Test micro F1", {"Calibration"}, {"Scores of each label"}),
    "regression": ("Test R²", {"Prediction against target", "Residuals"}, {"Distances of predictions and targets"}),
    "token_classification": ("Test entity F1", set(), {"Scores of each entity type"}),
    "sentence_embedding": ("Test MRR", {"Cosine of the two texts of a pair"}, set()),
    "causal_lm": ("Test perplexity", {"Loss of each text", "Right tokens of each text"}, set()),
}


@pytest.mark.parametrize("task", TASKS)
def test_pages_of_tasks(task: str, tmp_path: Path) -> None:
    metric, figures, tables = TASKS[task]
    with working_in(tmp_path):
        data = [f"task={task}", *write_roles(tmp_path), "loader.limit=20"]
        assert train(tmp_path / "run", *data, "train.duration=2", "train.eval_every=2") == 0
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    check_page(page)

    assert f"{metric} " in page
    shown = {html.unescape(title) for title in re.findall(r"<figcaption>(.*?)(?:<small|</figcaption)", page)}
    assert figures <= shown
    assert {"Loss", "Learning rate", "Gradient norm", "Throughput"} <= shown
    titles = [html.unescape(title) for title in re.findall(r"<h3>(.*?)</h3>", page)]
    assert {"Scores", "Splits", "Processes", "Worst rows"} <= {*titles}
    assert all(any(title.startswith(wanted) for title in titles) for wanted in tables)
    worst = cells(page[page.index("<h3>Worst rows</h3>") :])
    place, text = (worst[0].index(column) for column in ("file and row", "input"))
    file, line = worst[1][place].rsplit(":", 1)
    row = json.loads(Path(file).read_text().splitlines()[int(line) - 1])
    assert row["text"].split()[:5] == worst[1][text].split()[:5]


def test_the_page_needs_no_heavy_module(folder: Path) -> None:
    code = "import sys; from trainer.cli import main; main(['report', 'run=runs/one', 'output=light.html'])"
    code += "; print([name for name in ('torch', 'pandas', 'datasets', 'matplotlib') if name in sys.modules])"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    code += "; main(['report', 'run=runs/one', 'beside=[runs/two]', 'output=pair.html']); print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)

    assert process.stdout.splitlines() == ["light.html", "[]", "pair.html", "False"]


def test_damaged_predictions_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "damaged"
    shutil.copytree("runs/one", run)
    file = run / "eval" / "test.predictions.parquet"
    file.write_bytes(file.read_bytes()[:100])
    assert main(["report", f"run={run}", "force=true"]) == 3
    message = f"{file}: cannot be read as Parquet. Evaluate again: trainer eval."
    assert message in capsys.readouterr().err


def test_keys_that_differ_from_the_defaults_come_first(folder: Path) -> None:
    assert main(["report", "run=runs/two", "output=two.html"]) == 0
    page = Path("two.html").read_text(encoding="utf-8")
    changed, _, rest = page.partition("<h2>Config</h2>")[2].partition("<details>")

    assert ["optimizer.lr", "0.5", "0.001"] in cells(changed)
    assert ["ema.decay", "null", "0.999"] in cells(changed)
    assert ["data", "files", "stdlib_docs"] in cells(changed)
    assert not {"optimizer.weight_decay", "run.dir", "task.tokenizer"} & {row[0] for row in cells(changed) if row}
    assert ["optimizer.weight_decay", "0.01"] in cells(rest)


def test_runs_are_shown_side_by_side(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alone = Path("runs/one/report.html").read_bytes()
    assert main(["report", "runs/one", "runs/two"]) == 0
    assert capsys.readouterr().out == "runs/one/comparison.html\n"
    assert Path("runs/one/report.html").read_bytes() == alone
    page = Path("runs/one/comparison.html").read_text(encoding="utf-8")
    check_page(page)
    rows = cells(page)

    assert "<title>2 runs that differ in ema.decay and optimizer.lr</title>" in page
    ranked = [row for row in rows if row[-1] == "complete"]
    assert {row[0] for row in ranked} == {"one", "two"}
    scores = [float(row[3]) for row in ranked]
    assert all(re.fullmatch(r"0\.\d{4} \(0\.\d{4} to \d\.\d{4}\)", row[5]) for row in ranked)
    assert ranked[0][4] == ""
    assert re.fullmatch(r"[+-]0\.\d{4} \([+-]0\.\d{4} to [+-]0\.\d{4}\): (better|no difference shown)", ranked[1][4])
    assert scores == sorted(scores, reverse=True)
    assert ["optimizer.lr", *(row[2] for row in ranked)] in rows
    assert page.count("<li class=") == 2
    names = {f"ema.decay={row[1]}, optimizer.lr={row[2]}" for row in ranked}
    assert names <= {html.unescape(name) for name in re.findall(r'<li class="[^"]*">(.*?)</li>', page)}


def write_answers(run: Path, right: int, *, keeps: bool = True) -> float:
    """Write the predictions of 60 rows, of which so many are right, as the validation of a run; return the accuracy."""
    targets = ["a", "b"] * 30
    answers = [target if row < right else "ab".replace(target, "") for row, target in enumerate(targets)]
    file = run / "eval" / "validation.predictions.parquet"
    file.unlink(missing_ok=True)
    if keeps:
        write_predictions(
            run / "eval", "class", classes=["a", "b"], name="validation", target=targets, prediction=answers
        )
    scores = {"split": "validation", "step": 8, "weights": "raw", "digest": "", "accuracy": right / 60, "loss": 1.0}
    (run / "eval" / "validation.json").write_text(json.dumps(scores))
    return right / 60


@pytest.mark.parametrize(
    ("right", "keeps", "verdict"),
    [
        (60, True, "It is better than two on the 60 validation rows that both have predicted: accuracy +0.2500"),
        (
            46,
            True,
            "This decides nothing: on the 60 validation rows that both have predicted, no difference from two is",
        ),
        (60, False, "Without predictions of the same validation rows, the difference may be chance."),
    ],
)
def test_the_best_run_is_compared_on_the_same_rows(
    right: int, keeps: bool, verdict: str, folder: Path, tmp_path: Path
) -> None:
    records = []
    for name, count in (("one", right), ("two", 45)):
        shutil.copytree("runs/one", tmp_path / name)
        value = write_answers(tmp_path / name, count, keeps=keeps or name == "one")
        if not keeps:
            (tmp_path / name / "eval" / "test.json").unlink()
        best = {"step": 8, "name": "accuracy", "value": value, "higher_is_better": True, "weights": "raw"}
        records.append(replace(read_run(str(tmp_path / name)), best=best))
    write_page(tmp_path / "both.html", records[::-1])
    page = (tmp_path / "both.html").read_text(encoding="utf-8")
    check_page(page)

    assert verdict in page
    assert ("In parentheses: the 95% interval." in page) == keeps
    changed = (
        f"{right - 45} {'row' if right == 46 else 'rows'} changed sides: {right - 45} right only in one, 0 only in two"
    )
    assert (changed in page) == keeps
    assert page.count("Confusion matrix: ") == (4 if keeps else 0)  # the captions, and the names of what scrolls
    shown = [row[2:] for row in cells(page) if row[:2] == ["a", "30"]]
    assert shown == ([[{60: "1.0000", 46: "0.7667"}[right], "0.7541"]] if keeps else [])


def test_runs_without_predictions_of_the_same_rows_are_counted(folder: Path) -> None:
    runs = [NamedRun(name, read_run("runs/one")) for name in ("second", "third")]
    metric = {"difference": 0.01, "interval": [-0.1, 0.1], "verdict": "no difference shown"}
    comparisons = [Comparison(runs[0], 20, metric, None), Comparison(runs[1], 0, None, None)]
    assert decide(comparisons, "accuracy") == (
        "This decides nothing: on the same 20 validation rows, no difference from second is shown. "
        "1 cannot be compared without predictions of the same rows."
    )


@pytest.mark.parametrize("key", ["logger.tensorboard", "metrics", "export.formats", "train.log_every"])
def test_runs_are_not_compared_by_what_they_only_record(key: str, folder: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shutil.copytree("runs/one", tmp_path / name)
    config = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    *groups, last = key.split(".")
    part = config[groups[0]] if groups else config
    part[last] = ["auroc"] if key == "metrics" else 7
    (tmp_path / "other" / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    write_page(tmp_path / "both.html", [read_run(str(tmp_path / name)) for name in ("one", "other")])
    page = (tmp_path / "both.html").read_text(encoding="utf-8")

    assert "<title>2 runs of one config</title>" in page
    assert f">{key}<" in page[page.index("What the runs differ in") :]


def test_twelve_runs_are_compared_by_what_they_differ_in(folder: Path) -> None:
    for number in range(12):
        run = Path(f"runs/many/{number}")
        shutil.copytree("runs/one", run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["seed"], config["optimizer"]["lr"] = number % 3, 0.1 * (1 + number // 3)
        (run / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    beside = ",".join(f"runs/many/{number}" for number in range(1, 12))
    assert main(["report", "run=runs/many/0", f"beside=[{beside}]", "output=many.html"]) == 0
    page = Path("many.html").read_text(encoding="utf-8")
    check_page(page)

    assert "<title>12 runs that differ in seed and optimizer.lr</title>" in page
    legend = re.findall(r'<li class="([^"]*)">(.*?)</li>', page)
    assert len(legend) == len({look for look, _ in legend}) == len({name for _, name in legend}) == 12
    # One line for each run, however many weights were evaluated.
    assert page.count(" over step: ") == 9
    assert page.count("<polyline") == 9 * 12
    # Columns of many runs are as narrow as their ranks.
    assert ["key", *(f"#{rank}" for rank in range(1, 13))] in cells(page)
    assert (
        "This decides nothing: on the same 20 validation rows, no difference from the other 11 runs is shown." in page
    )


@pytest.mark.parametrize(
    ("events", "last", "words"),
    [
        ([{"event": "early_end", "best_step": 2}], 4, "The run stopped early, after step 4 of 6: no better score"),
        ([{"event": "train", "loss": 1.0}], 3, "not finished, last event at step 3 of 6"),
        ([{"event": "resume", "total_steps": 9}], 4, "not finished, last event at step 4 of 9"),
        (
            [{"event": "stop", "reason": "SIGTERM"}],
            3,
            "The run stopped, after step 3 of 6, by SIGTERM; it can be",
        ),
    ],
)
def test_why_a_run_ended(events: list[dict[str, object]], last: int, words: str, folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "ended"
    shutil.copytree("runs/one", run)
    start = (run / "metrics.jsonl").read_text().splitlines()[0]
    lines = [json.dumps({"step": last, "epoch": 0.5, **event}) for event in events]
    (run / "metrics.jsonl").write_text("\n".join([start, *lines]) + "\n")
    assert main(["report", f"run={run}"]) == 0

    assert words in (run / "report.html").read_text(encoding="utf-8")
    if "not finished" in words:
        (run / "diverged").mkdir()
        assert main(["report", f"run={run}"]) == 0
        assert f"The run diverged, after step {last} of" in (run / "report.html").read_text(encoding="utf-8")


def test_runs_of_earlier_versions_have_a_page(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "old"
    shutil.copytree("runs/one", run)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    start = {key: json.loads(lines[0])[key] for key in ("event", "step", "epoch", "seed")}
    (run / "metrics.jsonl").write_text("\n".join([json.dumps(start), *lines[1:]]) + "\n")
    assert main(["report", f"run={run}"]) == 0

    page = (run / "report.html").read_text(encoding="utf-8")
    check_page(page)
    assert "The run is complete, 6 steps." in page


def test_proofs_of_artifacts_are_shown(folder: Path) -> None:
    export = folder / "runs" / "one" / "export"
    export.mkdir(exist_ok=True)
    proof = artifact_entry(bytes=77, largest_difference=1e-6, metrics={"accuracy": 0.25})
    manifest = export_manifest(monitor="accuracy", metrics={"accuracy": 0.5}, artifacts={"onnx": proof})
    times = [{"sizes": {"batch": 1}, "milliseconds": {"pytorch": 2.5, "onnx": 0.5}}]
    times += [{"sizes": {"batch": 8}, "milliseconds": {"pytorch": 994.0, "onnx": 0.7531}, "disturbed": True}]
    manifest["timings"] = {"threads": 1, "rows": times}
    write_manifest(export / "manifest.json", manifest)
    assert main(["report", "run=runs/one", "output=artifacts.html"]) == 0

    page = Path("artifacts.html").read_text(encoding="utf-8")
    assert "export: no latency of 1 of 2 shapes: something else used the processor" in page
    assert "0.7531" not in page
    rows = cells(page)
    assert ["onnx", "export/model.onnx", "77 B", "1.000e-06", "", "0.2500", "0.5000"] in rows
    assert ["1", "2.5000", "0.5000"] in rows
    assert "accuracy in PyTorch" in page


def test_a_warning_of_all_runs_is_shown_once(folder: Path) -> None:
    shutil.copytree("runs", "warned")
    for name, lines in {"one": ("of both", "of one"), "two": ("of both",)}.items():
        with Path("warned", name, "trainer.log").open("a") as log:
            log.writelines(f"2030-01-31 12:00:00,000 WARNING trainer.data: warning {line}\n" for line in lines)
    assert main(["report", "warned/one", "warned/two"]) == 0
    page = html.unescape(Path("warned/one/comparison.html").read_text(encoding="utf-8"))
    assert page.count(">warning of both<") == 1
    assert page.count("warning of both") == 1
    assert re.search("[^>]+: warning of one<", page)


@pytest.mark.parametrize(
    ("overrides", "code", "message"),
    [
        (["run=nowhere"], 3, "run: no such folder, got 'nowhere'"),
        (["run=runs/one", "beside=[nowhere]"], 3, "beside: no such folder, got 'nowhere'"),
        (["run=runs/one", "output=no/where.html"], 2, "no/where.html: cannot be written: No such file or directory"),
    ],
)
def test_errors(
    overrides: list[str], code: int, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", *overrides]) == code
    assert message in capsys.readouterr().err


def test_secrets_of_a_config_are_masked(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree("runs/one", "runs/secret")
    config = yaml.safe_load(Path("runs/one/config.yaml").read_text())
    config["data"] |= {"train": "https://me:hunter2@host/train.csv", "api_key": "hunter2"}
    Path("runs/secret/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    assert main(["report", "run=runs/secret", "output=secret.html"]) == 0
    assert main(["diff", "left=runs/one", "right=runs/secret"]) == 0
    assert main(["diff", "left=runs/one", "right=runs/secret", "json=true"]) == 0
    shown = capsys.readouterr().out + Path("secret.html").read_text(encoding="utf-8")
    assert "hunter2" not in shown
    assert shown.count("https://***@host/train.csv") == 3
    assert ["data.api_key", "***", "(none)"] in cells(shown)


def test_only_pages_of_this_tool_are_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    foreign, own = Path("data.csv"), Path("runs/one/config.yaml")
    foreign.write_text("text,label\n")
    before = own.read_bytes()
    assert main(["report", "run=runs/one", "output=data.csv"]) == 2
    assert (
        "output: was not written by trainer, or has been changed since, got 'data.csv'. Set force=true"
        in capsys.readouterr().err
    )
    assert foreign.read_text() == "text,label\n"
    assert main(["report", "run=runs/one", f"output={own}", "force=true"]) == 2
    assert own.read_bytes() == before
    assert main(["report", "run=runs/one", "output=/dev/null", "force=true"]) == 2
    for force in ("true", "false"):  # the second time, it is a page
        assert main(["report", "run=runs/one", "output=data.csv", f"force={force}"]) == 0
    assert foreign.read_text().startswith("<!doctype html>")


def test_a_report_of_the_users_in_the_run_is_not_replaced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = folder / "runs" / "one" / "report.html"
    page.write_text("mine", encoding="utf-8")

    assert main(["report", "run=runs/one"]) == 2
    message = "run: was not written by trainer, or has been changed since, got 'runs/one/report.html'. Set force=true"
    assert message in capsys.readouterr().err
    assert page.read_text(encoding="utf-8") == "mine"
    assert main(["report", "run=runs/one", "force=true"]) == 0
    written = page.read_text(encoding="utf-8")
    for changed in (written.replace("<h1>", "<h1>My "), written + "\n<p>note</p>\n", written.replace("\n<!", "\n\n<!")):
        page.write_text(changed, encoding="utf-8")
        assert changed == written or main(["report", "run=runs/one"]) == 2
    page.write_text(written[: written.rindex("\n<!")], encoding="utf-8")  # of an earlier version
    assert main(["report", "run=runs/one"]) == 0
