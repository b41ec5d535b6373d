import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.spans import count_spans, list_spans, list_targets, pack_spans, possible_spans, span_cells

CLASSES = 3
Span = tuple[int, int, int]


@st.composite
def samples(draw: st.DrawFn) -> list[tuple[list[bool], set[Span]]]:
    """Return some samples: which tokens may bound spans, and spans of these tokens."""
    made = []
    for _ in range(draw(st.integers(1, 4))):
        may_bound = draw(st.lists(st.booleans(), min_size=1, max_size=6))
        places = [place for place, bound in enumerate(may_bound) if bound]
        pairs = list(itertools.combinations_with_replacement(places, 2))
        spans = st.tuples(st.sampled_from(pairs or [(0, 0)]), st.integers(0, CLASSES - 1))
        drawn = draw(st.lists(spans, max_size=6 if pairs else 0))
        made.append((may_bound, {(*pair, index) for pair, index in drawn}))
    return made


def pack(made: list[tuple[list[bool], set[Span]]], width: int = 7) -> torch.Tensor:
    return pack_spans(
        [np.array(sorted(spans), dtype=np.int32).reshape(-1, 3) for _, spans in made],
        [np.array(may_bound) for may_bound, _ in made],
        width=width,
        num_classes=CLASSES,
    )


@given(made=samples())
def test_a_target_contains_the_spans_and_the_tokens_that_may_bound_them(
    made: list[tuple[list[bool], set[Span]]],
) -> None:
    target = pack(made)
    depth = max(sum(first == place for first, _, _ in spans) for _, spans in made for place in range(6))
    assert target.shape == (len(made), 7, max(1, depth))
    cells = span_cells(target, CLASSES)
    for row, (may_bound, spans) in enumerate(made):
        assert list_targets(target[row], CLASSES) == sorted(spans)
        places = cells.cells[row][cells.exist[row]].tolist()
        assert sorted((each // 7 % 7, each % 7, each // 49) for each in places) == sorted(spans)
        possible = {(i, j) for i, j in itertools.product(range(6), repeat=2) if i <= j < len(may_bound)}
        expected = {(i, j) for i, j in possible if may_bound[i] and may_bound[j]}
        assert {(i, j) for i, j in possible_spans(target)[row].nonzero().tolist()} == expected


@settings(max_examples=40)
@given(made=samples(), seed=st.integers(0, 1000))
def test_counts_are_those_of_sets(made: list[tuple[list[bool], set[Span]]], seed: int) -> None:
    target = pack(made)
    scores = torch.randn(len(made), CLASSES, 7, 7, generator=torch.Generator().manual_seed(seed))
    counts = count_spans(scores, target)
    assert (counts.shape, counts.dtype) == ((3, len(made), CLASSES), torch.int64)
    for row, (_, actual) in enumerate(made):
        found = {*list_spans((scores[row] > 0) & possible_spans(target)[row])}
        for index in range(CLASSES):
            sets = [{span for span in each if span[2] == index} for each in (actual & found, found, actual)]
            assert counts[:, row, index].tolist() == [len(each) for each in sets]
