import ast
import sysconfig
from pathlib import Path

from trainer.data.stdlib import documented_objects, module_name, parameter_names

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


def test_documented_objects_are_in_order_with_names_types_and_lines() -> None:
    assert [item[:4] for item in documented_objects(SOURCE)] == [
        ("", "module", 1, "About the module."),
        ("Outer", "class", 4, "About the class."),
        ("Outer.run", "function", 7, "About the coroutine.\n\nIndented."),
        ("Outer.run.inner", "function", 13, "About the inner function."),
        ("guarded", "function", 20, "About\\d the guarded function."),
        ("guarded", "function", 23, "About the fallback."),
        ("chosen", "function", 27, "About the chosen one."),
    ]


def test_no_docstring_is_missed() -> None:
    node_types = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for module in ("turtle", "typing", "asyncio/tasks", "tkinter/__init__"):
        if not (path := Path(sysconfig.get_path("stdlib"), f"{module}.py")).is_file():
            continue  # some systems package tkinter separately
        nodes = [node for node in ast.walk(ast.parse(path.read_bytes())) if isinstance(node, node_types)]
        docstrings = sorted(text for node in nodes if (text := ast.get_docstring(node)))

        assert sorted(item.text for item in documented_objects(path.read_bytes())) == docstrings


def test_methods_are_functions_in_the_body_of_a_class() -> None:
    assert [item.name for item in documented_objects(SOURCE) if item.is_method] == ["Outer.run"]
    guarded = b"class A:\n    if True:\n        def f(self):\n            'What it does'"
    assert [item.is_method for item in documented_objects(guarded)] == [True]


def test_module_name_follows_from_the_path() -> None:
    names = {"json/decoder.py": "json.decoder", "json/__init__.py": "json", "cmd.py": "cmd"}

    assert {path: module_name(Path(path)) for path in names} == names


def test_parameter_names_include_every_kind() -> None:
    (function,) = ast.parse("def f(a, /, b, *rest, c, **more): pass").body

    assert isinstance(function, ast.FunctionDef)
    assert parameter_names(function) == ["a", "b", "c", "rest", "more"]
