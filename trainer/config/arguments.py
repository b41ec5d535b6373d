"""The words of a command line: Hydra's flags, overrides, and values without a key, in the syntax of Hydra."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from trainer.config.foreign_names import foreign_name
from trainer.errors import ConfigError, format_error
from trainer.layout import expand_home

# `key=value`, `++key=value`, `~key` and their relatives in Hydra's grammar, not a text or a path such as ~/runs.
_OVERRIDE = re.compile(r"(\+{0,2}|~)\w[\w.$/@:-]*=|~\w[\w.$/@:-]*\Z")

_COMPLETION = re.compile(r"(?:install|uninstall|query)=(?:bash|zsh|fish)")

# A word between the signs of the syntax of lists, mappings and sweeps.
_WORD = re.compile(r"[^\[\]{}:,\s][^\[\]{}:,]*")


@dataclass(frozen=True)
class Arguments:
    """The command line after the verb.

    Attributes:
        overrides: `key=value` and its other forms, as written.
        flags: Hydra's flags with their values, as written.
        options: The flags, parsed.
    """

    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    options: argparse.Namespace

    @property
    def is_sweep(self) -> bool:
        """Return whether several jobs may run (`--multirun`)."""
        return bool(self.options.multirun)

    @property
    def shows_hydra(self) -> bool:
        """Return whether Hydra shows its own state instead of running a job (`--info`, `--hydra-help`, completion)."""
        return bool(self.options.info or self.options.hydra_help or self.options.shell_completion)

    @property
    def needs_hydra(self) -> bool:
        """Return whether Hydra's own main must run: for sweeps and flags that show something."""
        return self.is_sweep or self.shows_hydra or bool(self.options.cfg)


def split_arguments(
    argv: Sequence[str], texts: Collection[str] = (), positions: Sequence[str] = (), keys: Collection[str] = ()
) -> tuple[Arguments, list[str]]:
    """Split a command line into flags and overrides, in any order; also return the problems of the flags.

    Args:
        argv: The command line after the verb.
        texts: Keys whose values are taken verbatim.
        positions: Keys whose values may be given without their names, in this order.
        keys: The top-level keys of the verb.
    """
    parser = get_args_parser()
    known = sorted(flag for action in parser._actions for flag in action.option_strings)

    def fail(message: str) -> NoReturn:
        raise ConfigError(f"{message[0].upper()}{message[1:]}.")

    parser.error = fail  # type: ignore[method-assign]  # argparse would print its own usage and exit
    argv, problems = _without_dashes(argv, keys, known)
    options, unknown = parser.parse_known_intermixed_args(argv)
    # An override after an unknown flag is left over as well.
    overrides = [*options.overrides, *(text for text in unknown if not text.startswith("-"))]
    rest = list(argv)
    for text in (*options.overrides, *unknown):
        rest.remove(text)
    problems += [_unknown_flag(text, known) for text in unknown if text.startswith("-")]
    problems += _validate_flags(options)
    if positions:
        overrides, surplus = _name_values(overrides, positions, keys)
        problems += surplus
    written = [as_text(text) if text.partition("=")[0] in texts else quoted(text) for text in overrides]
    return Arguments(tuple(written), tuple(rest), options), problems


