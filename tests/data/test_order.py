import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.order import Order


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
