import itertools
import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.tags import TagTransitions, decode_tags, follows_scheme, forbid_transitions, parse_transitions

BIO = ["B-LOC", "B-PER", "I-LOC", "I-PER", "O"]
BIOES = ["O", "B-X", "I-X", "E-X", "S-X", "S-Y"]


def transitions_of(num_tags: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> TagTransitions:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((num_tags,), (num_tags, num_tags), (num_tags,))
    return TagTransitions(*(2 * torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes))


def sequence_score(scores: Tensor, tags: tuple[int, ...], transitions: TagTransitions) -> float:
    total = transitions.start[tags[0]] + transitions.end[tags[-1]]
    total = total + sum(scores[place, tag] for place, tag in enumerate(tags))
    return float(total + sum(transitions.between[pair] for pair in itertools.pairwise(tags)))


def best_by_brute_force(scores: Tensor, transitions: TagTransitions) -> tuple[list[int], Tensor]:
    """Return the best sequence, and the best score with each tag at each word (W, C), over all sequences of tags."""
    width, num_tags = scores.shape
    values = {
        tags: sequence_score(scores, tags, transitions) for tags in itertools.product(range(num_tags), repeat=width)
    }
    marginals = [
        [max(value for tags, value in values.items() if tags[place] == tag) for tag in range(num_tags)]
        for place in range(width)
    ]
    return list(max(values, key=lambda tags: values[tags])), torch.tensor(marginals, dtype=torch.float64)


@settings(max_examples=30)
@given(widths=st.lists(st.integers(0, 4), min_size=1, max_size=3), seed=st.integers(0, 10_000), gap=st.booleans())
def test_decoded_tags_are_the_best_of_all_sequences(widths: list[int], seed: int, gap: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    output = torch.randn(len(widths), 9, 3, generator=generator, dtype=torch.float64)
    is_word = torch.zeros(len(widths), 9, dtype=torch.bool)
    for row, width in enumerate(widths):
        is_word[row, 1 : 1 + width * (1 + gap) : 1 + gap] = True  # with other tokens before, after and between words
    transitions = transitions_of(3, seed)

    decoded = decode_tags(output, is_word, transitions)

    torch.testing.assert_close(decoded[~is_word], output[~is_word], rtol=0, atol=0)
    for row in range(len(widths)):
        if widths[row]:
            tags, marginals = best_by_brute_force(output[row][is_word[row]], transitions)
            assert decoded[row][is_word[row]].argmax(dim=1).tolist() == tags
            torch.testing.assert_close(decoded[row][is_word[row]], marginals, rtol=1e-12, atol=1e-12)


def test_tags_are_those_of_one_sequence_if_several_are_as_good() -> None:
    transitions = TagTransitions(torch.zeros(2), torch.tensor([[0.0, -5.0], [-5.0, 0.0]]), torch.zeros(2))
    output = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])

    tags = decode_tags(output, torch.ones(1, 4, dtype=torch.bool), transitions).argmax(dim=2)[0].tolist()

    assert tags in ([0, 0, 0, 0], [1, 1, 1, 1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_in_half_precision_are_decoded_in_float32(dtype: torch.dtype) -> None:
    output = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0)).to(dtype)
    transitions, is_word = transitions_of(3, dtype=torch.float32), torch.ones(2, 5, dtype=torch.bool)
    decoded = decode_tags(output, is_word, transitions)
    assert decoded.dtype == torch.float32
    assert torch.equal(decoded, decode_tags(output.float(), is_word, transitions))


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 4, 3)])
def test_nothing_to_decode(shape: tuple[int, int, int]) -> None:
    decoded = decode_tags(torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.bool), transitions_of(3))
    assert decoded.shape == shape


def allowed_pairs(tags: list[str]) -> set[tuple[str, str]]:
    forbidden = forbid_transitions(tags)
    places = {**dict(enumerate(tags))}
    pairs = {(places[j], places[k]) for j, k in (forbidden.between == 0).nonzero().tolist()}
    pairs |= {("<", places[k]) for k in (forbidden.start == 0).nonzero().flatten().tolist()}
    return pairs | {(places[j], ">") for j in (forbidden.end == 0).nonzero().flatten().tolist()}


def test_scheme_bio() -> None:
    assert follows_scheme(BIO)
    everywhere = {(tag, after) for tag in ["<", *BIO] for after in ["B-LOC", "B-PER", "O"]}
    inside = {(f"{prefix}-{name}", f"I-{name}") for prefix in "BI" for name in ("LOC", "PER")}
    assert allowed_pairs(BIO) == everywhere | inside | {(tag, ">") for tag in BIO}


def test_scheme_bioes() -> None:
    assert follows_scheme(BIOES)
    outside = {
        (before, after) for before in ["<", "O", "E-X", "S-X", "S-Y"] for after in ["O", "B-X", "S-X", "S-Y", ">"]
    }
    inside = {("B-X", "I-X"), ("B-X", "E-X"), ("I-X", "I-X"), ("I-X", "E-X")}
    assert allowed_pairs(BIOES) == (outside - {("<", ">")}) | inside
    renamed = [tag.replace("E-", "L-").replace("S-", "U-") for tag in BIOES]
    assert torch.equal(forbid_transitions(renamed).between, forbid_transitions(BIOES).between)


@pytest.mark.parametrize("tags", [["NOUN", "VERB"], ["O", "I-X"], ["O", "B-X", "I-X", "I-Y"], ["O", "B-X", "X"], []])
def test_tags_without_a_scheme(tags: list[str]) -> None:
    assert not follows_scheme(tags)


def test_forbidden_transitions_are_never_decoded() -> None:
    generator = torch.Generator().manual_seed(1)
    forbidden, allowed = forbid_transitions(BIO), allowed_pairs(BIO)
    output = 30 * torch.randn(40, 6, len(BIO), generator=generator)
    tags = decode_tags(output, torch.ones(40, 6, dtype=torch.bool), forbidden).argmax(dim=2).tolist()
    names = [["<", *(BIO[tag] for tag in row), ">"] for row in tags]
    assert all(pair in allowed for row in names for pair in itertools.pairwise(row))
    assert any(
        pair not in allowed
        for row in output.argmax(dim=2).tolist()
        for pair in itertools.pairwise([BIO[k] for k in row])
    )


def test_document_keeps_the_bits() -> None:
    transitions = transitions_of(4, dtype=torch.float32)
    read = parse_transitions(json.loads(json.dumps(transitions.document())), 4)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(read, transitions, strict=True))
    with pytest.raises(ValueError, match="must be scores of 5 tags"):
        parse_transitions(transitions.document(), 5)