def _without_dashes(argv: Sequence[str], keys: Collection[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Write the flags of other trainers (`--lr 0.1`) as `lr=0.1`, which is checked like any key.

    Also return a problem for each flag that is a key here, which needs no dashes.
    """
    words, texts, problems = list(argv), list[str](), list[str]()
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-").replace("-", "_")
        is_key = name.partition(".")[0] in keys
        takes_next = not equals and bool(words) and not words[0].startswith("--") and "=" not in words[0]
        # Flags of Hydra may be shortened, and misspelled ones are named later.
        is_near = any(each.startswith(flag) for each in known) or bool(get_close_matches(flag, known, n=1))
        is_other = flag.startswith("--") and bool(equals or takes_next) and name.isidentifier() and not is_near
        if not flag.startswith("-") or flag in known or not (is_key or is_other or foreign_name(name)):
            texts.append(word)
            continue
        if not equals:
            value = words.pop(0) if takes_next else "true"
        texts.append(f"{name}={value}")
        if is_key:
            problems.append(format_error(flag, "a key is written without dashes", f"Write {name}={value}"))
    return texts, problems


def _name_values(texts: Sequence[str], positions: Sequence[str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """Write the values that were given without a key as `key=value`; also return the problems with them.

    A single value for a verb that takes a run and a text is the run if it is a folder, else the text.
    """
    named = [text for text in texts if _OVERRIDE.match(text)]
    values = [text for text in texts if not _OVERRIDE.match(text)]
    present = {text.partition("=")[0] for text in named}
    keys = [key for key in positions if key not in present]
    if keys[:1] == ["run"] and keys[-1] in ("input", "prompt") and len(values) == 1:
        keys = keys[:1] if os.path.isdir(expand_home(values[0])) else keys[1:]
    if keys[-1:] == ["beside"]:
        keys += ["beside"] * (len(values) - len(keys))
    remedy = f"This verb takes {' and '.join(positions)} without a name, once"
    splits = ("train", "validation", "test") if "split" in known else ()
    problems = [
        format_error(value, "one value too many", f"Set split={value}" if value in splits else remedy)
        for value in values[len(keys) :]
    ]
    lines: dict[str, list[str]] = {}
    for key, value in zip(keys, values, strict=False):
        # An empty key makes a text of the value alone.
        lines.setdefault(key, []).append(as_text(f"={value}")[1:])
    pairs = [f"{key}=[{','.join(texts)}]" if key == "beside" else f"{key}={texts[0]}" for key, texts in lines.items()]
    return [*named, *pairs], problems


def quoted(text: str) -> str:
    """Put the words of an override that Hydra reads only in quotes into quotes, as a shell removes them.

    These are words beyond ASCII, and paths in the home folder. A value that has quotes already stays as it is.
    """
    key, equals, value = text.partition("=")
    if (value.isascii() and "~" not in value) or "'" in value or '"' in value:
        return text

    def needs_quotes(word: str) -> bool:
        return not word.isascii() or "~" in word

    return key + equals + _WORD.sub(lambda word: f"'{word[0]}'" if needs_quotes(word[0]) else word[0], value)


def as_text(text: str) -> str:
    """Turn the value of an override into one quoted text without interpolations; `null` and quoted values stay."""
    key, equals, value = text.partition("=")
    if not value or value == "null" or (len(value) > 1 and value[0] == value[-1] and value[0] in "'\""):
        return text
    # A backslash has a meaning only before a quote, the end or an interpolation.
    escaped = re.sub(r"(\\*)(\$\{|'|\Z)", lambda match: 2 * match[1] + (match[2] and "\\" + match[2]), value)
    return f"{key}{equals}'{escaped}'"


def _validate_flags(options: argparse.Namespace) -> list[str]:
    """Return the problems of flags that Hydra would meet with a traceback."""
    named = {"--run": "run", "--multirun": "multirun", "--cfg": "cfg", "--info": "info"}
    chosen = [flag for flag, name in named.items() if getattr(options, name)]
    chosen += ["--shell-completion"] if options.shell_completion else []
    problems = [format_error(" ".join(chosen), "exclude each other", "Keep one")] if len(chosen) > 1 else []
    if options.experimental_rerun is not None:
        problem, remedy = "loads a pickle, which can run any code", "Resume a run with resume=RUN"
        problems.append(format_error("--experimental-rerun", problem, remedy, value=options.experimental_rerun))
    if options.shell_completion and not (len(options.overrides) == 1 and _COMPLETION.fullmatch(options.overrides[0])):
        remedy = "Write --shell-completion install=bash; bash may also be zsh or fish, and install may be uninstall"
        problems.append(format_error("--shell-completion", "needs a shell", remedy))
    return problems


def _unknown_flag(flag: str, known: Sequence[str]) -> str:
    near = get_close_matches(flag.partition("=")[0], known, n=1)
    return format_error(flag, "unknown flag", f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}")
