"""The scripts of an export folder: `predict.py`, what it loads, and `task.py`, composed of a task's pieces."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.errors import ProofError, format_error

PREDICT = "predict.py"
TASK = "task.py"
GENERATE = "generate.py"
_LOADED = ("rows.py", "check.py")
SCRIPTS = (PREDICT, TASK, *_LOADED, GENERATE)
"""All that there may be."""

GENERATED = "onnx_cache"
"""The format that `generate.py` runs."""

RUN = ("onnx", "onnx_fp16", "onnx_int8")
"""The formats that `predict.py` runs."""

_PACKAGE = "trainer.export.standalone"
_FOLDER = Path(__file__).parent / "standalone"


def write_scripts(folder: Path, pieces: tuple[str, str]) -> list[Path]:
    """Writes `predict.py` and what it loads, which need neither this package nor torch; returns their paths.

    Args:
        folder: Where to.
        pieces: The modules of `trainer.export.standalone` that read the task's rows and tell what an output says.
    """
    (folder / TASK).write_text(compose(pieces), "utf-8")
    copies = [Path(shutil.copyfile(_FOLDER / name, folder / name)) for name in (PREDICT, *_LOADED)]
    return [*copies, folder / TASK]


def write_generator(folder: Path) -> Path:
    """Writes `generate.py`, which needs neither this package nor torch; returns its path."""
    return Path(shutil.copyfile(_FOLDER / GENERATE, folder / GENERATE))


def prove_scripts(folder: Path) -> None:
    """Runs `predict.py --check` in a process of its own, whose Python knows neither the user's folder nor variables.

    Raises:
        ProofError: It fails, or it does not answer the golden rows as the task does.
    """
    command = [sys.executable, "-I", str(folder / PREDICT), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if result.returncode:
        failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
        reason = "; ".join(failed or result.stderr.splitlines()[-1:])
        remedy = "Set `script` of the task to None, or to pieces that do what its encode_inputs and answers do"
        raise ProofError(format_error(PREDICT, f"does not do what the task does: {reason}", remedy))


def usage(pieces: Sequence[str]) -> str:
    """What the scripts read and print."""
    found = [ast.get_docstring(ast.parse(_source(name)), clean=False) or "" for name in pieces]
    return "\n\n".join(text.strip() for text in found)


def compose(pieces: Sequence[str]) -> str:
    """One module of several of `trainer.export.standalone` and of those that they import from there.

    Its docstring is those of `pieces`, one after the other.
    """
    found: dict[str, str] = {}
    for name in ("folder", *pieces):
        _collect(name, found)
    first, *others = (body for body in map(_body, found.values()) if body)
    blocks = [f'"""{usage(pieces)}\n"""', _imports(found.values()), first, *(f"\n{body}" for body in others)]
    return "\n\n".join(blocks) + "\n"


def _collect(name: str, found: dict[str, str]) -> None:
    """Takes a piece, after those that it imports."""
    source = _source(name)
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom) and _is_piece(node):
            assert node.module is not None
            _collect(node.module.removeprefix(f"{_PACKAGE}."), found)
    found.setdefault(name, source)


def _source(name: str) -> str:
    return (_FOLDER / f"{name}.py").read_text("utf-8")


def _imports(sources: Iterable[str]) -> str:
    """The imports of all sources: of the standard library, then of others, each in the order of their names."""
    plain: set[str] = set()
    names: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for node in ast.parse(source).body:
            if isinstance(node, ast.Import):
                plain.update(ast.unparse(node).removeprefix("import ").split(", "))
            elif isinstance(node, ast.ImportFrom) and not _is_piece(node):
                names[node.module or ""].update(alias.name for alias in node.names)
    lines = [f"import {module}" for module in sorted(plain)]
    lines += [f"from {module} import {', '.join(sorted(names[module]))}" for module in sorted(names)]
    of_library = [line for line in lines if line.split()[1].partition(".")[0] in sys.stdlib_module_names]
    others = [line for line in lines if line not in of_library]
    return "\n\n".join("\n".join(group) for group in (of_library, others) if group)


def _body(source: str) -> str:
    """A source after its docstring and its imports."""
    module = ast.parse(source).body
    last = max(node.end_lineno or 0 for node in module if isinstance(node, ast.Import | ast.ImportFrom | ast.Expr))
    return "\n".join(source.splitlines()[last:]).strip("\n")


def _is_piece(node: ast.ImportFrom) -> bool:
    return (node.module or "").startswith(_PACKAGE)
