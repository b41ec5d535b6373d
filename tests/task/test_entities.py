import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.export.bundle.answers import rate_entities
from trainer.tags import TagTransitions, sum_sequences
from trainer.task.entities import count_entities, entity_probabilities, entity_spans, has_prefixes, read_scheme

TAGS = ["B-A", "B-B", "I-A", "I-B", "E-A", "E-B", "S-A", "S-B", "O"]
BIO = ["B-A", "B-B", "I-A", "I-B", "O"]
Entity = tuple[str, int, int]


def begins(before: str, tag: str) -> bool:
    """`startOfChunk` of conlleval, with S as seqeval has it."""
    (last, last_type), (prefix, type_) = split(before), split(tag)
    if prefix in "BS" or (last in "ES" and prefix in "EI") or (last == "O" and prefix in "EI"):
        return True
    return prefix != "O" and last_type != type_


def ends(before: str, tag: str) -> bool:
    """`endOfChunk` of conlleval, with S as seqeval has it."""
    (last, last_type), (prefix, type_) = split(before), split(tag)
    if last in "ES" or (last in "BI" and prefix in "BSO"):
        return True
    return last != "O" and last_type != type_


def split(tag: str) -> tuple[str, str]:
    return ("O", "") if tag == "O" else (tag[0], tag[2:])


def entities(tags: list[str]) -> set[Entity]:
    """The entities of a row, tag by tag."""
    spans = set()
    start, before = 0, "O"
    for place, tag in enumerate([*tags, "O"]):
        if ends(before, tag):
            spans.add((split(before)[1], start, place - 1))
        if begins(before, tag):
            start = place
        before = tag
    return spans


def counted(predicted: list[list[str]], actual: list[list[str]]) -> list[int]:
    rows = [(entities(one), entities(other)) for one, other in zip(predicted, actual, strict=True)]
    return [
        sum(map(len, numbers)) for numbers in ([a & b for a, b in rows], [a for a, _ in rows], [b for _, b in rows])
    ]


def tensors(rows: list[list[str]], names: list[str], width: int, fill: int) -> torch.Tensor:
    filled = [[names.index(tag) for tag in row] + [fill] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64).view(len(rows), width)


def pairs(names: list[str]) -> st.SearchStrategy[list[tuple[list[str], list[str]]]]:
    tag = st.sampled_from(names)
    row = st.lists(st.tuples(tag, tag, st.booleans()), max_size=9)
    # Half of the predictions are right, else few entities match.
    made = row.map(lambda words: ([b if right else a for a, b, right in words], [b for _, b, _ in words]))
    return st.lists(made, min_size=1, max_size=6)


def check(rows: list[tuple[list[str], list[str]]], names: list[str]) -> None:
    predicted, actual = map(list, zip(*rows, strict=True))
    width = max(map(len, actual))
    got = count_entities(
        tensors(predicted, names, width, 0),
        tensors(actual, names, width, -100),
        read_scheme(names),
    )
    assert got.tolist() == counted(predicted, actual)


@settings(max_examples=50)
@given(pairs(BIO))
def test_bio_counts_equal_conlleval(rows: list[tuple[list[str], list[str]]]) -> None:
    check(rows, BIO)


@settings(max_examples=50)
@given(pairs(TAGS))
def test_bioes_counts_equal_seqeval(rows: list[tuple[list[str], list[str]]]) -> None:
    check(rows, TAGS)


@settings(max_examples=50)
@given(pairs(BIO), st.integers(0, 2**20 - 1))
def test_positions_without_a_word_do_not_separate_neighbors(
    rows: list[tuple[list[str], list[str]]], pattern: int
) -> None:
    predicted, actual = map(list, zip(*rows, strict=True))
    scheme = read_scheme(BIO)
    dense, sparse = [], []
    for number, (one, other) in enumerate(zip(predicted, actual, strict=True)):
        spaced: list[tuple[int, int]] = []
        for place, (a, b) in enumerate(zip(one, other, strict=True)):
            spaced += [(0, -100)] * (pattern >> (number + place) % 20 & 1) + [(BIO.index(a), BIO.index(b))]
        sparse.append(spaced + [(3, -100)] * (20 - len(spaced)))
        dense.append([(BIO.index(a), BIO.index(b)) for a, b in zip(one, other, strict=True)])
    wide = torch.tensor(sparse)

    got = count_entities(wide[..., 0], wide[..., 1], scheme)

    assert got.tolist() == counted(predicted, actual)


