"""Errors of the user and their exit codes.

A `TrainerError` is one or several messages for the user, without a traceback. An `assert` or any other exception is a
bug of this tool: exit code 1, with its traceback.
"""

import errno
import re
from collections.abc import Callable
from difflib import get_close_matches
from typing import ClassVar, Final

from trainer.display import MASK, is_secret, mask_secrets

_ABSENT: Final = object()
_MAX_ROW_ERRORS: Final = 10
"""Errors of rows that are listed."""
_MAX_CHARACTERS: Final = 500
"""Longer keys and values are shortened in messages."""


class TrainerError(Exception):
    """A user error; each of its `messages` is complete, one line or a small block."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class ConfigError(TrainerError):
    """The config or the command line is wrong."""

    exit_code = 2


class CheckpointError(TrainerError):
    """A checkpoint or a run folder cannot be used."""

    exit_code = 3


class ProofError(TrainerError):
    """An artifact is not equal to the model that it was exported from."""

    exit_code = 4


class DivergedError(TrainerError):
    """The loss, a gradient or a weight is not finite."""

    exit_code = 5


class DataError(TrainerError):
    """The data cannot be used."""

    exit_code = 6


class Interrupted(TrainerError):  # noqa: N818  not an error: the run can be resumed
    """A signal or a limit of time stopped the run after a complete step; the messages say how to resume it."""

    exit_code = 75


class LostRankError(TrainerError):
    """Another process of the run has ended or does not answer; whatever ended it is reported elsewhere."""


class ReportedError(TrainerError):
    """Another process of the run reports the error: this one ends with the same exit code and without a message."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code  # type: ignore[misc]  # a class variable of all other errors


class LostWorkerError(TrainerError):
    """A process that prepares batches was killed or does not answer; the run can be resumed."""

    exit_code = 75


_OUT_OF_MEMORY = r"you tried to allocate|out of memory|could not create a primitive$"
_LIBRARY_TOO_LARGE = r"failed to map segment|[Cc]annot allocate memory|can't start new thread"

MEMORY_REMEDIES: Final = {
    "train": "Lower loader.eval_batch_size, or raise train.accumulate; a resumed run accepts both. For a new run, you "
    "can also lower loader.tokens, train.batch_size or task.max_length.",
    "plan": "Set trial=false to plan without a trial update, raise train.accumulate, or lower loader.tokens.",
    **dict.fromkeys(("eval", "export", "predict"), "Lower loader.eval_batch_size."),
    "generate": "Lower decode.max_new_tokens, shorten the prompt, or set decode=greedy.",
    "verify": "Set device=cpu if a GPU is too small, otherwise free some memory.",
}
"""The remedies of each verb if memory runs out."""

_FATAL: Final[tuple[tuple[str, type[TrainerError], str], ...]] = (
    (
        r"DataLoader worker \(pid",
        LostWorkerError,
        "loader.workers: a process that prepares batches was killed; the system does so if memory runs out. "
        "If that is the reason, lower loader.workers or loader.prefetch.",
    ),
    (
        r"DataLoader timed out",
        LostWorkerError,
        "loader.timeout: a process that prepares batches does not answer. "
        "If batches take that long, raise loader.timeout.",
    ),
    (
        _OUT_OF_MEMORY,
        ConfigError,
        "out of memory: the job does not fit. {remedy}",
    ),
    (
        _LIBRARY_TOO_LARGE,
        ConfigError,
        "out of memory: the libraries of the program do not fit. Free some memory, or raise the limit of the process "
        "(ulimit -v, or the limit of the container or job).",
    ),
    (
        r"(\S+) does not have a deterministic implementation",
        ConfigError,
        "deterministic: must be false for an operation that is not deterministic on this device, got true "
        "({} of PyTorch). Set deterministic=false.",
    ),
    (
        r"not deterministic because it uses CuBLAS",
        ConfigError,
        "CUBLAS_WORKSPACE_CONFIG: this value of the environment variable makes products of matrices not deterministic. "
        "Unset the variable, or set deterministic=false.",
    ),
)
"""Patterns of errors of torch that are not bugs, with the type and message of the user error.

A message may contain `{}` for each group of its pattern, and `{remedy}` for the remedies of the verb.
"""


ErrorType = Callable[[str], TrainerError]
"""Makes an error from its message."""

STORAGE_ERRORS: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)
"""Errors of a full or failing disk, whatever the program was doing."""
_STORAGE_REMEDIES: Final = {
    errno.ENOSPC: "Free some space",
    errno.EDQUOT: "Free some space, or raise the quota",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "Use a folder that can be written",
    errno.EACCES: "Allow writing there, or use another folder",
    errno.EPERM: "Allow writing there, or use another folder",
    errno.ENOENT: "Create its folder",
    errno.EIO: "Check the disk",
}


