"""The wheel that users install."""

import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import trainer

REPOSITORY = Path(__file__).parents[1]


def build(kind: str, folder: Path, source: Path = REPOSITORY) -> Path:
    """Build the wheel or the sdist and return its path."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", folder, source]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    [path] = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", tmp_path_factory.mktemp("wheel"))


def files(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_wheel_contains_the_package_and_its_configs_only(wheel: Path) -> None:
    kinds = ("*.py", "*.html", "*.js", "*.css")
    code = {path.relative_to(REPOSITORY).as_posix() for kind in kinds for path in (REPOSITORY / "trainer").rglob(kind)}
    configs = {f"trainer/{path.relative_to(REPOSITORY)}" for path in (REPOSITORY / "conf").rglob("*.yaml")}
    assert "trainer/conf/train.yaml" in configs
    assert {name for name in files(wheel) if ".dist-info/" not in name} == code | configs | {"trainer/py.typed"}


def test_image_is_built_from_what_the_wheel_needs(wheel: Path, tmp_path: Path) -> None:
    lines = (REPOSITORY / ".dockerignore").read_text("utf-8").splitlines()
    source = tmp_path / "source"
    source.mkdir()
    for name in (line.removeprefix("!") for line in lines if line.startswith("!")):
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copyfile
        copy(REPOSITORY / name, source / name)
    assert files(build("wheel", tmp_path / "built", source)) == files(wheel)


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


FIRST_HOUR = """\
train train.duration=3 train.batch_size=8 device=cpu run.dir=run export.formats=[onnx] logger.tensorboard=true
eval run=run split=validation device=cpu
predict run=run input=words device=cpu
export run=run export.formats=[onnx,torchscript]
predict run=run/export input=words
verify run=run
report run=run
diff run run
plan
schema
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_alone_it_does_the_first_hour_in_an_empty_folder(kind: str, tmp_path: Path) -> None:
    package = build(kind, tmp_path / "built")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment["TRAINER_CACHE"] = str(tmp_path / "cache")
    folder = tmp_path / "empty"
    folder.mkdir()
    for command in (
        [sys.executable, "-m", "venv", tmp_path / "venv"],
        # The versions this project is tested with, without its extras and its tools.
        [tmp_path / "venv/bin/pip", "install", "--quiet", "--constraint", REPOSITORY / "constraints.txt", package],
        *([tmp_path / "venv/bin/trainer", *line.split()] for line in FIRST_HOUR.splitlines()),
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
