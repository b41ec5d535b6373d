"""Mutation check of the tests: change one line of the code at a time and count the changes that a test notices.

    python scripts/mutation_check.py sample --count 40 --seed 0 --output mutants.json
    python scripts/mutation_check.py run scripts/results/mutants.json [--output result.json] [--only 3 7]

`sample` draws mutants evenly over the packages of `trainer/`: a flipped comparison, a swapped operator, a negated
condition, a changed integer, a dropped call. `run` applies each mutant to a temporary copy of the checkout and runs the
tests of its package (`tests/<package>`, for a top-level module `tests/test_<module>*.py`), then the tests of the whole
program at the top of `tests/`. A mutant is killed if a test fails or the tests exceed the time limit. The list stores
the text of each line before and after, so it stays valid while lines move.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
WHOLE_PROGRAM = ["test_loop", "test_resume", "test_invariance", "test_evaluate", "test_cli", "test_losses"]
"""Test modules at the top of `tests/` that run if the tests of the package noticed nothing."""

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
}


def mutated(node: ast.AST) -> ast.expr | None:
    """Return the expression that replaces `node`, or None if the node is not mutated."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        return ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
    if isinstance(node, ast.BoolOp):
        return ast.BoolOp(ast.And() if isinstance(node.op, ast.Or) else ast.Or(), node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return node.operand
    if isinstance(node, ast.IfExp):
        return ast.IfExp(ast.UnaryOp(ast.Not(), node.test), node.body, node.orelse)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return ast.Constant(node.value + 1)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return ast.Constant(None)
    return None


def unmutated(node: ast.AST) -> list[ast.AST]:
    """Return the parts of `node` that no test can notice: assertions, annotations and the arguments of exceptions."""
    if isinstance(node, ast.Assert | ast.Raise):
        return [node]
    return [part for name in ("annotation", "returns") if (part := getattr(node, name, None)) is not None]


def sites(path: Path) -> Iterator[dict[str, str]]:
    """Yield every mutant of one file whose line occurs once in it: its text before and after."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    stripped = [line.strip() for line in lines]
    tree = ast.parse(source)
    skipped = {id(inner) for node in ast.walk(tree) for outer in unmutated(node) for inner in ast.walk(outer)}
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        for node in (inner for statement in function.body for inner in ast.walk(statement)):
            replacement = mutated(node)
            if replacement is None or id(node) in skipped or node.lineno != node.end_lineno:  # type: ignore[attr-defined]
                continue
            line = lines[node.lineno - 1]  # type: ignore[attr-defined]
            encoded = line.encode()
            text = f"({ast.unparse(replacement)})"
            after = encoded[: node.col_offset].decode() + text + encoded[node.end_col_offset :].decode()  # type: ignore[attr-defined]
            if stripped.count(line.strip()) == 1 and '"' not in line:
                yield {
                    "file": path.relative_to(REPOSITORY).as_posix(),
                    "function": function.name,
                    "before": line.strip(),
                    "after": after.strip(),
                }


def sample(count: int, seed: int) -> list[dict[str, str]]:
    """Draw `count` mutants, in turn from every package; the top-level modules count as one package."""
    package = REPOSITORY / "trainer"
    by_package: dict[str, list[dict[str, str]]] = defaultdict(list)
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).parts
        by_package[parts[0] if len(parts) > 1 else ""].extend(sites(path))
    generator = random.Random(seed)
    shuffled = {name: generator.sample(found, len(found)) for name, found in sorted(by_package.items()) if found}
    chosen: list[dict[str, str]] = []
    while len(chosen) < count:
        for found in shuffled.values():
            chosen += [found.pop()] if found and len(chosen) < count else []
    return chosen


def tests_of(file: str, tests: Path) -> list[list[str]]:
    """Return the test paths that run for a mutant of `file`, in two stages."""
    parts = Path(file).parts
    own = [tests / parts[1]] if len(parts) > 2 else sorted(tests.glob(f"test_{Path(file).stem}*.py"))
    whole = [path for name in WHOLE_PROGRAM if (path := tests / f"{name}.py").is_file()]
    return [[str(path) for path in own if path.exists()], [str(path) for path in whole]]


def is_killed(mutant: dict[str, str], limit: float) -> dict[str, Any]:
    """Apply a mutant to a copy of the checkout; report whether a test failed, which one, and at which stage."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        ignored = shutil.ignore_patterns(".git", ".venv", "__pycache__", ".*_cache", "runs", "outputs")
        shutil.copytree(REPOSITORY, copy, ignore=ignored)
        path = copy / mutant["file"]
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        places = [number for number, line in enumerate(lines) if line.strip() == mutant["before"]]
        if len(places) != 1:
            raise SystemExit(f"{mutant['file']}: the line {mutant['before']!r} occurs {len(places)} times")
        lines[places[0]] = lines[places[0]].replace(mutant["before"], mutant["after"])
        path.write_text("".join(lines), encoding="utf-8")
        for stage, chosen in enumerate(tests_of(mutant["file"], copy / "tests"), start=1):
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-n", "0", *chosen]
            environment = {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
            try:
                done = subprocess.run(
                    command,
                    cwd=copy,
                    env=_environment(environment),
                    capture_output=True,
                    text=True,
                    timeout=limit,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return {
                    "killed": True,
                    "stage": stage,
                    "by": "time limit",
                    "seconds": round(time.perf_counter() - started),
                }
            if done.returncode not in (0, 5):
                failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
                by = failed[0].split(" - ")[0] if failed else (done.stdout + done.stderr)[-200:]
                return {"killed": True, "stage": stage, "by": by, "seconds": round(time.perf_counter() - started)}
    return {"killed": False, "seconds": round(time.perf_counter() - started)}


def _environment(extra: dict[str, str]) -> dict[str, str]:
    return {**os.environ, **extra}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True)
    sampling = actions.add_parser("sample")
    sampling.add_argument("--count", type=int, default=40)
    sampling.add_argument("--seed", type=int, default=0)
    sampling.add_argument("--output", type=Path, required=True)
    running = actions.add_parser("run")
    running.add_argument("mutants", type=Path)
    running.add_argument("--only", type=int, nargs="*", help="numbers of mutants, from 0")
    running.add_argument("--limit", type=float, default=600, help="seconds for the tests of one stage")
    running.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.action == "sample":
        given.output.write_text(json.dumps(sample(given.count, given.seed), indent=1) + "\n", encoding="utf-8")
        return
    mutants = json.loads(given.mutants.read_text(encoding="utf-8"))
    results = []
    for number in given.only if given.only is not None else range(len(mutants)):
        results.append({"number": number, **mutants[number], **is_killed(mutants[number], given.limit)})
        print(json.dumps(results[-1]), flush=True)
        if given.output:
            given.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"{sum(result['killed'] for result in results)} of {len(results)} mutants killed")


if __name__ == "__main__":
    main()
