"""What can go wrong on the user's side, and the exit code that says so.

A `TrainerError` is one or several messages for a person, without a traceback. What is wrong inside the
tool is an `assert` or any other exception: exit code 1, with its traceback.
"""

from difflib import get_close_matches
from typing import Any, ClassVar, Final

_ABSENT: Final = object()


class TrainerError(Exception):
    """A user error: `messages` are complete, one line (or one small block) each."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages


class ConfigError(TrainerError):
    """The configuration or the command line is wrong."""

    exit_code = 2


class CheckpointError(TrainerError):
    """A checkpoint or a run folder cannot be used."""

    exit_code = 3


class ProofError(TrainerError):
    """An artifact is not equal to the model it was exported from."""

    exit_code = 4


class DivergedError(TrainerError):
    """The loss, a gradient or a weight is not finite."""

    exit_code = 5


class DataError(TrainerError):
    """The data cannot be used."""

    exit_code = 6


class Interrupted(TrainerError):  # noqa: N818  it is not an error: the run goes on later
    """A signal stopped the run after a complete step; the messages say how to go on."""

    exit_code = 75


def raise_if_any(*faults: str | None) -> None:
    """Raises one ConfigError with all `faults` that there are."""
    found = [fault for fault in faults if fault is not None]
    if found:
        raise ConfigError(*found)


def format_error(key: str, problem: str, remedy: str = "", *, value: Any = _ABSENT) -> str:
    """One message in the house's form: `<key>: <problem>, got <value>. <remedy>`.

    Args:
        key: The full dotted key (`optimizer.lr`), or the file and row for data.
        problem: What is wrong or expected, without a full stop.
        remedy: Allowed values, the nearest match or what to do; a sentence, without a full stop.
        value: What was found, shown by `repr`; left out when not given.
    """
    got = "" if value is _ABSENT else f", got {value!r}"
    stop = "" if remedy.endswith("?") else "."
    return f"{key}: {problem}{got}." + (f" {remedy}{stop}" if remedy else "")


def did_you_mean(name: str, known: "list[str]") -> str:
    """`Did you mean x` for the closest of `known`, else the list of what is known; empty without any."""
    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    if matches:
        return f"Did you mean {matches[0]}"
    return f"Known: {', '.join(sorted(known))}" if known else ""


class RowError(Exception):
    """A row of data cannot be used. Whoever knows the split and the file turns it into a `DataError`."""

    def __init__(self, position: int, role: str, message: str) -> None:
        super().__init__(message)
        self.position = position
        self.role = role
