"""The wheel that users install."""

import os
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import trainer

REPOSITORY = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, REPOSITORY]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.glob("*.whl")
    return path


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_contains_the_package_and_its_configs_only(wheel: Path) -> None:
    code = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "trainer").rglob("*.py")}
    configs = {f"trainer/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert "trainer/conf/train.yaml" in configs
    assert {name for name in files(wheel) if ".dist-info/" not in name} == code | configs | {"trainer/py.typed"}


def test_wheel_metadata(wheel: Path) -> None:
    folder = f"trainer-{trainer.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{folder}/METADATA").decode())
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Name"] == "trainer"
    assert metadata["Version"] == trainer.__version__
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert f"{folder}/licenses/LICENSE" in files(wheel)
    assert "trainer = trainer.cli:main" in entry_points


def test_installed_package_finds_its_own_configs(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    command = [sys.executable, "-m", "trainer", "train", "--cfg", "job"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    # The working directory must not be the repository, whose conf/ would be used.
    shown = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "batch_size:" in shown.stdout
