"""Entities of tagged words, by the rules of the CoNLL shared tasks, counted without a loop over words or rows.

A tag is `O`, or a prefix and a type: `B-PER` begins an entity, `I-PER` goes on with it, `E-` (`L-`) ends it, `S-`
(`U-`) is one alone. An entity begins at a prefix that says so, and also where a tag of its type follows `O`, the end of
another entity or another type; so every tag but `O` is in an entity, whatever came before it, and the IOB1, IOB2 and
IOBES (BILOU) schemes are read alike. A tag without a prefix is the type of a word alone.

Source: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task", the script `conlleval`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OUTSIDE = "O"
_PREFIXES = "BIESLU"
_OPENING = "BSU"
_CLOSING = "ESLU"


def has_prefixes(tags: Sequence[str]) -> bool:
    """Whether tags mark entities of several words: one of them begins with `B-` or `I-`."""
    return any(tag.startswith(("B-", "I-")) for tag in tags)


@dataclass(frozen=True)
class Scheme:
    """What each of C tags says, with one more for what is no word: as `O`, it is outside.

    Attributes:
        types: The number of its type, from 0; -1 outside: int64 (C + 1,).
        opens: Whether an entity begins at it, whatever came before: bool (C + 1,).
        closes: Whether an entity ends at it, whatever comes after: bool (C + 1,).
    """

    types: Tensor
    opens: Tensor
    closes: Tensor


def read_scheme(tags: Sequence[str]) -> Scheme:
    """The scheme of the tags, class by class."""
    parts = [_parts(tag) for tag in tags]
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kind for _, kind in parts))}
    types = [-1 if tag == OUTSIDE else numbers[kind] for tag, (_, kind) in zip(tags, parts, strict=True)]
    opens = [prefix in _OPENING for prefix, _ in parts]
    closes = [prefix in _CLOSING for prefix, _ in parts]
    return Scheme(torch.tensor([*types, -1]), torch.tensor([*opens, False]), torch.tensor([*closes, False]))


def _parts(tag: str) -> tuple[str, str]:
    """The prefix and the type; a tag without a prefix is an entity alone, of a type that no prefixed tag has."""
    if len(tag) > 1 and tag[0] in _PREFIXES and tag[1] == "-":
        return tag[0], tag[2:]
    return "S", f"-{tag}"


@dataclass(frozen=True)
class Entities:
    """The entities of B rows of W words, where they begin.

    Attributes:
        begins: Whether one begins at a word: bool (B, W + 1).
        types: The number of its type there: int64 (B, W + 1).
        ends: The word it ends at there: int64 (B, W + 1).
    """

    begins: Tensor
    types: Tensor
    ends: Tensor


def find_entities(tags: Tensor, scheme: Scheme) -> Entities:
    """The entities of tags int64 (B, W), classes or C for what is no word, which stands at the end of a row."""
    # With one more word outside, every entity is followed by something, and no row is empty.
    tags = torch.cat([tags, tags.new_full((len(tags), 1), len(scheme.types) - 1)], dim=1)
    types = scheme.types[tags]
    inside = types >= 0
    goes_on = inside[:, 1:] & inside[:, :-1] & (types[:, 1:] == types[:, :-1])
    goes_on &= ~scheme.opens[tags[:, 1:]] & ~scheme.closes[tags[:, :-1]]
    begins = inside.clone()
    begins[:, 1:] &= ~goes_on
    last = inside.clone()
    last[:, :-1] &= ~goes_on
    width = tags.shape[1]
    places = torch.arange(width, device=tags.device).expand_as(tags)
    ends = places.where(last, places.new_full((), width)).flip(1).cummin(dim=1).values.flip(1)
    return Entities(begins, types, ends)


def entity_spans(tags: Sequence[str | None]) -> list[dict[str, str | int]]:
    """The entities of tagged words: their `type`, and the words from `start` to before `end`; None is no word.

    A word alone, whose tag has no prefix, is an entity of the tag's own name.
    """
    known = sorted({tag for tag in tags if tag is not None})
    scheme = read_scheme(known)
    found = find_entities(torch.tensor([[len(known) if tag is None else known.index(tag) for tag in tags]]), scheme)
    starts = found.begins[0].nonzero().flatten().tolist()
    return [
        {"type": _parts(str(tags[start]))[1].removeprefix("-"), "start": start, "end": int(found.ends[0, start]) + 1}
        for start in starts
    ]


def count_entities(predicted: Tensor, target: Tensor, scheme: Scheme, ignore_index: int = -100) -> Tensor:
    """How many entities are found, predicted and there: int64 (3,), on the device of the tags, without a host sync.

    An entity is found where one of the same type, first and last word is predicted.

    Args:
        predicted: Classes (B, W).
        target: Classes (B, W), `ignore_index` where there is no word to tag: those places are taken out, so that the
            words beside them are neighbours.
        scheme: Of the C classes, on the same device.
        ignore_index: What is no word.
    """
    ignored = target == ignore_index
    order = ignored.int().argsort(dim=1, stable=True)
    no_word = len(scheme.types) - 1
    found = find_entities(predicted.masked_fill(ignored, no_word).gather(1, order), scheme)
    there = find_entities(target.masked_fill(ignored, no_word).gather(1, order), scheme)
    matched = found.begins & there.begins & (found.types == there.types) & (found.ends == there.ends)
    return torch.stack([matched.sum(), found.begins.sum(), there.begins.sum()])
