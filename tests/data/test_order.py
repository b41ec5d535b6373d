import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import GroupSampler, Order


def test_order_is_the_same_on_every_machine() -> None:
    assert Order(8, seed=0, epoch=0)[:].tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert Order(8, seed=0, epoch=1)[:].tolist() != Order(8, seed=0, epoch=0)[:].tolist()
    assert Order(8, seed=1, epoch=0)[:].tolist() != Order(8, seed=0, epoch=0)[:].tolist()


def test_order_is_uniform() -> None:
    firsts = np.bincount([Order(5, seed=7, epoch=epoch)[:1][0] for epoch in range(2000)], minlength=5)

    # Binomial(2000, 1/5): six standard deviations are 107.
    assert abs(firsts - 400).max() < 107


@given(st.integers(1, 300), st.integers(1, 50), st.integers(0, 300), st.integers(0, 80))
def test_blocks_do_not_change_the_order(size: int, block_size: int, start: int, count: int) -> None:
    whole, blocks = Order(size, 3, 1)[:], Order(size, 3, 1, block_size)

    assert sorted(whole) == list(range(size))
    assert blocks[start : start + count].tolist() == whole[start : start + count].tolist()
    assert blocks[:].tolist() == whole.tolist()


def test_order_of_several_chunks_sorts_the_words_of_one_stream() -> None:
    size = 600_000
    key = np.random.SeedSequence((5, 2)).generate_state(2, np.uint64)
    expected = np.argsort(np.random.Philox(key=key).random_raw(size), kind="stable")

    assert np.array_equal(Order(size, 5, 2)[:], expected)
    assert np.array_equal(Order(size, 5, 2, block_size=100_000)[399_000:], expected[399_000:])


GROUPS = st.lists(st.tuples(st.integers(0, 12), st.floats(0, 1e6)), min_size=1, max_size=8).filter(
    lambda groups: any(size and weight for size, weight in groups)
)
"""The number of samples and the weight of each group."""


def sampler(groups: list[tuple[int, float]], seed: int = 0) -> tuple[GroupSampler, np.ndarray]:
    """Return groups, and the exact number of draws of each one."""
    sizes, weights = (np.array(values) for values in zip(*groups, strict=True))
    weights = np.where(sizes > 0, weights, 0.0)
    codes = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    return GroupSampler(codes, weights, seed), sizes.sum() * weights / weights.sum()


@given(GROUPS, st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_each_group_gets_its_share_of_an_epoch_rounded_up_or_down(
    groups: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    drawn, expected = sampler(groups, seed)
    counts = drawn.counts(epoch)

    assert counts.sum() == drawn.sizes.sum()
    assert np.abs(counts - expected).max() < 1 + 1e-6
    assert not counts[expected == 0].any()


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 2**32), st.integers(0, 10**6))
def test_balanced_groups_differ_by_at_most_one_draw(sizes: list[int], seed: int, epoch: int) -> None:
    counts = sampler([(size, 1.0) for size in sizes], seed)[0].counts(epoch)
    assert counts.max() - counts.min() <= 1


@given(GROUPS, st.integers(0, 2**32), st.integers(0, 70))
def test_the_draws_of_earlier_epochs_are_counted_without_them(
    groups: list[tuple[int, float]], seed: int, epoch: int
) -> None:
    drawn = sampler(groups, seed)[0]
    summed = sum((drawn.counts(each) for each in range(epoch)), np.zeros(len(groups), np.int64))
    assert drawn.counts_before(epoch).tolist() == summed.tolist()


def test_the_rounding_is_spread_evenly_over_many_epochs() -> None:
    drawn, expected = sampler([(1, 1.0)] * 5 + [(0, 0.0)] + [(2, 0.7)] * 3)
    assert np.abs(drawn.counts_before(1000) - 1000 * expected).max() < 10
    assert drawn.counts_before(2**31).sum() == 11 * 2**31


@given(GROUPS, st.integers(0, 2**32), st.integers(1, 5))
def test_no_sample_repeats_before_all_of_its_group_were_drawn(
    groups: list[tuple[int, float]], seed: int, num_epochs: int
) -> None:
    drawn = sampler(groups, seed)[0]
    codes = np.empty(drawn.sizes.sum(), np.int64)
    by_group: dict[int, list[int]] = {group: [] for group in range(len(groups))}
    for group, start in enumerate(np.cumsum(drawn.sizes) - drawn.sizes):
        codes[drawn._members[start : start + drawn.sizes[group]]] = group
    for epoch in range(num_epochs):
        samples, repeats = drawn.draw(epoch)
        assert len({*zip(samples.tolist(), repeats.tolist(), strict=True)}) == len(samples)
        assert np.bincount(codes[samples], minlength=len(groups)).tolist() == drawn.counts(epoch).tolist()
        for sample in samples.tolist():
            by_group[int(codes[sample])].append(sample)
    for group, samples_of_group in by_group.items():
        size = int(drawn.sizes[group])
        for start in range(0, len(samples_of_group), size or 1):
            cycle = samples_of_group[start : start + size]
            assert len({*cycle}) == len(cycle)


def test_the_cycles_of_a_group_have_new_orders_that_are_found_without_the_cycles_before() -> None:
    drawn = sampler([(7, 1.0), (5, 3.0)])[0]
    cycles = drawn._cycles(1, 0, 40)
    assert np.array_equal(drawn._cycles(1, 33, 7), cycles[33:])
    assert len({tuple(cycle) for cycle in cycles.tolist()}) > 30  # of 120 orders
    # Each place of a cycle has each sample equally often: Binomial(4000, 1/5), six standard deviations are 152.
    firsts = np.bincount(drawn._cycles(1, 0, 4000)[:, 0], minlength=5)
    assert np.abs(firsts - 800).max() < 152


def test_the_draws_are_the_same_on_every_machine() -> None:
    samples, repeats = GroupSampler(np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.ones(3), seed=0).draw(3)
    assert (samples.tolist(), repeats.tolist()) == ([4, 0, 0, 5, 6, 5, 7, 7], [0, 0, 1, 0, 1, 1, 0, 1])
