"""Tags of a sequence: their parts, the rules of tagging schemes, and the best sequence of tags for given scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

OUTSIDE: Final = "O"
_PREFIXES: Final = "BIESLU"
_CONTINUING: Final = "IEL"
_OPEN: Final = "BI"
_CLOSING: Final = "EL"
_FORBIDDEN: Final = -1e6
"""The score of a forbidden transition: finite, so that it can be stored as JSON and a sequence always has a score."""


class TagTransitions(NamedTuple):
    """Scores of sequences of C tags, added to the scores of their words.

    Attributes:
        start: The score of each tag at the first word: (C,).
        between: The score of tag k after tag j, in row j and column k: (C, C).
        end: The score of each tag at the last word: (C,).
    """

    start: Tensor
    between: Tensor
    end: Tensor

    def document(self) -> dict[str, list[float] | list[list[float]]]:
        """Return the scores as JSON."""
        return {name: scores.float().tolist() for name, scores in self._asdict().items()}


def parse_transitions(document: Mapping[str, Any], num_tags: int) -> TagTransitions:
    """Return the scores that `TagTransitions.document` describes.

    Raises:
        ValueError: They are not scores of so many tags.
    """
    transitions = TagTransitions(*(torch.tensor(document[name]) for name in TagTransitions._fields))
    if [scores.shape for scores in transitions] != [(num_tags,), (num_tags, num_tags), (num_tags,)]:
        raise ValueError(f"transitions: must be scores of {num_tags} tags")
    return transitions


def no_transitions(num_tags: int) -> TagTransitions:
    """Return transitions that score nothing, so that the tags of the words are independent of each other."""
    return TagTransitions(torch.zeros(num_tags), torch.zeros(num_tags, num_tags), torch.zeros(num_tags))


def split_tag(tag: str) -> tuple[str, str]:
    """Return prefix and type; a tag without a prefix is a one-word entity of a type that no prefixed tag has."""
    if len(tag) > 1 and tag[0] in _PREFIXES and tag[1] == "-":
        return tag[0], tag[2:]
    return "S", f"-{tag}"


def follows_scheme(tags: Sequence[str]) -> bool:
    """Return whether tags are of the scheme BIO (IOB2), BIOES or BILOU: each type can begin where it can continue.

    Every tag is `O` or has a prefix, and some type begins with `B-`. In the scheme IOB1 `I-` may begin an entity.
    """
    parts = [split_tag(tag) for tag in tags if tag != OUTSIDE]
    begun = {name for prefix, name in parts if prefix == "B"}
    return bool(begun) and all(
        not name.startswith("-") and (prefix not in _CONTINUING or name in begun) for prefix, name in parts
    )


def forbid_transitions(tags: Sequence[str]) -> TagTransitions:
    """Return 0 for each transition that the scheme of the tags allows, and a very low score for the others.

    `I-`, `E-` and `L-` continue an entity of their type that `B-` has begun. If some tag ends entities, as in BIOES and
    BILOU, an entity of several words must end with such a tag.
    """
    parts = [("O", "") if tag == OUTSIDE else split_tag(tag) for tag in tags]
    continues = torch.tensor([prefix in _CONTINUING for prefix, _ in parts])
    must_close = any(prefix in _CLOSING for prefix, _ in parts)
    stays_open = torch.tensor([must_close and prefix in _OPEN for prefix, _ in parts])
    is_continued = torch.tensor(
        [
            [before in _OPEN and after in _CONTINUING and name == other for after, other in parts]
            for before, name in parts
        ]
    )
    forbidden = (continues[None, :] | stays_open[:, None]) & ~is_continued
    return TagTransitions(continues * _FORBIDDEN, forbidden * _FORBIDDEN, stays_open * _FORBIDDEN)


def align_words(values: Tensor, is_word: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the values of words to the front of each row, in their order, and the other values behind them.

    Args:
        values: Scores (B, T, C).
        is_word: True at the positions with a word: bool (B, T).

    Returns:
        The values (B, T, C), True at the words bool (B, T), and the former position of each value int64 (B, T).
    """
    order = (~is_word).int().argsort(dim=1, stable=True)
    return values.gather(1, order[..., None].expand_as(values)), is_word.gather(1, order), order


