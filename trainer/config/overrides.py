"""The command line after the verb: Hydra's flags and overrides, read by Hydra's own parsers."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, ValueType
from hydra.errors import HydraException

from trainer.config.catalogue import Catalogue
from trainer.errors import ConfigError, format_error

# What stands between the signs that lists, mappings and sweeps are written with.
_WORD = re.compile(r"[^\[\]{}:,\s][^\[\]{}:,]*")


@dataclass(frozen=True)
class Command:
    """What follows the verb.

    Attributes:
        overrides: `key=value` and its forms, as written.
        flags: Hydra's flags with their values, as written.
        options: The same flags, parsed.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    options: argparse.Namespace

    @property
    def multirun(self) -> bool:
        """Whether it is a sweep."""
        return bool(self.options.multirun)

    @property
    def shows(self) -> bool:
        """Whether Hydra is asked to show something instead of running a job."""
        given = self.options
        return bool(given.cfg or given.info or given.hydra_help or given.shell_completion)


def split(argv: Sequence[str], texts: Collection[str] = ()) -> tuple[Command, list[str]]:
    """The flags and overrides of a command line, in any order, and what is wrong with the flags.

    The values of the keys `texts` are taken as they are written, whatever signs they hold.
    """
    parser = get_args_parser()
    known = sorted(flag for action in parser._actions for flag in action.option_strings)

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}.")

    parser.error = fail  # type: ignore[method-assign]  # argparse would print its own usage and exit
    options, unknown = parser.parse_known_intermixed_args(list(argv))
    # What follows an unknown flag is left over as well.
    overrides = [*options.overrides, *(text for text in unknown if not text.startswith("-"))]
    rest = list(argv)
    for text in (*options.overrides, *unknown):
        rest.remove(text)
    faults = [_unknown_flag(text, known) for text in unknown if text.startswith("-")]
    written = [as_text(text) if text.partition("=")[0] in texts else quoted(text) for text in overrides]
    return Command(tuple(written), tuple(rest), options), faults


def quoted(text: str) -> str:
    """An override whose words beyond ASCII are in quotes; Hydra reads no others, and a shell eats a user's own quotes.

    A value that has quotes already stays as it is.
    """
    key, equals, value = text.partition("=")
    if value.isascii() or "'" in value or '"' in value:
        return text
    return key + equals + _WORD.sub(lambda word: word[0] if word[0].isascii() else f"'{word[0]}'", value)


def as_text(text: str) -> str:
    """An override whose value is one quoted text without interpolations; `null` and a quoted value stay as they are."""
    key, equals, value = text.partition("=")
    if not value or value == "null" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return text
    # Only before a quote, the end or an interpolation does a backslash mean anything.
    escaped = re.sub(r"(\\*)(\$\{|'|\Z)", lambda found: 2 * found[1] + (found[2] and "\\" + found[2]), value)
    return f"{key}{equals}'{escaped}'"


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    near = get_close_matches(flag.partition("=")[0], known, n=1)
    return format_error(
        flag, "there is no such flag", f"Did you mean {near[0]}" if near else f"Known: {', '.join(known)}"
    )


def parse(texts: Sequence[str]) -> tuple[list[Override], list[str]]:
    """The overrides that can be read, and a message with the spot for each of the others."""
    parser = OverridesParser.create()
    read: list[Override] = []
    faults: list[str] = []
    for text in texts:
        try:
            override = parser.parse_override(text)
            if not override.key_or_group:
                raise HydraException
            read.append(override)
        except HydraException as error:
            faults.append(_unreadable(text, error.__cause__))
    return read, faults


def _unreadable(text: str, cause: Any) -> str:
    if text.find("=") < 1 and not text.startswith("~"):
        return format_error(
            text, "is neither a verb's key nor a flag", "Overrides are written key=value, without spaces"
        )
    token = getattr(cause, "offendingToken", None)
    spot: int = next(
        (place for place in (getattr(cause, "startIndex", None), getattr(token, "start", None)) if place is not None),
        len(text),
    )
    message = format_error(text, "cannot be read at the mark", "Text with special characters is quoted: 'key=\"a, b\"'")
    return f"{message}\n    {text}\n    {' ' * spot}^"


def is_sweep(override: Override) -> bool:
    """Whether an override gives several values."""
    return bool(override.is_sweep_override())


def variants(override: Override, catalogue: Catalogue) -> list[str]:
    """An override once for each of its values; empty where the values cannot be listed (ranges, intervals)."""
    if not is_sweep(override):
        return [str(override.input_line)]
    key = override.get_key_element()
    if override.value_type == ValueType.GLOB_CHOICE_SWEEP:
        glob = override.value()
        assert isinstance(glob, Glob)
        return [f"{key}={option}" for option in glob.filter(catalogue.options(override.key_or_group))]
    if override.value_type in (ValueType.SIMPLE_CHOICE_SWEEP, ValueType.CHOICE_SWEEP):
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    return []
