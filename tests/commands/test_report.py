"""`trainer report`: a page about runs."""

import html
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.support.documents import artifact_entry, export_manifest
from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
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

    rows = cells(page)
    assert ["one", "6", "0.7500", "end"] in [row[:4] for row in rows]
    assert ["optimizer.lr", "0.001"] in rows
    shown = next(row for row in rows if row[:2] == ["one", "test"])
    assert f"{evaluation['accuracy']:.4f}" in shown
    # Training: loss, learning rate, norm, two speeds and memory. Validation: loss, accuracy and macro F1, raw and
    # averaged.
    assert page.count("<svg") == 9
    assert page.count("<title>raw</title>") == page.count("<title>ema</title>") == 3
    assert 'class="highlighted"' not in page


def test_runs_are_shown_side_by_side(folder: Path) -> None:
    assert main(["report", "run=runs/one", "beside=[runs/two]", "output=both.html"]) == 0
    page = Path("both.html").read_text(encoding="utf-8")
    rows = cells(page)

    assert [row[0] for row in rows if row[3:4] == ["end"]] == ["one", "two"]
    # Keys that differ come first and are highlighted.
    first = rows.index(["key", "one", "two"]) + 1
    assert {row[0] for row in rows[first : first + 3]} == {"run.dir", "ema.decay", "optimizer.lr"}
    assert ["optimizer.lr", "0.001", "0.5"] in rows
    assert page.count('class="highlighted"') == 3
    assert {"one raw", "one ema", "two raw"} <= set(re.findall(r"<title>(.*?)</title>", page))
    assert "two ema" not in page


def test_proofs_of_artifacts_are_shown(folder: Path) -> None:
    export = folder / "runs" / "one" / "export"
    export.mkdir(exist_ok=True)
    proof = artifact_entry(bytes=77, largest_difference=1e-6, metrics={"accuracy": 0.25})
    manifest = export_manifest(monitor="accuracy", metrics={"accuracy": 0.5}, artifacts={"onnx": proof})
    write_manifest(export / "manifest.json", manifest)
    assert main(["report", "run=runs/one", "output=artifacts.html"]) == 0

    assert ["one", "onnx", "export/model.onnx", "77", "1.000e-06", "", "0.2500", "0.5000"] in cells(
        Path("artifacts.html").read_text(encoding="utf-8")
    )


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
    assert ["data.api_key", "***"] in cells(shown)


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
