import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainer.sample_rng import SampleRng

numbers = st.integers(0, 2**31)


def first_number(seed: int, epoch: int, sample: int) -> float:
    return SampleRng(seed, epoch, (sample,)).generator(0).random()


@given(numbers, numbers, st.lists(numbers, min_size=2, max_size=5, unique=True))
def test_numbers_of_a_sample_do_not_depend_on_its_neighbors(seed: int, epoch: int, samples: list[int]) -> None:
    together = SampleRng(seed, epoch, tuple(samples))

    assert [together.generator(position).random() for position in range(len(samples))] == [
        first_number(seed, epoch, sample) for sample in samples
    ]


def test_numbers_depend_on_seed_epoch_and_sample() -> None:
    drawn = {first_number(0, 0, 0), first_number(1, 0, 0), first_number(0, 1, 0), first_number(0, 0, 1)}

    assert len(drawn) == 4


def test_streams_of_a_sample_are_independent() -> None:
    rng = SampleRng(3, 1, range(2000))
    plain, stream = (np.array([rng.generator(sample, *name).random() for sample in range(2000)]) for name in ((), (1,)))

    assert abs(np.corrcoef(plain, stream)[0, 1]) < 0.1
    assert rng.generator(5, 1).random() == rng.for_samples([9, 5]).generator(1, 1).random() == stream[5]
    assert rng.generator(5, 2).random() not in (plain[5], stream[5])
