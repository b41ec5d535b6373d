"""The sources of data in the running interpreter's standard library: real text on every machine, without a download."""

from __future__ import annotations

import ast
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from trainer.data.splits import Sample, normalize_whitespace, row_id, split_in_memory, split_row_id, split_schema
from trainer.errors import DataError, format_error

if TYPE_CHECKING:
    from datasets import Dataset

_SHARES = {"validation": 0.1, "test": 0.1}
_MIN_WORDS = 4
_EXCLUDED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "_bundled", "__pycache__"}
_NESTED_FIELDS = ("body", "handlers", "orelse", "finalbody", "cases")
"""The fields of a statement that contain statements."""

# The text below, with its line breaks, is part of the fingerprint of every source: do not reformat it.
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
"""Top-level modules by chapter of the Library Reference, small chapters joined; other modules are left out."""

_TOPIC = {module: topic for topic, modules in _MODULES_OF_TOPIC.items() for module in modules.split()}


Function = ast.FunctionDef | ast.AsyncFunctionDef


class StdlibSource:
    """Samples made of docstrings of the standard library, in splits of 80%, 10% and 10%.

    The splits depend on the docstring only: every sample made of one docstring is in the same split.

    Args:
        name: The name of the source in `data=`.
        columns: The columns, except `row`.
        read_samples: Returns the samples in order, with the docstring as their key.
        settings: Further parts of the fingerprint: a name and a version.
    """

    def __init__(
        self, name: str, columns: Sequence[str], read_samples: Callable[[], Iterable[Sample]], *settings: object
    ) -> None:
        self._name = name
        self._columns = columns
        self._read_samples = read_samples
        self._settings = settings

    @cached_property
    def fingerprint(self) -> str:
        """Digest of the interpreter's version and of the names and sizes of the sources; nothing is parsed."""
        sizes = [(path.as_posix(), (library_root() / path).stat().st_size) for path in self._paths]
        first, *others = self._settings
        parts = (first, sys.version_info[:3], _MODULES_OF_TOPIC, sizes, *others)
        return blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def load(self, roles: Sequence[str]) -> dict[str, Dataset]:
        """Return the splits, after a few seconds of parsing.

        Raises:
            DataError: The interpreter was installed without the sources of its library.
        """
        splits = split_in_memory(split_schema(self._columns_for(roles)), self._read_samples(), _SHARES)
        if not all(map(len, splits.values())):
            problem = "does not contain the sources of the standard library"
            remedy = "Use another interpreter, or name your own data: data=files data.train=my.csv"
            raise DataError(format_error(str(library_root()), problem, remedy))
        return splits

    def describe_row(self, split: str, row: int) -> str:
        """Return `json/decoder.py, line 53`."""
        file, line = self.locate_row(split, row)
        return f"{file}, line {line}"

    def locate_row(self, split: str, row: int) -> tuple[str, int]:
        """Return the module of a row, relative to the standard library, and the line in it."""
        file, line = split_row_id(row)
        return self._paths[file].as_posix(), line

    def describe_role(self, role: str) -> str:
        """Return `the column label of data=stdlib_docs`: the user does not name its columns."""
        return f"the column {role} of data={self._name}"

    @cached_property
    def _paths(self) -> list[Path]:
        # Searching the folders takes milliseconds, and a run asks for the origin of every row that it evaluates.
        return source_paths()

    def _columns_for(self, roles: Sequence[str]) -> Sequence[str]:
        return self._columns


class DocumentedObject(NamedTuple):
    """An object of a module and its docstring.

    Attributes:
        name: The qualified name within the module, empty for the module itself.
        object_type: `module`, `class` or `function`.
        line: The first line of the object, 1-based.
        text: The docstring without its indentation.
        node: The object in the syntax tree.
        is_method: True for a function in the body of a class.
    """

    name: str
    object_type: str
    line: int
    text: str
    node: ast.Module | ast.ClassDef | Function
    is_method: bool


class Docstring(NamedTuple):
    """A docstring of the library, of at least 4 words; no two are equal.

    Attributes:
        text: The docstring.
        topic: One of 15 topics, each a group of chapters of the Library Reference.
        name: The qualified name of the object, including its module.
        row: The column `row`: the file and the line.
        documented: The object.
    """

    text: str
    topic: str
    name: str
    row: int
    documented: DocumentedObject


def documented_objects(source: bytes) -> Iterator[DocumentedObject]:
    """Yield the module, classes, functions and methods with a docstring in the source of a module, in order.

    Raises:
        SyntaxError: The source is not valid Python.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user cannot fix invalid escapes in the standard library
        module = ast.parse(source)
    pending: list[tuple[ast.AST, str, bool]] = [(module, "", False)]
    while pending:
        node, name, in_class = pending.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not isinstance(node, ast.Module):
                name = f"{name}.{node.name}" if name else node.name
            if text := ast.get_docstring(node):
                is_class = isinstance(node, ast.ClassDef)
                object_type = "module" if node is module else "class" if is_class else "function"
                is_method = in_class and object_type == "function"
                yield DocumentedObject(name, object_type, getattr(node, "lineno", 1), text, node, is_method)
            in_class = isinstance(node, ast.ClassDef)
        nested = [(child, name, in_class) for field in _NESTED_FIELDS for child in getattr(node, field, ())]
        pending.extend(reversed(nested))


def docstrings() -> Iterator[Docstring]:
    """Yield all docstrings of the library, by file and line; takes a few seconds of parsing."""
    seen = set()
    for index, path in enumerate(source_paths()):
        module = module_name(path)
        for item in documented_objects((library_root() / path).read_bytes()):
            key = normalize_whitespace(item.text)
            if key in seen or key.count(" ") < _MIN_WORDS - 1:
                continue
            seen.add(key)
            name = f"{module}.{item.name}" if item.name else module
            topic = _TOPIC[path.parts[0].removesuffix(".py")]
            yield Docstring(item.text, topic, name, row_id(index, item.line), item)


def module_name(path: Path) -> str:
    """Return the module of a source path relative to the library: `json.decoder`."""
    return path.with_suffix("").as_posix().removesuffix("/__init__").replace("/", ".")


def parameter_names(function: Function) -> list[str]:
    """Return the names of the parameters of a function: positional, keyword-only, `*args`, `**kwargs`."""
    arguments = function.args
    parameters = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    parameters += [extra for extra in (arguments.vararg, arguments.kwarg) if extra is not None]
    return [parameter.arg for parameter in parameters]


def library_root() -> Path:
    """Return the folder of the standard library's sources."""
    return Path(sysconfig.get_path("stdlib"))


def source_paths() -> list[Path]:
    """Return the sources of the modules with a topic, relative to `library_root`, in the same order on all machines."""
    paths: list[Path] = []
    folder = library_root()
    for top in folder.iterdir() if folder.is_dir() else ():
        if top.name.removesuffix(".py") in _TOPIC:
            paths += [top] if top.suffix == ".py" else top.rglob("*.py")
    relative = [path.relative_to(folder) for path in paths]
    return sorted((path for path in relative if _EXCLUDED.isdisjoint(path.parts)), key=Path.as_posix)
