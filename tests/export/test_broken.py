"""Exports that are broken on purpose, through the command line: refused by name and shape, the others published."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import train, working_in, write_data
from trainer.cli import main
from trainer.export.cases import Forward
from trainer.export.formats.catalog import FORMATS, HALF_FORMATS, Format, Variant
from trainer.export.model import ExportModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("broken")
    with working_in(made):
        yield made


def run_of(folder: Path, name: str, broken_in: str, formats: str) -> tuple[Path, int]:
    """Train and export a model of `tests.support.broken_models`; return the run and the exit code."""
    run = folder / f"{name}-{broken_in}-{len(formats)}"
    model = [f"model._target_=tests.support.broken_models.{name}", f"+model.broken_in={broken_in}"]
    model += ["model.dropout=0.1", "model.pooling=mean"]
    return run, train(run, *write_data(folder), *model, "train.duration=1", f"export.formats=[{formats}]")


def published(run: Path) -> list[str]:
    """Return the formats in the manifest, and check that their files are the ones in the folder."""
    manifest = json.loads((run / "export" / "manifest.json").read_text("utf-8"))
    files = {path.name for path in (run / "export").iterdir()}
    assert {FORMATS[name].path for name in manifest["formats"]} == files & {each.path for each in FORMATS.values()}
    return list(manifest["formats"])


SHAPES = r"at batch=\d, sequence=\d+, (padded|without padding)"
WRONG = rf"output\[\d, \d\] {SHAPES} \(input_ids \(\d, \d+\), attention_mask \(\d, \d+\)\) must be PyTorch's"
REFUSED = r"cannot be exported \(input_ids \(2, 8\), attention_mask \(2, 8\)\): .*sequence"
MADE_OF_IT = r"is made of model\.onnx, which is refused"
FAULTS = [
    ("DroppedMask", "trace", WRONG.replace("(padded|without padding)", "padded")),
    ("DropoutLeftOn", "trace", WRONG),
    ("FrozenDimension", "trace", rf"fails {SHAPES}|{WRONG}"),
    ("SizeAsNumber", "trace", WRONG),
    ("DroppedMask", "program", WRONG.replace("(padded|without padding)", "padded")),
    ("DropoutLeftOn", "program", WRONG),
    ("FrozenDimension", "program", REFUSED),
    ("SizeAsNumber", "program", REFUSED),
]


@pytest.mark.parametrize(
    ("name", "broken_in", "pattern"),
    [pytest.param(*fault, marks=[pytest.mark.slow] if fault[1] == "program" else []) for fault in FAULTS],
)
def test_broken_export_is_refused(
    name: str, broken_in: str, pattern: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traced, captured = ("torchscript,pth", ["pth"]), ("onnx,onnx_fp16,onnx_int8,torchscript,pt2", ["torchscript"])
    formats, good = traced if broken_in == "trace" else captured
    run, code = run_of(folder, name, broken_in, formats)
    assert code == 4
    message = capsys.readouterr().err
    for format in {*formats.split(",")} - {*good}:
        reason = MADE_OF_IT if format in ("onnx_fp16", "onnx_int8") else pattern
        assert re.search(rf"^{re.escape(FORMATS[format].path)}: ({reason})", message, re.MULTILINE), message
    assert published(run) == good


@pytest.mark.slow
def test_formats_made_of_a_broken_graph_are_refused_if_the_graph_is_not_requested(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, code = run_of(folder, "DropoutLeftOn", "program", "onnx_fp16,onnx_int8,pth")
    message = capsys.readouterr().err
    assert code == 4
    for name in ("onnx_fp16", "onnx_int8"):
        reason = rf"{MADE_OF_IT}.*\n  model\.onnx: {WRONG}"
        assert re.search(rf"^{re.escape(FORMATS[name].path)}: {reason}", message, re.MULTILINE), message
    assert published(run) == ["pth"]


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    made = folder / "intact"
    assert train(made, *write_data(folder), "train.duration=1") == 0
    return made


def truncating(format: Format) -> Format:
    """Return a format whose file is truncated after it is written."""

    def write(path: Path, model: ExportModel) -> dict[str, Any]:
        details = format.variants[0].write(path, model)
        file = path / "model.safetensors" if path.is_dir() else path
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 9 // 10])
        return details

    return replace(format, variants=(Variant("truncated", write),))


@pytest.mark.parametrize(
    "name",
    [
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("onnx", "onnx_fp16", "onnx_int8", "pt2")),
        *("torchscript", "pth", "safetensors"),
    ],
)
def test_truncated_file_is_refused(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FORMATS, name, truncating(FORMATS[name]))
    assert main(["export", f"run={run}", f"export.formats=[{name},pth_legacy]"]) == 4
    message = capsys.readouterr().err
    assert message.startswith(f"{FORMATS[name].path}: cannot be loaded: ")
    assert len(message.splitlines()) == 1
    assert published(run) == ["pth_legacy"]


def test_inexact_format_with_other_decisions_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(path: Path, model: ExportModel) -> tuple[Forward, dict[str, Any]]:
        forward, declared = HALF_FORMATS["pth_legacy"].load(path, model)
        return lambda inputs: forward(inputs).roll(1, -1), declared

    monkeypatch.setitem(HALF_FORMATS, "pth", replace(HALF_FORMATS["pth"], load=load))
    blind = ["export.half=true", "export.metric_budget=1.0"]
    assert main(["export", f"run={run}", "export.formats=[pth,pth_legacy]", *blind]) == 4
    message = capsys.readouterr().err
    assert message.startswith(
        "model.pth: decisions over the evaluation split must agree with PyTorch's in 0.75 or more"
    )
    assert published(run) == ["pth_legacy"]


def test_verify_checks_every_file_of_an_artifact(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", f"run={run}", "export.formats=[safetensors,pth]"]) == 0
    assert main(["verify", f"run={run}"]) == 0
    config = run / "export" / "safetensors" / "config.json"
    config.write_text(config.read_text("utf-8").replace("vocab_size", "vocab-size", 1), "utf-8")
    capsys.readouterr()
    assert main(["verify", f"run={run}"]) == 3
    assert "safetensors/config.json: has the SHA-256" in capsys.readouterr().err
