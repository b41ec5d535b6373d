"""The benchmark of a GPU runs with tiny models on the CPU, so that the first machine with a GPU is enough."""

import json
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import working_in

SCRIPT = Path(__file__).parent.parent / "scripts/bench_gpu.py"
Bench = Callable[..., dict[str, Any]]


@pytest.fixture
def script() -> Iterator[dict[str, Any]]:
    before = list(sys.path)
    yield runpy.run_path(str(SCRIPT))
    sys.path[:] = before


@pytest.fixture
def bench(script: dict[str, Any], tmp_path: Path) -> Iterator[Bench]:
    """Return a function that runs rows and returns what is written."""

    def run(rows: Sequence[str], *words: str) -> dict[str, Any]:
        output = tmp_path / "gpu.json"
        script["main"](["--device=cpu", "--size=tiny", f"--output={output}", "--rows", *rows, *words])
        written: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        return written

    with working_in(tmp_path):
        yield run


def check_rows(script: dict[str, Any], written: dict[str, Any], rows: Sequence[str]) -> None:
    assert [row["name"] for row in written["rows"]] == list(rows)
    table = script["table"](written)
    for row in written["rows"]:
        assert "error" not in row, row
        variants = set(script["ROWS"][row["name"]].variants)
        if row["name"] == "classification":
            variants = {f"trainer, {name}" for name in variants} | {"transformers", "hand-written"}
        assert set(row["figures"]) == variants
        for variant, figures in row["figures"].items():
            assert figures["samples_per_second"] > 0
            assert "accumulate" not in figures or figures["memory"] > 50_000_000
            assert f"| `{row['name']}` | {variant} |" in table


def test_rows_are_measured_and_shown(script: dict[str, Any], bench: Bench) -> None:
    rows = ("images", "fused_head")
    check_rows(script, bench(rows, "--in-process"), rows)


@pytest.mark.slow
def test_every_row_is_measured(script: dict[str, Any], bench: Bench) -> None:
    check_rows(script, bench(list(script["ROWS"]), "--in-process"), list(script["ROWS"]))


def test_a_row_that_fails_is_recorded_and_the_others_go_on(
    script: dict[str, Any], bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = tmp_path / "inputs"
    inputs.mkdir()
    script["write_inputs"](inputs, script["SIZES"]["tiny"])
    (inputs / "masked.txt").unlink()

    masked, images = bench(["mlm", "images"], "--in-process", f"--inputs={inputs}")["rows"]

    assert set(masked["figures"]) == set(script["ROWS"]["mlm"].variants)
    for figures in masked["figures"].values():
        assert figures["error"].startswith("DataError: data.train")
    assert images["figures"]["true"]["samples_per_second"] > 0
    assert "| `mlm` | padded | failed: DataError: data.train" in capsys.readouterr().out


def test_missing_packages_are_named_as_pip_takes_them(script: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def version_of(name: str) -> str:
        if name in ("hydra-core", "accelerate"):
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setitem(script["main"].__globals__, "version", version_of)
    with pytest.raises(SystemExit, match=r"pip install 'hydra-core>=.*' 'accelerate'"):
        script["main"](["--device=cpu"])


@pytest.mark.slow
def test_a_row_that_takes_too_long_is_killed_and_the_others_go_on(script: dict[str, Any], bench: Bench) -> None:
    limited = script["run_alone"].__globals__["ROWS"]
    limited["images"] = script["Row"]("images", {}, seconds=0)
    too_long, measured = bench(["images", "fused_head"])["rows"]

    assert too_long["error"] == "took longer than 0 s"
    assert measured["figures"]