def write_error(path: object, error: OSError, error_type: ErrorType = CheckpointError) -> TrainerError:
    """Return the error of a file that cannot be written."""
    remedy = f"{_STORAGE_REMEDIES.get(error.errno or 0, 'Fix the cause')}, then run the command again"
    return error_type(format_error(str(path), f"cannot be written: {error.strerror or error}", remedy))


def find_user_error(error: BaseException | None, verb: str = "train") -> TrainerError | None:
    """Return the user error that an exception is or that caused it; None for a bug.

    Args:
        error: The exception.
        verb: The verb that has failed, which decides the remedy for too little memory.
    """
    remedy = MEMORY_REMEDIES.get(verb, "Free some memory.")
    while error is not None:
        if isinstance(error, TrainerError):
            return error
        text = "out of memory" if isinstance(error, MemoryError) else str(error)
        if isinstance(error, RuntimeError | MemoryError | ImportError) or _lacks_memory(error):
            for pattern, error_type, message in _FATAL:
                if match := re.search(pattern, text):
                    return error_type(message.format(*match.groups(), remedy=remedy))
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            return write_error(error.filename or "a file", error)
        if isinstance(error, PermissionError) and error.filename is not None:
            remedy = "Allow this user to read and write there, or use a copy"
            return CheckpointError(format_error(str(error.filename), "permission denied", remedy))
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # only a name that was given is so long
            remedy = "Shorten the name of each file and folder to at most 255 bytes"
            return ConfigError(format_error("path", "is too long", remedy, value=str(error.filename)))
        error = error.__cause__
    return None


def _lacks_memory(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOMEM


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the host or on a device, or was caused by one."""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and re.search(_OUT_OF_MEMORY, str(error))):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


class RowErrors:
    """The errors of rows or files of data: the first different ones with their numbers, and the number of all."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[str, int]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, error: DataError | str, problem: str | None = None) -> None:
        """Add an error; of several with the same `problem`, without the place, only the first is listed."""
        self._count += 1
        message = str(error)
        key = message if problem is None else problem
        if key in self._first or len(self._first) < _MAX_ROW_ERRORS:
            message, count = self._first.get(key, (message, 0))
            self._first[key] = message, count + 1

    def messages(self) -> list[str]:
        """Return the first errors, and the number of the others."""
        hidden = self._count - sum(count for _, count in self._first.values())
        listed = [
            f"{message} The same in {count - 1} more." if count > 1 else message
            for message, count in self._first.values()
        ]
        return [*listed, *([f"and {hidden} more of {self._count} in total."] if hidden else [])]

    def raise_if_any(self) -> None:
        """Raise one DataError if there are errors."""
        if self._count:
            raise DataError(*self.messages())


def raise_if_any(*problems: str | None) -> None:
    """Raise one ConfigError with all messages that are not None."""
    messages = [problem for problem in problems if problem is not None]
    if messages:
        raise ConfigError(*messages)


def format_error(key: str, problem: str, remedy: str = "", *, value: object = _ABSENT) -> str:
    """Return a message in the form of this project: `<key>: <problem>, got <value>. <remedy>`.

    Args:
        key: The full dotted key (`optimizer.lr`), or the file and row for data.
        problem: The problem or the requirement, without a period.
        remedy: What to do, the allowed values or the nearest match; a sentence without its period or question mark.
        value: The wrong value, see `show_value`; left out by default.
    """
    got = "" if value is _ABSENT else f", got {MASK if is_secret(key) else show_value(value)}"
    last_sentence = remedy.replace("? ", ". ").rpartition(". ")[2]
    stop = "" if remedy.endswith("?") else "?" if last_sentence.startswith("Did you mean") else "."
    return f"{_shorten(mask_secrets(key))}: {problem}{got}." + (f" {remedy}{stop}" if remedy else "")


def show_value(value: object) -> str:
    """Return a value as YAML writes it if it is null, true or false, otherwise its `repr`; long ones are shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return _shorten(repr(value))


def _shorten(text: str) -> str:
    if len(text) <= _MAX_CHARACTERS:
        return text
    return f"{text[: _MAX_CHARACTERS // 2]}...{text[-_MAX_CHARACTERS // 4 :]} ({len(text)} characters)"


def did_you_mean(name: str, known: "list[str]") -> str:
    """Return `Did you mean x` for the closest of `known`, else the list of known names; empty if there are none."""
    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f"Did you mean {matches[0]}"
    return f"Known: {', '.join(sorted(known))}" if known else ""


def install(extra: str) -> str:
    """Return the remedy for a package that is missing: the command that installs an extra, quoted for every shell."""
    return f"Run pip install 'trainer[{extra}]'"


class RowError(Exception):
    """A row of data cannot be used. Callers that know the split and the file turn it into a `DataError`."""

    def __init__(self, position: int, role: str, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.role = role