def decode_tags(output: Tensor, is_word: Tensor, transitions: TagTransitions) -> Tensor:
    """Return scores in which the tag of the best sequence of each row is the largest one at each word.

    The score of tag k at a word is the score of the best sequence with this tag there (its max-marginal), by the
    algorithm of Viterbi (1967) in both directions. Sequences consist of the words of a row; scores at other positions
    are not changed.

    Args:
        output: Scores of the tags (B, T, C).
        is_word: True at the positions with a word: bool (B, T).
        transitions: The scores of transitions.

    Returns:
        Scores (B, T, C), at least float32.
    """
    if not is_word.numel():
        return output
    output = output.to(torch.promote_types(output.dtype, torch.float32))
    start, between, end = (scores.to(output) for scores in transitions)
    scores, valid, order = align_words(output, is_word)
    is_last = valid & ~torch.cat([valid[:, 1:], torch.zeros_like(valid[:, :1])], dim=1)
    width = scores.shape[1]

    best = [start + scores[:, 0]]  # of the sequences up to a word
    before = []
    for place in range(1, width):
        value, tag = (best[-1][:, :, None] + between).max(dim=1)
        best.append(value + scores[:, place])
        before.append(tag)
    after = [end.expand_as(best[-1])] * width  # of the sequences after a word
    for place in range(width - 2, -1, -1):
        value = (between + (scores[:, place + 1] + after[place + 1])[:, None, :]).amax(dim=2)
        after[place] = end.where(is_last[:, place, None], value)
    marginals = torch.stack(best, dim=1) + torch.stack(after, dim=1)

    # Rounding may order two nearly equal sequences differently at two words, so all tags come from one sequence.
    tags = [(best[-1] + end).argmax(dim=1)]
    for place in range(width - 2, -1, -1):
        following = before[place].gather(1, tags[-1][:, None])[:, 0]
        tags.append((best[place] + end).argmax(dim=1).where(is_last[:, place], following))
    path = torch.stack(tags[::-1], dim=1)[..., None]
    top = marginals.amax(dim=2, keepdim=True)
    marginals.scatter_(2, path, torch.nextafter(top, torch.full_like(top, torch.inf)))
    decoded = marginals.where(valid[..., None], scores)
    return torch.empty_like(decoded).scatter_(1, order[..., None].expand_as(decoded), decoded)


class TagSums(NamedTuple):
    """Logarithms of sums over the sequences of tags of a sample with W words and C tags, in float64.

    A sequence has the weight exp(score), so that its weight divided by the sum over all sequences is its probability.

    Attributes:
        scores: The scores of the words: (W, C).
        transitions: The scores `start` (C,), `between` (C, C) and `end` (C,).
        before: The sum over the sequences up to a word that end with a tag: (W, C).
        after: The sum over the sequences after a word that has a tag: (W, C).
    """

    scores: np.ndarray
    transitions: tuple[np.ndarray, np.ndarray, np.ndarray]
    before: np.ndarray
    after: np.ndarray

    def probability(self, first: int, tags: Sequence[int], may_precede: np.ndarray, may_follow: np.ndarray) -> float:
        """Return the probability that some words have these tags, between words with some other tags.

        Source: Culotta and McCallum 2004, "Confidence estimation for information extraction".

        Args:
            first: The first of the words.
            tags: Their tags, at least one.
            may_precede: True for each tag that the word before them may have, if there is one: bool (C,).
            may_follow: The same for the word after them.
        """
        _, between, _ = self.transitions
        places, own, last = range(first, first + len(tags)), list(tags), first + len(tags) - 1
        total = self.scores[places[1:], own[1:]].sum() + between[own[:-1], own[1:]].sum()
        if first == 0:
            total += self.before[0, own[0]]
        else:
            total += _log_sum((self.before[first - 1] + between[:, own[0]])[may_precede]) + self.scores[first, own[0]]
        if last == len(self.scores) - 1:
            total += self.after[last, own[-1]]
        else:
            total += _log_sum((between[own[-1]] + self.scores[last + 1] + self.after[last + 1])[may_follow])
        # NumPy's minimum, unlike Python's, is NaN if a score is.
        return float(np.exp(np.minimum(0.0, total - _log_sum(self.before[-1] + self.after[-1]))))


def sum_sequences(outputs: Sequence[Tensor], transitions: TagTransitions) -> list[TagSums]:
    """Return the sums over the sequences of tags of each sample, by the forward-backward algorithm (Rabiner 1989).

    Args:
        outputs: The scores of the words of each sample, (W, C) with W >= 0.
        transitions: The scores of transitions.
    """
    start, between, end = (scores.double().cpu() for scores in transitions)
    lengths = torch.tensor([len(scores) for scores in outputs])
    if not len(outputs) or not (width := int(lengths.max())):
        empty = np.zeros((0, len(start)))
        return [TagSums(empty, (start.numpy(), between.numpy(), end.numpy()), empty, empty) for _ in outputs]
    scores = pad_sequence([each.double().cpu() for each in outputs], batch_first=True)
    before = [start + scores[:, 0]]
    for place in range(1, width):
        before.append((before[-1][:, :, None] + between).logsumexp(dim=1) + scores[:, place])
    after = [end.expand_as(before[-1])] * width
    for place in range(width - 2, -1, -1):
        following = (between + (scores[:, place + 1] + after[place + 1])[:, None, :]).logsumexp(dim=2)
        after[place] = following.where((place + 1 < lengths)[:, None], end)
    own = (start.numpy(), between.numpy(), end.numpy())
    tables = (scores.numpy(), torch.stack(before, dim=1).numpy(), torch.stack(after, dim=1).numpy())
    return [
        TagSums(each[:length], own, sums[:length], rest[:length])
        for each, sums, rest, length in zip(*tables, lengths.tolist(), strict=True)
    ]


def _log_sum(values: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):  # NaN among the values is the sum, without a warning
        return float(np.logaddexp.reduce(values, initial=-np.inf))
