"""Entities of tagged words by the rules of the CoNLL shared tasks, counted without a loop over words or rows.

A tag is `O`, or a prefix and a type: `B-PER` begins an entity, `I-PER` continues it, `E-` (`L-`) ends it, `S-` (`U-`)
is an entity of one word. An entity begins at a prefix that says so, and also at a tag of its type after `O`, after the
end of another entity, or after another type. So every tag except `O` is in an entity, whatever comes before it, and the
IOB1, IOB2 and IOBES (BILOU) schemes are read alike. A tag without a prefix is the type of a single word.

Source: Tjong Kim Sang and De Meulder 2003, "Introduction to the CoNLL-2003 shared task", the script `conlleval`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.tags import OUTSIDE, TagSums, split_tag

_OPENING = "BSU"
_CLOSING = "ESLU"


def has_prefixes(tags: Sequence[str]) -> bool:
    """Return whether tags mark entities of several words: one of them begins with `B-` or `I-`."""
    return any(tag.startswith(("B-", "I-")) for tag in tags)


@dataclass(frozen=True)
class Scheme:
    """The meaning of each of C tags, and of one more for a position without a word, which is outside like `O`.

    Attributes:
        types: The index of the tag's type, from 0; -1 outside: int64 (C + 1,).
        opens: True if an entity begins at the tag, whatever comes before: bool (C + 1,).
        closes: True if an entity ends at the tag, whatever comes after: bool (C + 1,).
    """

    types: Tensor
    opens: Tensor
    closes: Tensor


def read_scheme(tags: Sequence[str]) -> Scheme:
    """Return the scheme of the tags, class by class."""
    parts = [split_tag(tag) for tag in tags]
    indices = {name: index for index, name in enumerate(dict.fromkeys(name for _, name in parts))}
    types = [-1 if tag == OUTSIDE else indices[name] for tag, (_, name) in zip(tags, parts, strict=True)]
    opens = [prefix in _OPENING for prefix, _ in parts]
    closes = [prefix in _CLOSING for prefix, _ in parts]
    return Scheme(torch.tensor([*types, -1]), torch.tensor([*opens, False]), torch.tensor([*closes, False]))


@dataclass(frozen=True)
class Entities:
    """The entities in B rows of W words, stored at their first words.

    Attributes:
        begins: True at the first word of an entity: bool (B, W + 1).
        types: The index of the entity's type there: int64 (B, W + 1).
        ends: The last word of the entity there: int64 (B, W + 1).
    """

    begins: Tensor
    types: Tensor
    ends: Tensor


def find_entities(tags: Tensor, scheme: Scheme) -> Entities:
    """Find the entities of tags int64 (B, W): classes, or C after the last word of a row."""
    # One more position outside, so that every entity has a successor and no row is empty.
    tags = torch.cat([tags, tags.new_full((len(tags), 1), len(scheme.types) - 1)], dim=1)
    types = scheme.types[tags]
    inside = types >= 0
    continues = inside[:, 1:] & inside[:, :-1] & (types[:, 1:] == types[:, :-1])
    continues &= ~scheme.opens[tags[:, 1:]] & ~scheme.closes[tags[:, :-1]]
    begins = inside.clone()
    begins[:, 1:] &= ~continues
    last = inside.clone()
    last[:, :-1] &= ~continues
    width = tags.shape[1]
    places = torch.arange(width, device=tags.device).expand_as(tags)
    ends = places.where(last, places.new_full((), width)).flip(1).cummin(dim=1).values.flip(1)
    return Entities(begins, types, ends)


def entity_spans(tags: Sequence[str | None]) -> list[dict[str, str | int]]:
    """Return the `type` of each entity and its words, from `start` up to before `end`; None is no word.

    A word whose tag has no prefix is an entity of the tag's own name.
    """
    known = sorted({tag for tag in tags if tag is not None})
    scheme = read_scheme(known)
    indices = [len(known) if tag is None else known.index(tag) for tag in tags]
    entities = find_entities(torch.tensor([indices], dtype=torch.int64), scheme)
    starts = entities.begins[0].nonzero().flatten().tolist()
    return [
        {
            "type": split_tag(str(tags[start]))[1].removeprefix("-"),
            "start": start,
            "end": int(entities.ends[0, start]) + 1,
        }
        for start in starts
    ]


def entity_probabilities(
    entities: Sequence[Mapping[str, Any]], tags: Sequence[str | None], labels: Sequence[str], sums: TagSums
) -> list[float]:
    """Return the probability of each entity: its words have their tags, and the words next to them do not extend it.

    Args:
        entities: The result of `entity_spans`.
        tags: The tags of the words; None for a word that the model has not read.
        labels: The names of the C tags.
        sums: The sums over the sequences of tags of the words that the model has read.
    """
    scheme, index = read_scheme(labels), {label: place for place, label in enumerate(labels)}
    types, opens, closes = (each.numpy()[:-1] for each in (scheme.types, scheme.opens, scheme.closes))
    extends = (types >= 0) & (types[:, None] == types) & ~opens & ~closes[:, None]
    is_read = np.array([tag is not None for tag in tags], dtype=bool)
    places = is_read.cumsum() - 1
    probabilities = []
    for start, end in ((entity["start"], entity["end"]) for entity in entities):
        own = [index[str(tag)] for tag in tags[start:end]]
        # Next to a word that the model has not read, no tag extends the entity.
        has_before, has_after = start > 0 and is_read[start - 1], end < len(tags) and is_read[end]
        may_precede, may_follow = ~(has_before & extends[:, own[0]]), ~(has_after & extends[own[-1]])
        probabilities.append(sums.probability(int(places[start]), own, may_precede, may_follow))
    return probabilities


def count_entities(predicted: Tensor, target: Tensor, scheme: Scheme, ignore_index: int = -100) -> Tensor:
    """Count matched, predicted and actual entities: int64 (3,), on the device of the tags, without a host sync.

    An entity matches if its type, first word and last word are predicted.

    Args:
        predicted: Classes (B, W).
        target: Classes (B, W), `ignore_index` at a position without a word to tag. These positions are removed, so
            that the words next to them become neighbors.
        scheme: The scheme of the C classes, on the same device.
        ignore_index: The target at a position without a word to tag.
    """
    ignored = target == ignore_index
    order = ignored.int().argsort(dim=1, stable=True)
    no_word = len(scheme.types) - 1
    guesses = find_entities(predicted.masked_fill(ignored, no_word).gather(1, order), scheme)
    actual = find_entities(target.masked_fill(ignored, no_word).gather(1, order), scheme)
    matched = guesses.begins & actual.begins & (guesses.types == actual.types) & (guesses.ends == actual.ends)
    return torch.stack([matched.sum(), guesses.begins.sum(), actual.begins.sum()])
