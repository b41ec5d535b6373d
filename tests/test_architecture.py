"""The shape of the package: who may import whom, and where a name is found."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "trainer"
PARTLESS_GROUPS = {"experiment", "debug", "hydra"}
"""Groups whose files only combine other groups' parts."""


def parts() -> list[tuple[str, str]]:
    """(group, name) of every part that a user can pick."""
    files = sorted((REPOSITORY / "conf").glob("*/*.yaml"))
    return [(path.parent.name, path.stem) for path in files if path.parent.name not in PARTLESS_GROUPS]


def lint_imports(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    environment = {"PYTHONPATH": str(repository), "COLUMNS": "200"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


class TestLayers:
    def test_the_contracts_are_kept(self, copy: Path) -> None:
        checked = lint_imports(copy)
        assert checked.returncode == 0, checked.stdout + checked.stderr

    @pytest.mark.parametrize(
        ("module", "line", "contract"),
        [
            pytest.param("utils.py", "", "every module has its layer", id="a module without a place"),
            pytest.param("errors.py", "import trainer.sample_rng", "Imports go down only", id="upwards"),
            pytest.param("draws.py", "import trainer.cli", "Imports go down only", id="upwards, far"),
            pytest.param("report/events.py", "import trainer.checkpoint", "Imports go down only", id="a sibling"),
            pytest.param(
                "protocols.py",
                "def late() -> None:\n    import trainer.builders",
                "Imports go down only",
                id="inside a function",
            ),
            pytest.param("loop.py", "import trainer.config", "Imports go down only", id="the config below build"),
            pytest.param("loop.py", "import hydra", "Nothing below build knows Hydra", id="Hydra below build"),
            pytest.param(
                "report/events.py",
                "from omegaconf import DictConfig",
                "Nothing below build knows Hydra",
                id="OmegaConf",
            ),
            pytest.param("cli.py", "import torch", "checked without torch", id="torch in the command line"),
            pytest.param("errors.py", "import torch", "checked without torch", id="torch behind the command line"),
        ],
    )
    def test_a_breach_is_seen(self, copy: Path, module: str, line: str, contract: str) -> None:
        with (copy / "trainer" / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{line}\n")
        checked = lint_imports(copy)
        assert checked.returncode == 1, checked.stdout + checked.stderr
        broken = [line for line in checked.stdout.splitlines() if " BROKEN" in line]
        assert any(contract in line for line in broken), checked.stdout


class TestNames:
    @pytest.mark.parametrize(("group", "name"), parts())
    def test_a_part_is_found_under_one_name_in_three_places(self, group: str, name: str) -> None:
        assert (PACKAGE / group / f"{name}.py").is_file()
        assert (REPOSITORY / "tests" / group / f"test_{name}.py").is_file()

    def test_there_are_parts(self) -> None:
        assert {"task", "data", "model", "loss", "optimizer", "scheduler"} <= {group for group, _ in parts()}

    @pytest.mark.parametrize("group", sorted({group for group, _ in parts()}))
    def test_a_group_is_a_package(self, group: str) -> None:
        assert (PACKAGE / group / "__init__.py").is_file()


def test_importing_a_package_imports_nothing_else() -> None:
    for path in sorted(PACKAGE.rglob("__init__.py")):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_version = isinstance(statement, ast.Assign) and path.parent == PACKAGE
            assert is_docstring or is_version, f"{path}, line {statement.lineno}"
