"""The structure of the package: which module may import which, and where a part is found."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
PACKAGE = REPOSITORY / "trainer"
PRESET_GROUPS = {"experiment", "debug", "hydra"}
"""Groups whose files only combine parts of other groups."""


def lint_imports(repository: Path) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    environment = {"PYTHONPATH": str(repository), "COLUMNS": "200"}
    return subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_import_contracts_are_kept(copy: Path) -> None:
    checked = lint_imports(copy)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_broken_import_contracts_are_reported(copy: Path) -> None:
    undeclared = copy / "trainer" / "utils.py"
    undeclared.touch()
    assert "every module has its layer BROKEN" in lint_imports(copy).stdout
    undeclared.unlink()
    for module, statement in [
        ("protocols/loss.py", "def late() -> None:\n    import trainer.builders"),
        ("report/events.py", "from omegaconf import DictConfig\nimport trainer.checkpoint"),
        ("errors.py", "import torch"),
    ]:
        with (copy / "trainer" / module).open("a", encoding="utf-8") as file:
            file.write(f"\n{statement}\n")
    checked = lint_imports(copy)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    broken = [line for line in checked.stdout.splitlines() if " BROKEN" in line]
    for contract in ("Imports go down only", "Nothing below builders knows Hydra", "checked without torch"):
        assert any(contract in line for line in broken), checked.stdout
    for finding in (
        "trainer.protocols.loss -> trainer.builders",
        "trainer.report.events -> trainer.checkpoint",
        "trainer.report.events -> omegaconf",
        "trainer.errors -> torch",
    ):
        assert finding in checked.stdout, checked.stdout


def test_every_part_has_one_name_in_three_places() -> None:
    files = sorted((REPOSITORY / "conf").glob("*/*.yaml"))
    parts = [(path.parent.name, path.stem) for path in files if path.parent.name not in PRESET_GROUPS]
    assert {"task", "data", "model", "loss", "optimizer", "scheduler"} <= {group for group, _ in parts}
    expected = [PACKAGE / group / "__init__.py" for group, _ in parts]
    expected += [PACKAGE / group / f"{name}.py" for group, name in parts]
    expected += [REPOSITORY / "tests" / group / f"test_{name}.py" for group, name in parts]
    missing = [str(path.relative_to(REPOSITORY)) for path in expected if not path.is_file()]
    assert not missing


def test_importing_a_package_imports_nothing_else() -> None:
    # Users import the constraints and the contracts of their parts from packages that need all of their modules.
    exceptions = {PACKAGE / name / "__init__.py" for name in ("constraints", "protocols")}
    for path in sorted({*PACKAGE.rglob("__init__.py")} - exceptions):
        for statement in ast.parse(path.read_text(encoding="utf-8")).body:
            is_docstring = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            is_version = isinstance(statement, ast.Assign) and path.parent == PACKAGE
            is_lazy = isinstance(statement, ast.If | ast.FunctionDef | ast.ImportFrom) and path.parent == PACKAGE
            assert is_docstring or is_version or is_lazy, f"{path}, line {statement.lineno}"
