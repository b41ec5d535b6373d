"""Beam search: compared with transformers and with an exhaustive search."""

from itertools import product

import pytest
import torch

from tests.support.language_models import (
    BEAMS,
    PLAIN,
    VOCAB_SIZE,
    Case,
    cases,
    check,
    models,
    models_of_table,
    prompt_of,
)
from trainer.decode.beam import Beam
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession


@torch.inference_mode()
@pytest.mark.parametrize("count", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_matches_transformers(count: int) -> None:
    for case in cases(count, beams=True):
        check(case, Beam(**case.settings)(CachedSession(case.ours), case.prompt))


@torch.inference_mode()
def test_stopping_rules_match_transformers() -> None:
    rules = product([True, False, "never"], [0.0, 2.0], [1, 2, 5])
    for case, (early_stopping, length_penalty, num_beams) in zip(cases(18), rules, strict=True):
        case.settings.update(
            max_new_tokens=20,
            min_new_tokens=0,
            early_stopping=early_stopping,
            length_penalty=length_penalty,
            num_beams=num_beams,
            num_return=num_beams,
        )
        check(case, Beam(**case.settings)(CachedSession(case.ours), case.prompt))


@torch.inference_mode()
def test_early_stopping_never_finds_a_longer_text() -> None:
    """Token 1 leads to the end, to 2, which ends, or to 3, which rarely leads to an endless sequence of 4."""
    rare = 1e-6
    table = torch.full((6, 6), rare)
    for token, following in {
        1: {0: 0.3, 2: 0.35, 3: 0.35},
        2: {0: 0.95, 5: 0.05},
        3: {0: 0.8, 4: 0.15, 5: 0.05},
    }.items():
        for after, probability in following.items():
            table[token, after] = probability
    table[4, 4] = table[5, 5] = table[0, 0] = 1.0
    theirs, ours = models_of_table(table / table.sum(-1, keepdim=True))
    best = {}
    for rule in (True, False, "never"):
        settings = PLAIN | BEAMS | {"num_beams": 2, "early_stopping": rule}
        found = Beam(**settings)(CachedSession(ours), prompt_of([1]))
        check(Case(theirs, ours, prompt_of([1]), settings), found)
        best[rule] = found[0].ids

    assert best[True] == best[False] == (2, 0)
    assert best["never"] == (3, *[4] * 11)


@torch.inference_mode()
def test_early_stopping_misses_better_texts() -> None:
    """Two texts have ended, (0) and (2, 0), when the most likely text is (3, 4) and its end is certain."""
    rare = 1e-6
    table = torch.full((5, 5), rare)
    for token, following in {1: {0: 0.3, 2: 0.25, 3: 0.45}, 2: {0: 0.9, 2: 0.1}, 3: {0: 0.1, 4: 0.9}}.items():
        for after, probability in following.items():
            table[token, after] = probability
    table[4, 0] = table[0, 0] = 1.0
    theirs, ours = models_of_table(table / table.sum(-1, keepdim=True))
    prompt = prompt_of([1])
    texts = {}
    for rule in (True, False):
        settings = PLAIN | BEAMS | {"num_beams": 2, "num_return": 2, "early_stopping": rule}
        found = Beam(**settings)(CachedSession(ours), prompt)
        check(Case(theirs, ours, prompt, settings), found)
        texts[rule] = {each.ids for each in found}

    assert texts[True] == {(0,), (2, 0)}
    assert (3, 4, 0) in texts[False]


@torch.inference_mode()
def test_a_wide_search_finds_the_most_likely_text() -> None:
    _, ours = models(0)
    prompt = prompt_of([3, 5], end_id=None)
    settings = PLAIN | BEAMS | {"max_new_tokens": 2, "num_beams": VOCAB_SIZE, "length_penalty": 0.0}
    best, *_ = Beam(**settings)(CachedSession(ours), prompt)
    texts = torch.tensor([[3, 5, *pair] for pair in product(range(VOCAB_SIZE), repeat=2)])
    logs = ours(texts, torch.ones_like(texts)).log_softmax(-1)
    scores = logs[:, 1].gather(1, texts[:, 2:3])[:, 0] + logs[:, 2].gather(1, texts[:, 3:])[:, 0]

    assert best.ids == tuple(texts[scores.argmax(), 2:].tolist())
    assert best.score == pytest.approx(float(scores.max()), abs=1e-5)


@torch.inference_mode()
def test_texts_are_ordered_by_score_and_differ_from_greedy() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, 5])
    found = Beam(**PLAIN | BEAMS | {"num_beams": 5, "num_return": 5})(CachedSession(ours), prompt)
    scores = [each.score for each in found if each.score is not None]

    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)
    assert len({each.ids for each in found}) == 5
    assert found[0].ids != Greedy(**PLAIN)(CachedSession(ours), prompt)[0].ids


@torch.inference_mode()
def test_impossible_candidates_are_not_returned() -> None:
    table = torch.full((4, 4), 1e-30)
    table[:, 2], table[:, 3] = 0.75, 0.25
    _, ours = models_of_table(table / table.sum(-1, keepdim=True))
    settings = PLAIN | BEAMS | {"max_new_tokens": 1, "num_beams": 4, "num_return": 4, "no_repeat_ngram": 1}
    found = Beam(**settings)(CachedSession(ours), prompt_of([1, 3, 0]))

    assert [each.ids for each in found] == [(2,)]


@torch.inference_mode()
def test_stop_strings_end_beams() -> None:
    _, ours = models(1)
    prompt = prompt_of([3, 5], end_id=None)
    settings = PLAIN | BEAMS | {"length_penalty": 0.0, "num_return": 3}  # 0 favors short texts
    whole, *_ = Beam(**settings)(CachedSession(ours), prompt)
    stop = f"{whole.ids[0]} {whole.ids[1]}"
    found = Beam(**settings | {"stop": [stop]})(CachedSession(ours), prompt)

    assert {each.ended for each in found} <= {"stop", "length"}
    assert any(each.ended == "stop" for each in found)
    for each in found:
        assert (stop in " ".join(map(str, each.ids))) == (each.ended == "stop")
