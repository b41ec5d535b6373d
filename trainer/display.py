"""Text as a person may see it: control characters as escapes, and secrets masked.

Everything that is printed, logged or put into a report comes through here. Files of data stay as they are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any, Final, TextIO

MASK: Final = "***"

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
"""Control characters except tab and line feed, marks of the direction of writing, and halves of surrogate pairs."""

_WORDS = r"token|secret|password|passwd|passphrase|api_?key|private_?key|access_?key|credentials?"
_SECRET_NAME = re.compile(rf"(?<![a-z])(?:{_WORDS})(?![a-z])", re.IGNORECASE)
_VOCABULARY = re.compile(r"(?:^|_)(?:pad|mask|unk|cls|sep|bos|eos|stop|end|start|special)_?token", re.IGNORECASE)
"""Names of tokens that are pieces of text."""

_USER = re.compile(r"(:/{1,2})[^\s/?#'\"]+(?=@)")
"""The user and the password of a URL; what takes it for a path leaves one slash."""
_NAMED = re.compile(
    rf"(?P<name>(?<![\w.-])[\w.-]{{0,80}}?(?:{_WORDS})(?![a-z])[\w-]{{0,80}})(?P<sign>['\"]?\s*[=:]\s*(?=['\"])|=)"
    r"(?P<value>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\"|['\"]\S*|[^\s&'\",\]})]*[^\s&'\",\]}):.])",
    re.IGNORECASE,
)
"""A name and its value: `a.token=x`, `?token=x`, `"token": "x"`."""

_ENTRY = re.compile(r"(?<![\w-])(?P<name>[\w-]+): (?P<value>.+)$", re.MULTILINE)
"""A key of YAML and its value; a search in one long word starts once, not at each of its characters."""


_PLURAL_VERBS: Final = {"has": "have", "is": "are", "was": "were", "does": "do"}
"""Verbs whose plural is not the singular without its `s`."""


def escape_controls(text: str, *, keep_lines: bool = True) -> str:
    r"""Return a text without characters that a terminal obeys instead of showing them; `\u001b` takes the place of one.

    The escapes are JSON's own, so a JSON document keeps its meaning.

    Args:
        text: The text.
        keep_lines: Keep line feeds, else `\n` is in their place.
    """
    escaped = _CONTROL.sub(lambda match: "\\r" if match[0] == "\r" else f"\\u{ord(match[0]):04x}", text)
    return escaped if keep_lines else escaped.replace("\n", "\\n")


def displayable(text: str, *, keep_lines: bool = True) -> str:
    """Return a text for the screen, a log or a report: without control characters and secrets."""
    return escape_controls(mask_secrets(text), keep_lines=keep_lines)


def plural(noun: str) -> str:
    """Return the plural of a noun, or of a phrase that ends with its noun: `rows`, `classes`, `queries`."""
    if re.search(r"[^aeiou]y$", noun):
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def counted(number: int, noun: str, verb: str = "", *, of: int | None = None) -> str:
    """Return a number with its noun and verb in the right form: `1 row has`, `1,200 rows have`, `1 of 6 classes has`.

    Args:
        number: How many.
        noun: The noun of one, or a phrase that ends with it.
        verb: The verb of one; empty leaves it out.
        of: How many there are in all.
    """
    amount = f"{number:,}" if of is None else f"{number:,} of {of:,}"
    things = noun if (number if of is None else of) == 1 else plural(noun)
    form = verb if 1 in (number, of) else _PLURAL_VERBS.get(verb, verb.removesuffix("s"))
    return f"{amount} {things} {form}".rstrip()


def join_items(value: object) -> str:
    """Return a value as a person writes it: the items of a list with commas between them; None is empty."""
    return ", ".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def list_some(texts: Sequence[str], most: int, separator: str = ", ") -> str:
    """Return at most `most` texts in one line, and the number of the others: `one, two and 3 more`."""
    more = f" and {len(texts) - most} more" if len(texts) > most else ""
    return separator.join(texts[:most]) + more


def shorten(text: str, length: int) -> str:
    """Return a text of at most `length` characters, with an ellipsis in place of the rest."""
    return text if len(text) <= length else text[: length - 1] + "…"


def shorten_middle(text: str, length: int) -> str:
    """Return a text of at most `length` characters, of whose middle the rest is left out: long names often start alike.

    Args:
        text: The text.
        length: At least 3.
    """
    end = length // 3
    return text if len(text) <= length else f"{text[: length - end - 1]}…{text[-end:]}"


def shorten_apart(names: Sequence[str], length: int) -> list[str]:
    """Return names of at most `length` characters that still differ: those that `shorten_middle` makes equal are shown
    from the word in which they begin to differ.

    Args:
        names: The names.
        length: At least 3.
    """
    shown = [shorten_middle(name, length) for name in names]
    for short in {each for each in shown if shown.count(each) > 1}:
        places = [place for place, each in enumerate(shown) if each == short]
        shared = commonprefix([names[place] for place in places])  # noqa: RUF071  texts, not paths
        start = max(shared.rfind(" ") + 1, len(shared) - length // 2)  # with the beginning of the word
        for place in places:
            rest = names[place][start:]
            shown[place] = "…" + (rest if len(rest) < length else f"{rest[: length - 2]}…")
    return shown


def is_secret(key: str) -> bool:
    """Return whether the name of a key says that its value is a secret: `logger.api_key`."""
    name = key.rpartition(".")[2]
    return _SECRET_NAME.search(name) is not None and _VOCABULARY.search(name) is None


def mask_secrets(text: str) -> str:
    """Return a text in which the user and password of each URL, and each value with the name of a secret, is masked."""

    def masked(match: re.Match[str]) -> str:
        if not is_secret(match["name"]):
            return match[0]
        quote = match["value"][0] if match["value"][0] in "'\"" else ""
        return f"{match['name']}{match['sign']}{quote}{MASK}{quote}"

    return _NAMED.sub(masked, _USER.sub(rf"\1{MASK}", text))


def masked_yaml(text: str) -> str:
    """Return YAML in which the values of secret keys and the secrets in URLs are masked."""

    def masked(match: re.Match[str]) -> str:
        return f"{match['name']}: {MASK}" if is_secret(match["name"]) and match["value"] != "null" else match[0]

    return _ENTRY.sub(masked, mask_secrets(text))


def masked_config(value: Any, key: str = "") -> Any:
    """Return a config in which the values of secret keys and the secrets in URLs are masked."""
    if isinstance(value, Mapping):
        return {name: masked_config(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked_config(item, key) for item in value]
    if value is not None and not isinstance(value, bool) and is_secret(key):
        return MASK
    return mask_secrets(value) if isinstance(value, str) else value


def print_lines(*texts: str, to: TextIO | None = None) -> None:
    """Print texts of one or several lines each at once; to standard error unless `to` names another stream."""
    print(*map(displayable, texts), sep="\n", file=to or sys.stderr, flush=True)
