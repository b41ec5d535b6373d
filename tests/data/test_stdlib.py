"""What is documented in Python sources, and the sources of a library."""

import ast
import sysconfig
from pathlib import Path

import pytest

from trainer.data.stdlib import documented_objects, module_name

SOURCE = b'''"""About the module."""
import os

class Outer:
    """About the class."""

    async def run(self):
        """About the coroutine.

            Indented.
        """

        def inner():
            "About the inner function."

    class Nested:
        def quiet(self): pass

try:
    def guarded():
        """About\\d the guarded function."""
except ImportError:
    def guarded():
        """About the fallback."""
else:
    if os:
        def chosen():
            """About the chosen one."""
'''


def test_what_is_documented_comes_in_order_with_names_kinds_and_lines() -> None:
    assert [found[:4] for found in documented_objects(SOURCE)] == [
        ("", "module", 1, "About the module."),
        ("Outer", "class", 4, "About the class."),
        ("Outer.run", "function", 7, "About the coroutine.\n\nIndented."),
        ("Outer.run.inner", "function", 13, "About the inner function."),
        ("guarded", "function", 20, "About\\d the guarded function."),
        ("guarded", "function", 23, "About the fallback."),
        ("chosen", "function", 27, "About the chosen one."),
    ]


@pytest.mark.parametrize("module", ["turtle", "typing", "_pydecimal", "asyncio/tasks", "tkinter/__init__"])
def test_nothing_documented_is_missed(module: str) -> None:
    source = Path(sysconfig.get_path("stdlib"), f"{module}.py").read_bytes()
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]

    expected = sorted(text for node in nodes if (text := ast.get_docstring(node)))

    assert sorted(sample.text for sample in documented_objects(source)) == expected


def test_methods_are_those_in_the_body_of_a_class() -> None:
    assert [found.name for found in documented_objects(SOURCE) if found.is_method] == ["Outer.run"]
    guarded = b"class A:\n    if True:\n        def f(self):\n            'What it does'"
    assert [found.is_method for found in documented_objects(guarded)] == [True]


@pytest.mark.parametrize(
    ("path", "module"), [("json/decoder.py", "json.decoder"), ("json/__init__.py", "json"), ("cmd.py", "cmd")]
)
def test_a_source_has_its_module(path: str, module: str) -> None:
    assert module_name(Path(path)) == module
