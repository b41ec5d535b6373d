from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from trainer.data.batches import Batches, BatchPlan, EvaluationBatches, LoaderOptions, TrainLoader, arrow_columns
from trainer.protocols import Batch, Batching
from trainer.sample_rng import SampleRng

ROWS = Dataset.from_dict({"x": list(range(23)), "ragged": [list(range(n % 4)) for n in range(23)]})


class Noisy:
    """SampleRng a number for each sample, as an augmentation would."""

    def collate(self, rows: Any, draws: SampleRng, batching: Batching) -> Batch:
        noise = [draws.generator(position).random() for position in range(len(rows["x"]))]
        inputs = {"x": torch.tensor(rows["x"]), "noise": torch.tensor(noise, dtype=torch.float64)}
        return Batch(inputs, torch.tensor(rows["x"]), len(noise), tuple(draws.ids))


def options(**changes: Any) -> LoaderOptions:
    defaults = {"batching": "padded", "workers": 0, "prefetch": 2, "pin_memory": False, "persistent_workers": True}
    return LoaderOptions(**(defaults | changes))


def batches() -> Batches:
    return Batches(ROWS, Noisy(), "padded", seed=5)  # type: ignore[arg-type]  only `collate` is called


def groups(start: int, stop: int, accumulate: int = 1, **changes: Any) -> Iterator[list[Batch]]:
    return TrainLoader(batches(), BatchPlan(23, 6, seed=5), accumulate, options(**changes)).steps(start, stop)


def flat(found: Iterator[list[Batch]]) -> list[tuple[tuple[int, ...], list[float]]]:
    return [
        (
            tuple(sample for batch in group for sample in batch.ids),
            torch.cat([b.inputs["noise"] for b in group]).tolist(),
        )
        for group in found
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bits(workers: int) -> None:
    assert flat(groups(0, 10, workers=workers)) == flat(groups(0, 10))


def test_a_later_start_gives_what_would_have_come_then() -> None:
    assert flat(groups(7, 12)) == flat(groups(0, 12))[7:]


def test_accumulation_cuts_the_same_samples_into_micro_batches() -> None:
    whole, cut = list(groups(0, 9)), list(groups(0, 9, accumulate=4))

    assert flat(iter(cut)) == flat(iter(whole))
    assert [len(group) for group in cut] == [4] * 9
    assert [len(batch.ids) for batch in cut[3]] == [2, 1, 1, 1]


def test_a_sample_draws_anew_in_each_epoch() -> None:
    drawn = flat(groups(0, 8))
    first, second = (
        {sample: noise for ids, noises in epoch for sample, noise in zip(ids, noises, strict=True)}
        for epoch in (drawn[:4], drawn[4:])
    )

    assert first.keys() == second.keys()
    assert all(first[sample] != second[sample] for sample in first)


def test_loading_draws_nothing_from_the_global_generators() -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    list(groups(0, 5, workers=1))
    with closing(EvaluationBatches(batches(), 4, options())) as loader:
        list(loader)

    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_goes_through_all_rows_in_order_every_time(workers: int) -> None:
    with closing(EvaluationBatches(batches(), 10, options(workers=workers))) as loader:
        for _ in range(2):
            assert [batch.ids for batch in loader] == [tuple(range(10)), tuple(range(10, 20)), (20, 21, 22)]


def test_columns_of_arrow_tables() -> None:
    found = arrow_columns(ROWS.with_format("arrow")[[3, 2, 0]])

    assert found["x"].tolist() == [3, 2, 0]
    assert [list(row) for row in found["ragged"]] == [[0, 1, 2], [0, 1], []]
