"""Every task and every model through the gate: trained for three steps by the command line, exported, proved."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import working_in
from tests.support.sources import write_pretrained, write_sources
from tests.test_conf import OPTIONS, small_overrides
from trainer.cli import main

TASKS = [option for option in OPTIONS if option.startswith("task/")]
MODELS = [option for option in OPTIONS if option.startswith("model/")]
QUICK = {"task/tabular_regression", "model/linear"}
PROGRAMS = ["onnx", "torchscript", "pt2"]
WEIGHTS = ["safetensors", "pth", "pth_legacy"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("tasks")
    with working_in(made):
        write_sources(made)
        write_pretrained(made)
        yield made


def marked(options: list[str]) -> list[Any]:
    return [pytest.param(option, marks=[] if option in QUICK else [pytest.mark.slow]) for option in options]


def exported(option: str, folder: Path, formats: list[str]) -> dict[str, Any]:
    """The manifest of a run with an option; every format was published."""
    run = folder / option.replace("/", "-")
    quiet = ["logger.console=none", "logger.tensorboard=false"]
    settings = [f"export.formats=[{','.join(formats)}]", f"run.dir={run}", *quiet]
    assert main(["train", *small_overrides(option, folder), *settings]) == 0
    manifest: dict[str, Any] = json.loads((run / "export" / "manifest.json").read_text("utf-8"))
    assert list(manifest["artifacts"]) == formats
    return manifest


def assert_proved(manifest: dict[str, Any]) -> None:
    """Each artifact was run at sizes of every axis, its numbers are PyTorch's, and so is the task's metric."""
    limits = {axis: tuple(bounds) for axis, bounds in manifest["axes"].items() if axis != "batch"}
    for name, artifact in manifest["artifacts"].items():
        batches = {row["sizes"]["batch"] for row in artifact["shapes"]}
        assert batches == {1, 3, 8}, name
        for axis, (low, high) in limits.items():
            sizes = {row["sizes"][axis] for row in artifact["shapes"]}
            assert {low, high} < sizes, name
            assert {row["padded"] for row in artifact["shapes"]} == {True, False}, name
        assert artifact["largest_difference"] <= (0 if name in WEIGHTS else 1e-4), name
        assert artifact["metrics"][manifest["monitor"]] == pytest.approx(manifest["metrics"][manifest["monitor"]], 1e-4)


@pytest.mark.parametrize("option", marked(TASKS))
def test_every_task_exports(option: str, folder: Path) -> None:
    manifest = exported(option, folder, [*PROGRAMS, *WEIGHTS])
    assert_proved(manifest)
    for declared in (manifest["artifacts"]["onnx"]["output"]["shape"], *_shapes(manifest)):
        assert isinstance(declared[0], str)


@pytest.mark.parametrize("option", marked(MODELS))
def test_every_model_exports(option: str, folder: Path) -> None:
    assert_proved(exported(option, folder, ["onnx", "torchscript", "safetensors"]))


def _shapes(manifest: dict[str, Any]) -> list[list[Any]]:
    return [entry["shape"] for entry in manifest["inputs"].values()]
