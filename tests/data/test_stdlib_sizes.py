import ast
import math
from collections.abc import Callable

from datasets import concatenate_datasets

from trainer.data.stdlib_sizes import StdlibSizes, measure

Library = Callable[[dict[str, str]], None]


def test_parameters_and_lines_are_counted() -> None:
    for source, num_parameters, num_lines in (
        ("def f():\n    'Doc.'", 0, 1),
        ("def f(a, /, b, *rest, c, **more):\n    'Doc.'\n    return a", 5, 2),
        ("def f(self, a):\n    '''Two\n    lines.'''\n    a()\n    return a", 1, 3),
        ("async def f(cls):\n    'Doc.'\n    return 1", 0, 2),
        ("def f(a, self):\n    'Doc.'\n    return 1", 2, 2),
    ):
        (node,) = ast.parse(source).body
        assert isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        assert measure(node) == [num_parameters, math.log2(num_lines)]


def test_only_functions_are_rows_and_have_their_line(library: Library) -> None:
    code = "'The module says four words.'\n\nclass C:\n    'The class says four words.'\n"
    code += "    def method(self, x):\n        'The very method says this.'\n        return x\n"
    library({"json.py": code})
    source = StdlibSizes()
    rows = concatenate_datasets(list(source.load(("text", "value")).values()))
    known = {row["text"]: row for row in rows}

    assert known["The very method says this."]["value"] == [1.0, 1.0]
    assert not {"The module says four words.", "The class says four words."} & known.keys()
    assert source.describe_row("train", known["The very method says this."]["row"]) == "json.py, line 5"
    assert source.describe_role("value") == "the column value of data=stdlib_sizes"
    assert source.fingerprint == StdlibSizes().fingerprint
