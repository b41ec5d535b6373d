"""The sources of the running interpreter's standard library: real text everywhere, without a download."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.rows import normalized, place, row_id
from trainer.data.splits import Sample, divided
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_SHARES = {"validation": 0.1, "test": 0.1}
_MIN_WORDS = 4
_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "_bundled", "__pycache__"}
_NESTED = ("body", "handlers", "orelse", "finalbody", "cases")
"""The fields of a statement that hold statements."""

_MODULES_OF_TOPIC = {
    "concurrency": """_threading_local concurrent contextvars multiprocessing queue sched subprocess
        threading""",
    "crypto": "crypt hashlib hmac secrets ssl",
    "development": """bdb cProfile doctest lib2to3 pdb profile pstats pydoc pydoc_data timeit trace
        traceback tracemalloc typing unittest""",
    "files": """_compression aifc bz2 chunk colorsys configparser copyreg csv dbm filecmp fileinput fnmatch
        genericpath glob gzip imghdr linecache lzma netrc ntpath nturl2path pathlib pickle plistlib posixpath shelve
        shutil sndhdr sqlite3 stat sunau tarfile tempfile tomllib wave xdrlib zipfile""",
    "gui": "cmd shlex tkinter turtle turtledemo",
    "imports": """__future__ distutils ensurepip imp importlib modulefinder pkgutil runpy site venv zipapp
        zipimport""",
    "internet": "base64 email json mailbox mailcap mimetypes quopri uu",
    "markup": "_markupbase html xml",
    "networking": "asynchat asyncio asyncore selectors signal smtpd socket",
    "numeric": "_pydecimal _pylong decimal fractions functools numbers operator random statistics",
    "os": """_pyio argparse ctypes curses getopt getpass io logging optparse os pipes platform pty tty""",
    "protocols": """cgi cgitb ftplib http imaplib ipaddress nntplib poplib smtplib socketserver telnetlib urllib uuid
        webbrowser wsgiref xmlrpc""",
    "runtime": """_py_abc _sitebuiltins abc ast code codeop compileall contextlib dataclasses dis inspect
        keyword opcode pickletools py_compile pyclbr symtable sysconfig tabnanny token tokenize warnings""",
    "text": """codecs difflib encodings gettext locale re rlcompleter sre_compile sre_constants sre_parse string
        stringprep textwrap""",
    "types": """_collections_abc _pydatetime _strptime _weakrefset bisect calendar collections copy datetime enum
        graphlib heapq pprint reprlib types weakref zoneinfo""",
}
"""Top-level modules by chapter of the Library Reference, small chapters joined; what is in none is left out."""

_TOPIC = {module: topic for topic, modules in _MODULES_OF_TOPIC.items() for module in modules.split()}


Function = ast.FunctionDef | ast.AsyncFunctionDef


class Documented(NamedTuple):
    """An object of a module and its docstring.

    Attributes:
        name: The qualified name within the module, empty for the module itself.
        kind: `module`, `class` or `function`.
        line: The line it begins in, 1-based.
        text: The docstring, its indentation removed.
        node: The object in the syntax tree.
        method: Whether it is a function in the body of a class.
    """

    name: str
    kind: str
    line: int
    text: str
    node: ast.Module | ast.ClassDef | Function
    method: bool


class Docstring(NamedTuple):
    """A docstring of the library; at least 4 words, and distinct.

    Attributes:
        text: The docstring.
        topic: One of 15, each of them a group of chapters of the Library Reference.
        name: The qualified name of the object, with its module.
        row: Its file and its line.
        found: The object.
    """

    text: str
    topic: str
    name: str
    row: int
    found: Documented


def documented(source: bytes) -> Iterator[Documented]:
    """What has a docstring in the source of a module, in its order: the module, classes, functions, methods.

    Raises:
        SyntaxError: It is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are not the user's affair
        module = ast.parse(source)
    pending: list[tuple[ast.AST, str, bool]] = [(module, "", False)]
    while pending:
        node, name, method = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}" if name else node.name
            if text := ast.get_docstring(node):
                kind = "module" if node is module else "class" if isinstance(node, ast.ClassDef) else "function"
                yield Documented(name, kind, getattr(node, "lineno", 1), text, node, method and kind == "function")
            method = isinstance(node, ast.ClassDef)
        nested = [(child, name, method) for field in _NESTED for child in getattr(node, field, ())]
        pending.extend(reversed(nested))


def docstrings() -> Iterator[Docstring]:
    """All of the library, in the order of its files and lines; a few seconds of parsing."""
    seen = set()
    for index, path in enumerate(paths()):
        module = module_of(path)
        for found in documented((root() / path).read_bytes()):
            key = normalized(found.text)
            if key in seen or key.count(" ") < _MIN_WORDS - 1:
                continue
            seen.add(key)
            name = f"{module}.{found.name}" if found.name else module
            topic = _TOPIC[path.parts[0].removesuffix(".py")]
            yield Docstring(found.text, topic, name, row_id(index, found.line), found)


def module_of(path: Path) -> str:
    """The module of a source, relative to the library: `json.decoder`."""
    return path.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")


def fingerprint_of(*known: object) -> str:
    """Of the interpreter's version, the names and sizes of the sources, and `known`; nothing is parsed."""
    sizes = [(path.as_posix(), (root() / path).stat().st_size) for path in paths()]
    parts = (known[0], sys.version_info[:3], _MODULES_OF_TOPIC, sizes, *known[1:])
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()


def splits(names: Sequence[str], samples: Iterable[Sample]) -> dict[str, Dataset]:
    """Splits of 80, 10 and 10 %.

    Args:
        names: The columns, but `row`.
        samples: With the docstring that each was made of as its key: whatever is made of it is in the same split.

    Raises:
        DataError: The interpreter was installed without the sources of its library.
    """
    from trainer.data.arrow import schema_of

    found = divided(schema_of(names), samples, _SHARES)
    if not all(map(len, found.values())):
        remedy = "Run another interpreter, or name your own data: data=files data.train=my.csv"
        raise DataError(format_error(str(root()), "does not hold the sources of the standard library", remedy))
    return found


def column(role: str, option: str) -> str:
    """`the column label of data=stdlib_docs`: its columns have no names of the user's."""
    return f"the column {role} of data={option}"


def where(row: int) -> str:
    """`json/decoder.py, line 53`."""
    file, line = place(row)
    return f"{paths()[file].as_posix()}, line {line}"


def root() -> Path:
    """Where the sources lie."""
    return Path(sysconfig.get_path("stdlib"))


def paths() -> list[Path]:
    """The sources of the modules that have a topic, relative to `root`; the order is the same everywhere."""
    found: list[Path] = []
    folder = root()
    for top in folder.iterdir() if folder.is_dir() else ():
        if top.name.removesuffix(".py") in _TOPIC:
            found += [top] if top.suffix == ".py" else top.rglob("*.py")
    relative = [path.relative_to(folder) for path in found]
    return sorted((path for path in relative if _EXCLUDED.isdisjoint(path.parts)), key=Path.as_posix)
