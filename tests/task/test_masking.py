import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.task.masked_lm import choose_tokens, mask_tokens


def chosen(words: list[int], share: float, whole_words: bool, seed: int) -> list[int]:
    places: list[int] = choose_tokens(np.array(words), share, whole_words, np.random.default_rng(seed)).tolist()
    return places


@given(
    st.lists(st.integers(1, 4), max_size=40), st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.booleans(), st.integers(0, 99)
)
def test_what_is_chosen(sizes: list[int], share: float, whole_words: bool, seed: int) -> None:
    words = [-1, *(number for number, size in enumerate(sizes) for _ in range(size)), -1]
    found = chosen(words, share, whole_words, seed)
    wanted, largest = share * sum(sizes), max(sizes, default=1) if whole_words else 1

    assert found == sorted(set(found))
    assert all(words[place] >= 0 for place in found)
    assert bool(found) == bool(sizes)
    assert len(found) < wanted + largest or len(found) == largest
    assert len(found) > wanted - largest
    if whole_words:
        numbers = [words[place] for place in found]
        assert all(numbers.count(number) == sizes[number] for number in numbers)
    elif sizes:
        assert len(found) in (max(1, int(wanted)), max(1, int(wanted) + 1))


@pytest.mark.parametrize(("sizes", "whole_words"), [([1] * 45, False), ([3, 1, 2, 1, 1, 4, 2, 1] * 6, True)])
def test_the_share_is_exact_on_average(sizes: list[int], whole_words: bool) -> None:
    words = [number for number, size in enumerate(sizes) for _ in range(size)]
    trials = 4000
    counts = np.zeros(len(words))
    for seed in range(trials):
        counts[chosen(words, 0.15, whole_words, seed)] += 1

    # The total's spread is below one unit a sample, each token's is that of a coin.
    assert abs(counts.sum() / trials - 0.15 * len(words)) < 4 * max(sizes) / np.sqrt(trials)
    assert np.abs(counts / trials - 0.15).max() < (5 if whole_words else 4.5) * np.sqrt(0.15 * 0.85 / trials)


def test_what_is_not_chosen_stays_as_it_was() -> None:
    ids, places = np.arange(10, 40, dtype=np.int32), np.arange(0, 30, 3)
    for seed in range(50):
        seen = mask_tokens(ids, places, 4, np.array([7, 8]), np.random.default_rng(seed))
        changed = np.flatnonzero(seen != ids)
        assert set(changed) <= set(places)
        assert set(seen[changed]) <= {4, 7, 8}
        assert seen.dtype == ids.dtype
    assert ids.tolist() == list(range(10, 40))
