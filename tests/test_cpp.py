"""The TorchScript artifact in C++: the program of `scripts/cpp`, built against the installed torch.

These tests are slow, and `make test-all` needs CMake and a C++ compiler: without them, they are errors in continuous
integration (the variable CI is set) and are skipped elsewhere.
"""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.support.jobs import train, working_in, write_roles

pytestmark = pytest.mark.slow

SOURCE = Path(__file__).parent.parent / "scripts/cpp"


def done(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    missing = [name for name in ("cmake", "g++") if shutil.which(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not found: nothing proves that the TorchScript artifact runs in C++"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{reason}. Install CMake and g++")
    folder = tmp_path_factory.mktemp("build")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    for command in (["-S", SOURCE, "-B", folder, prefix], ["--build", folder]):
        result = done("cmake", *command)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "golden"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("run")

    def made(task: str) -> Path:
        run = folder / task
        if not run.exists():
            with working_in(folder):
                options = [f"task={task}", *write_roles(folder), "export.formats=[torchscript]", "train.duration=4"]
                assert train(run, *options) == 0
        return run / "export"

    return made


@pytest.mark.parametrize("task", ["text_classification", "pair_classification", "token_classification"])
def test_golden_inputs_give_the_golden_output(task: str, program: Path, exported: Callable[[str], Path]) -> None:
    result = done(program, exported(task))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "ok: largest difference" in result.stdout
    tensors = torch.load(exported(task) / "golden.pt", weights_only=True)
    for name, tensor in tensors.items():
        assert f"{name} {list(tensor.shape)}" in result.stdout


@pytest.mark.parametrize("change", ["output", "input", "shape", "nan"])
def test_what_differs_fails(change: str, program: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported("text_classification"), tmp_path / "export"))
    tensors = torch.load(folder / "golden.pt", weights_only=True)
    if change == "output":
        tensors["output"][-1, -1] += 2e-4
    elif change == "input":
        tensors["input.input_ids"][0, 1] += 1
    elif change == "shape":
        tensors["output"] = tensors["output"][:, :-1]
    else:
        tensors["output"][0, 0] = torch.nan
    torch.save(tensors, folder / "golden.pt")
    result = done(program, folder)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "FAILED: largest difference" in result.stdout
    assert done(program, folder, "1e9").returncode == (0 if change in ("output", "input") else 1)


def test_what_is_not_there_is_said(program: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    result = done(program, tmp_path)
    assert result.returncode == 2
    assert "model.torchscript.pt" in result.stderr
    shutil.copy(exported("text_classification") / "model.torchscript.pt", tmp_path)
    result = done(program, tmp_path)
    assert (result.returncode, result.stderr) == (2, f"cannot open {tmp_path}/golden.pt\n")
    assert done(program).returncode == 2
