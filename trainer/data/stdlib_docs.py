"""Docstrings of the running interpreter's standard library, by topic: real text everywhere, without a download."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.rows import normalized, place, row_id, split_of
from trainer.errors import DataError, explain

if TYPE_CHECKING:
    from datasets import Dataset

_VERSION = 1
"""To be raised when `documented` gives something else for the same sources."""

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


class Documented(NamedTuple):
    """An object of a module and its docstring.

    Attributes:
        name: The qualified name within the module, empty for the module itself.
        kind: `module`, `class` or `function`.
        line: The line it begins in, 1-based.
        text: The docstring, its indentation removed.
    """

    name: str
    kind: str
    line: int
    text: str


def documented(source: bytes) -> Iterator[Documented]:
    """What has a docstring in the source of a module, in its order: the module, classes, functions, methods.

    Raises:
        SyntaxError: It is no Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like are not the user's affair
        module = ast.parse(source)
    pending: list[tuple[ast.AST, str]] = [(module, "")]
    while pending:
        node, name = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}" if name else node.name
            if text := ast.get_docstring(node):
                kind = "module" if node is module else "class" if isinstance(node, ast.ClassDef) else "function"
                yield Documented(name, kind, getattr(node, "lineno", 1), text)
        nested = [(child, name) for field in _NESTED for child in getattr(node, field, ())]
        pending.extend(reversed(nested))


class StdlibDocs:
    """Columns `text` (a docstring), `label` (one of 15 topics), `name`, `kind` and `row`.

    Docstrings have at least 4 words and are distinct; tests of the library are not among them. Each topic is a group
    of chapters of the Library Reference. Splits of 80, 10 and 10 % follow from the text alone.
    """

    @cached_property
    def fingerprint(self) -> str:
        """Of the interpreter's version and the names and sizes of the sources; nothing is parsed."""
        sizes = [(path.as_posix(), (self._root / path).stat().st_size) for path in self._paths]
        known = (_VERSION, sys.version_info[:3], _MODULES_OF_TOPIC, sizes)
        return blake2b(repr(known).encode(), digest_size=16).hexdigest()

    def load(self) -> dict[str, Dataset]:
        """The splits; a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        from datasets import Dataset

        columns: dict[str, dict[str, list[str | int]]] = {
            split: {"text": [], "label": [], "name": [], "kind": [], "row": []} for split in ("train", *_SHARES)
        }
        for sample in self._samples():
            split = columns[split_of(str(sample["text"]), _SHARES)]
            for name, value in sample.items():
                split[name].append(value)
        if not all(split["text"] for split in columns.values()):
            remedy = "Run another interpreter, or name your own data: data=files data.train=my.csv"
            raise DataError(explain(str(self._root), "does not hold the sources of the standard library", remedy))
        return {split: Dataset.from_dict(values) for split, values in columns.items()}

    def where(self, split: str, row: int) -> str:
        """`json/decoder.py, line 53`."""
        file, line = place(row)
        return f"{self._paths[file].as_posix()}, line {line}"

    def column(self, role: str) -> str:
        """`the column label of data=stdlib_docs`: its columns have no names of the user's."""
        return f"the column {role} of data=stdlib_docs"

    @cached_property
    def _root(self) -> Path:
        return Path(sysconfig.get_path("stdlib"))

    @cached_property
    def _paths(self) -> list[Path]:
        """The sources of the modules that have a topic, relative to the library; the order is the same everywhere."""
        found: list[Path] = []
        for top in self._root.iterdir() if self._root.is_dir() else ():
            if top.name.removesuffix(".py") in _TOPIC:
                found += [top] if top.suffix == ".py" else top.rglob("*.py")
        paths = [path.relative_to(self._root) for path in found]
        return sorted((path for path in paths if _EXCLUDED.isdisjoint(path.parts)), key=Path.as_posix)

    def _samples(self) -> Iterator[dict[str, str | int]]:
        seen = set()
        for index, path in enumerate(self._paths):
            module = path.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")
            topic = _TOPIC[path.parts[0].removesuffix(".py")]
            for name, kind, line, text in documented((self._root / path).read_bytes()):
                key = normalized(text)
                if key in seen or key.count(" ") < _MIN_WORDS - 1:
                    continue
                seen.add(key)
                qualified = f"{module}.{name}" if name else module
                yield {"text": text, "label": topic, "name": qualified, "kind": kind, "row": row_id(index, line)}