def test_counts_equal_hand_computed_values() -> None:
    actual = [["B-PER", "I-PER", "O", "B-LOC"], ["I-LOC", "B-LOC", "I-PER", "O"]]
    predicted = [["B-PER", "I-PER", "O", "B-PER"], ["I-LOC", "I-LOC", "I-PER", "O"]]
    names = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]

    # Actual: PER 0-1, LOC 3; LOC 0, LOC 1, PER 2. Predicted: PER 0-1, PER 3; LOC 0-1, PER 2.
    got = count_entities(tensors(predicted, names, 4, 0), tensors(actual, names, 4, 0), read_scheme(names))

    assert got.tolist() == [2, 4, 5]


def test_tags_without_prefix_are_single_words() -> None:
    names = ["ADJ", "B-N", "I-N", "N", "O"]
    actual = [["N", "N", "B-N", "N", "O"], ["ADJ", "B-N", "I-N", "O", "O"]]

    got = count_entities(tensors(actual, names, 5, 0), tensors(actual, names, 5, 0), read_scheme(names))

    assert got.tolist() == [6, 6, 6]


def test_bilou_equals_bioes() -> None:
    names, others = ["B-X", "I-X", "L-X", "U-X", "O"], ["B-X", "I-X", "E-X", "S-X", "O"]
    one, other = read_scheme(names), read_scheme(others)

    assert all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_rows_without_words() -> None:
    scheme = read_scheme(BIO)
    for shape in ((3, 0), (0, 4), (0, 0)):
        empty = torch.zeros(shape, dtype=torch.int64)
        assert count_entities(empty, empty, scheme).tolist() == [0, 0, 0]


def test_prefixes_are_detected() -> None:
    assert has_prefixes(["O", "I-PER"])
    assert has_prefixes(["B-PER"])
    assert not has_prefixes(["NOUN", "O", "B", "E-X"])


@settings(max_examples=30)
@given(
    names=st.sampled_from([BIO, ["B-A", "I-A", "E-A", "O"], ["B-A", "I-A", "T"]]),
    row=st.lists(st.one_of(st.none(), st.integers(0, 2)), max_size=6).filter(
        lambda row: len(row) - row.count(None) < 5
    ),
    seed=st.integers(0, 10_000),
)
def test_probability_is_the_weight_of_the_sequences_with_an_entity(
    names: list[str], row: list[int | None], seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    tags = [None if number is None else names[number] for number in row]
    read = [place for place, tag in enumerate(tags) if tag is not None]
    scores = 2 * torch.randn(len(read), len(names), generator=generator, dtype=torch.float64)
    shapes = ((len(names),), (len(names), len(names)), (len(names),))
    transitions = TagTransitions(*(2 * torch.randn(shape, generator=generator) for shape in shapes))
    weights: dict[tuple[int, ...], float] = {}
    for sequence in itertools.product(range(len(names)), repeat=len(read)):
        total = sum(scores[place, tag].item() for place, tag in enumerate(sequence))
        total += sum(transitions.between[pair].item() for pair in itertools.pairwise(sequence))
        total += transitions.start[sequence[0]].item() + transitions.end[sequence[-1]].item() if sequence else 0.0
        weights[sequence] = math.exp(total)
    expected = []
    found = entity_spans(tags)
    for entity in found:
        kept = 0.0
        for sequence, weight in weights.items():
            other: list[str | None] = [None] * len(tags)
            for place, tag in zip(read, sequence, strict=True):
                other[place] = names[tag]
            has_tags = other[entity["start"] : entity["end"]] == tags[entity["start"] : entity["end"]]
            kept += weight * (has_tags and entity in entity_spans(other))
        expected.append(kept / sum(weights.values()))

    # Next to a longer sample, whose words must not count.
    longer = torch.randn(len(read) + 2, len(names), generator=generator)
    sums = sum_sequences([scores, longer], transitions)[0]

    assert entity_probabilities(found, tags, names, sums) == pytest.approx(expected, rel=1e-9)
    chosen = [names.index(tags[place]) for place in read]
    rate_entities(found, read, chosen, names, scores.numpy(), transitions.document())
    assert [entity["probability"] for entity in found] == pytest.approx(expected, abs=1e-6)
