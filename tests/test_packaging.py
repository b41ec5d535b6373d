"""The wheel that users install."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import Distribution, distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from yaml import safe_load

import trainer
from trainer.commands.doctor_checks import EXTRAS_OF_A_CLONE

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


def read_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(f"trainer-{trainer.__version__}.dist-info/METADATA").decode())


def requirements(wheel: Path) -> list[Requirement]:
    """Return what a wheel requires, those of its extras included."""
    return list(map(Requirement, read_metadata(wheel).get_all("Requires-Dist", [])))


def test_wheel_contains_the_package_and_its_configs_only(wheel: Path) -> None:
    kinds = ("*.py", "*.yaml", "*.html", "*.js", "*.css")
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


def test_image_and_wheel_need_the_same_torch(wheel: Path) -> None:
    (torch,) = (str(each) for each in requirements(wheel) if each.name == "torch")
    assert f'"{torch}"\n' in (REPOSITORY / "Dockerfile").read_text("utf-8")


def test_wheel_metadata(wheel: Path) -> None:
    folder = f"trainer-{trainer.__version__}.dist-info"
    with zipfile.ZipFile(wheel) as archive:
        entry_points = archive.read(f"{folder}/entry_points.txt").decode()
    metadata = read_metadata(wheel)
    assert metadata["Name"] == "trainer"
    assert metadata["Version"] == trainer.__version__
    assert metadata["Requires-Python"] == "<3.14,>=3.11"
    assert f"{folder}/licenses/LICENSE" in files(wheel)
    assert "trainer = trainer.cli:main" in entry_points


def test_ci_runs_each_python_that_is_named_and_the_lowest_versions_on_the_lowest(wheel: Path) -> None:
    prefix = "Programming Language :: Python :: "
    named = [text.removeprefix(prefix) for text in read_metadata(wheel).get_all("Classifier", []) if prefix in text]
    workflow = safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8"))
    matrix = workflow["jobs"]["ci"]["strategy"]["matrix"]
    assert matrix["python"] == named
    assert matrix["include"] == [{"python": named[0], "make": "test-lowest"}]
    targets = {line.partition(":")[0] for line in (REPOSITORY / "Makefile").read_text("utf-8").splitlines()}
    assert {*matrix["make"][0].split(), "test-lowest"} <= targets


def test_ci_pins_the_commit_of_each_action_and_names_its_version() -> None:
    lines = (REPOSITORY / ".github/workflows/ci.yml").read_text("utf-8").splitlines()
    uses = [line for line in lines if "uses:" in line]
    assert len(uses) == 2
    for line in uses:
        assert re.fullmatch(r"      - uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line)


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


def required_packages(wheel: Path) -> dict[str, Distribution]:
    """Return the installed packages that pip would install with a wheel: those it requires, and theirs, by name."""
    packages: dict[str, Distribution] = {}
    resolved: set[tuple[str, str]] = set()
    waiting = [(requirement, "") for requirement in requirements(wheel)]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        packages[name] = distribution(name)
        for wanted in {"", *requirement.extras}:
            if (name, wanted) not in resolved:
                resolved.add((name, wanted))
                waiting += [(Requirement(each), wanted) for each in packages[name].requires or []]
    return packages


def link_into(site: Path, package: Distribution) -> None:
    """Link every file of an installed package into another environment, except its commands."""
    for file in package.files or []:
        if ".." in file.parts:
            continue
        link = site / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(package.locate_file(file))


def test_every_imported_package_is_declared(wheel: Path) -> None:
    declared = {canonicalize_name(requirement.name) for requirement in requirements(wheel)}
    imported = {
        name.partition(".")[0]
        for file in (REPOSITORY / "trainer").rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        for name in imported_modules(node)
    }
    imported -= {*sys.stdlib_module_names, "trainer"}
    assert {"torch", "yaml", "wandb"} <= imported
    # The trackers are not installed; mlflow is in mlflow-skinny.
    packages = {"mlflow": ["mlflow-skinny"], **packages_distributions()}
    assert {
        name for name in imported if not {canonicalize_name(each) for each in packages.get(name, [name])} & declared
    } == set()


def imported_modules(node: ast.AST) -> list[str]:
    """Return the modules that an import statement names."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [str(node.module)] if isinstance(node, ast.ImportFrom) else []


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.glob("trainer-*")
    rebuilt = build("wheel", tmp_path / "wheel", source)
    assert rebuilt.name == wheel.name
    with zipfile.ZipFile(rebuilt) as archive, zipfile.ZipFile(wheel) as original:
        assert {name: archive.read(name) for name in files(rebuilt)} == {
            name: original.read(name) for name in files(wheel)
        }


EXTRAS = {
    "examples": (["data=digits", "task=image_classification", "model=lenet"], "data: is part of"),
    "lora": (["model.lora={rank: 2}"], "model.lora: needs"),
    "mlflow": (["logger.trackers=[mlflow]"], "logger.trackers: needs"),
    "optuna": (["-m", "sweep.name=x", "sweep.trials=2", "seed=1", "loss=focal,poly"], "sweep.trials: needs"),
    "serve": (["."], "serve: needs"),
    "slurm": (["-m", "hydra/launcher=submitit_slurm", "seed=0,1"], "hydra/launcher: needs"),
    "swanlab": (["logger.trackers=[swanlab]"], "logger.trackers: needs"),
    "wandb": (["logger.trackers=[wandb]"], "logger.trackers: needs"),
}
"""A command that needs each extra, and the start of the message about a missing one."""

WITHOUT_EXTRAS = """
import json, sys
from importlib.machinery import PathFinder
from trainer.cli import main

class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else super().find_spec(name, path, target)

HIDDEN = "sklearn peft mlflow optuna starlette uvicorn hydra_plugins swanlab wandb".split()
sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
for extra, (line, _) in json.loads(sys.argv[1]).items():
    assert main(["serve" if extra == "serve" else "train", *line]) == 2, extra
assert "torch" not in sys.modules
"""


def test_each_missing_extra_is_named_in_one_line_before_torch(wheel: Path, tmp_path: Path) -> None:
    assert {*read_metadata(wheel).get_all("Provides-Extra", [])} == EXTRAS.keys() | {*EXTRAS_OF_A_CLONE}
    command = [sys.executable, "-c", WITHOUT_EXTRAS, json.dumps(EXTRAS)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(EXTRAS)
    for line, (extra, (_, start)) in zip(lines, EXTRAS.items(), strict=True):
        assert line.startswith(start)
        assert line.endswith(f" Run pip install 'trainer[{extra}]'.")


@pytest.mark.slow
def test_installed_alone_it_does_the_first_hour_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PYTEST"))}
    environment["TRAINER_CACHE"] = str(tmp_path / "cache")
    folder, programs = tmp_path / "empty", tmp_path / "venv/bin"
    folder.mkdir()
    venv.create(tmp_path / "venv")
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    # Downloading gigabytes again would prove no more: whatever the wheel does not require is missing.
    for package in required_packages(wheel).values():
        link_into(site, package)
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    for command in (
        [*pip, "install", "--quiet", "--no-index", wheel],
        [*pip, "check"],
        *([programs / "trainer", *line.split()] for line in FIRST_HOUR.splitlines()),
    ):
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    missing = "import pytest"
    assert subprocess.run([programs / "python", "-c", missing], cwd=folder, capture_output=True).returncode == 1
