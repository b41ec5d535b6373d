import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.batches import BatchIndices, BatchPlan, permutation, split_batch

sizes = st.integers(1, 200)


@given(sizes, st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_an_epoch_goes_once_over_all_samples(num_samples: int, batch_size: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(num_samples, batch_size, seed)
    first = epoch * plan.steps_per_epoch
    batches = [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]

    assert sorted(sample for batch in batches for sample in batch.ids) == list(range(num_samples))
    assert {batch.epoch for batch in batches} == {epoch}
    assert all(len(batch.ids) == batch_size for batch in batches[:-1])


@given(sizes, st.integers(1, 40), st.integers(0, 100))
def test_a_batch_is_found_without_the_ones_before_it(num_samples: int, batch_size: int, step: int) -> None:
    plan = BatchPlan(num_samples, batch_size, seed=3)
    for earlier in range(min(step, 5)):
        plan.batch(earlier)

    assert plan.batch(step) == BatchPlan(num_samples, batch_size, seed=3).batch(step)


@given(st.integers(1, 64), st.integers(1, 12))
def test_micro_batches_together_are_the_batch(size: int, parts: int) -> None:
    batch = BatchIndices(2, tuple(range(100, 100 + size)))
    pieces = split_batch(batch, parts)

    assert tuple(sample for piece in pieces for sample in piece.ids) == batch.ids
    assert len(pieces) == min(parts, size)
    assert max(len(piece.ids) for piece in pieces) - min(len(piece.ids) for piece in pieces) <= 1
    assert all(piece.epoch == 2 for piece in pieces)


def test_the_order_is_the_same_on_every_machine_and_version() -> None:
    assert permutation(8, seed=0, epoch=0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(8, seed=0, epoch=1).tolist() != permutation(8, seed=0, epoch=0).tolist()
    assert permutation(8, seed=1, epoch=0).tolist() != permutation(8, seed=0, epoch=0).tolist()


def test_every_position_is_equally_likely() -> None:
    firsts = np.bincount([permutation(5, seed=7, epoch=epoch)[0] for epoch in range(2000)], minlength=5)

    # Binomial(2000, 1/5): six standard deviations are 107.
    assert abs(firsts - 400).max() < 107


def test_bucketed_batches_hold_samples_of_similar_length() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=103)
    plan = BatchPlan(103, 10, seed=0, lengths=lengths)
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]

    assert sorted(sample for batch in batches for sample in batch.ids) == list(range(103))
    assert [len(batch.ids) for batch in batches] == [10] * 10 + [3]
    spreads = [np.ptp(lengths[list(batch.ids)]) for batch in batches]
    assert max(spreads) < 30
    assert [batch.ids for batch in batches] != [plan.batch(11 + step).ids for step in range(11)]
