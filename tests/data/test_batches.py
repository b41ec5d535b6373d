import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from tests.support.launched import is_running
from tests.support.processes import PATIENCE
from trainer.data.batch_plan import BatchIndices, BatchPlan, split_batch
from trainer.data.batches import Batches, EvaluationBatches, LoaderOptions, TrainLoader
from trainer.data.order import GroupSampler
from trainer.protocols import Batch, Batching
from trainer.sample_rng import SampleRng

ROWS = Dataset.from_dict({"x": list(range(23)), "ragged": [list(range(n % 4)) for n in range(23)]})


@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 2**31), st.integers(0, 5))
def test_epoch_visits_every_sample_once(num_samples: int, batch_size: int, seed: int, epoch: int) -> None:
    plan = BatchPlan(num_samples, batch_size, seed)
    first = epoch * plan.steps_per_epoch
    batches = [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]

    assert sorted(sample for batch in batches for sample in batch.ids) == list(range(num_samples))
    assert {batch.epoch for batch in batches} == {epoch}
    assert all(len(batch.ids) == batch_size for batch in batches[:-1])
    assert BatchPlan(num_samples, batch_size, seed).batch(first) == batches[0]


@given(st.integers(1, 64), st.integers(1, 12))
def test_micro_batches_make_up_the_batch(size: int, parts: int) -> None:
    batch = BatchIndices(2, tuple(range(100, 100 + size)))
    pieces = split_batch(batch, parts)

    assert tuple(sample for piece in pieces for sample in piece.ids) == batch.ids
    assert len(pieces) == min(parts, size)
    assert max(len(piece.ids) for piece in pieces) - min(len(piece.ids) for piece in pieces) <= 1
    assert all(piece.epoch == 2 for piece in pieces)


def test_bucketed_batches_have_similar_lengths_and_a_new_order_each_epoch() -> None:
    lengths = np.random.default_rng(0).integers(1, 100, size=103)
    plan = BatchPlan(103, 10, seed=0, lengths=lengths)
    batches = [plan.batch(step) for step in range(plan.steps_per_epoch)]

    assert sorted(sample for batch in batches for sample in batch.ids) == list(range(103))
    assert [len(batch.ids) for batch in batches] == [10] * 10 + [3]
    assert max(np.ptp(lengths[list(batch.ids)]) for batch in batches) < 30
    assert [batch.ids for batch in batches] != [plan.batch(11 + step).ids for step in range(11)]


class NoisyTask:
    """Draws a number for each sample, as an augmentation would."""

    def collate(self, rows: Any, rng: SampleRng, batching: Batching) -> Batch:
        noise = [rng.generator(position).random() for position in range(len(rows["x"]))]
        inputs = {"x": torch.tensor(rows["x"]), "noise": torch.tensor(noise, dtype=torch.float64)}
        return Batch(inputs, torch.tensor(rows["x"]), len(noise), tuple(rng.ids))


def options(**changes: Any) -> LoaderOptions:
    defaults = {"batching": "padded", "workers": 0, "prefetch": 2, "pin_memory": False, "persistent_workers": True}
    return LoaderOptions(**(defaults | changes))


def batches() -> Batches:
    return Batches(ROWS, NoisyTask(), "padded", seed=5)  # type: ignore[arg-type]  only `collate` is called


def steps(start: int, stop: int, accumulate: int = 1, **changes: Any) -> Iterator[list[Batch]]:
    return TrainLoader(batches(), BatchPlan(23, 6, seed=5), accumulate, options(**changes)).steps(start, stop)


def ids_and_noise(loaded: Iterator[list[Batch]]) -> list[tuple[tuple[int, ...], list[float]]]:
    return [
        (
            tuple(sample for batch in step for sample in batch.ids),
            torch.cat([batch.inputs["noise"] for batch in step]).tolist(),
        )
        for step in loaded
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_number_of_workers_does_not_change_batches(workers: int) -> None:
    assert ids_and_noise(steps(0, 10, workers=workers)) == ids_and_noise(steps(0, 10))


def test_later_start_continues_the_same_sequence() -> None:
    assert ids_and_noise(steps(7, 12)) == ids_and_noise(steps(0, 12))[7:]


def test_accumulation_splits_the_same_samples_into_micro_batches() -> None:
    whole, accumulated = list(steps(0, 9)), list(steps(0, 9, accumulate=4))

    assert ids_and_noise(iter(accumulated)) == ids_and_noise(iter(whole))
    assert [len(step) for step in accumulated] == [4] * 9
    assert [len(batch.ids) for batch in accumulated[3]] == [2, 1, 1, 1]


def test_sample_draws_new_numbers_in_each_epoch() -> None:
    drawn = ids_and_noise(steps(0, 8))
    first, second = (
        {sample: noise for ids, noises in epoch for sample, noise in zip(ids, noises, strict=True)}
        for epoch in (drawn[:4], drawn[4:])
    )

    assert first.keys() == second.keys()
    assert all(first[sample] != second[sample] for sample in first)


def test_loading_does_not_use_the_global_generators() -> None:
    state, legacy = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index, union-attr]
    list(steps(0, 5, workers=1))
    with closing(EvaluationBatches(batches(), 4, options())) as loader:
        list(loader)

    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], legacy)  # type: ignore[index]


@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_visits_all_rows_in_order_every_time(workers: int) -> None:
    with closing(EvaluationBatches(batches(), 10, options(workers=workers))) as loader:
        for _ in range(2):
            assert [batch.ids for batch in loader] == [tuple(range(10)), tuple(range(10, 20)), (20, 21, 22)]


def test_batches_that_have_read_rows_are_sent_to_a_process_without_their_rows() -> None:
    read = Dataset.from_dict({"x": list(range(100_000))})
    sent = Batches(read, NoisyTask(), "padded", seed=5)  # type: ignore[arg-type]
    unread = len(pickle.dumps(sent))
    sent[BatchIndices(0, (1, 2))]

    assert len(pickle.dumps(sent)) == unread


def drawn_plan(**changes: Any) -> BatchPlan:
    """Return a plan of 23 samples of which the last 3 are drawn as often as the others."""
    groups = np.array([0] * 20 + [1] * 3)
    return BatchPlan(23, 6, 5, sampler=GroupSampler(groups, np.ones(2), 5), **changes)


@pytest.mark.parametrize("lengths", [None, np.arange(23)])
def test_an_epoch_of_drawn_samples_has_as_many_steps_and_their_shares(lengths: np.ndarray | None) -> None:
    plan = drawn_plan(lengths=lengths)
    epochs = [[plan.batch(4 * epoch + step) for step in range(4)] for epoch in range(3)]

    for batches_of_epoch in epochs:
        assert [len(batch.ids) for batch in batches_of_epoch] == [6, 6, 6, 5]
        draws = [draw for batch in batches_of_epoch for draw in zip(batch.ids, batch.repeats, strict=True)]
        assert len({*draws}) == 23
        assert sum(sample >= 20 for sample, _ in draws) in (11, 12)
    # 12 or 11 of the first 20 samples in each epoch: two epochs have each of them.
    assert {sample for batch in (*epochs[0], *epochs[1]) for sample in batch.ids} == set(range(23))
    assert epochs[0][0] != epochs[1][0]
    assert drawn_plan(lengths=lengths).batch(9) == epochs[2][1]  # without the epochs before


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 11), st.booleans())
def test_pieces_of_drawn_samples_keep_their_repeats(accumulate: int, num_ranks: int, step: int, fixed: bool) -> None:
    plan = drawn_plan(divide=(lambda ids: [[*range(0, len(ids), 2)], [*range(1, len(ids), 2)]]) if fixed else None)
    pieces = [plan.micro_batches(step, accumulate, rank, num_ranks, fill=True) for rank in range(num_ranks)]
    own = [piece for each in pieces for piece in each if not piece.is_filler]

    whole = plan.batch(step)
    assert sorted(draw for piece in own for draw in zip(piece.ids, piece.repeats, strict=True)) == sorted(
        zip(whole.ids, whole.repeats, strict=True)
    )
    assert all(len(piece.ids) == len(piece.repeats) for each in pieces for piece in each)


def test_a_sample_draws_new_numbers_each_time_that_an_epoch_has_it() -> None:
    def noise(workers: int) -> list[tuple[tuple[int, ...], list[float]]]:
        loader = TrainLoader(batches(), drawn_plan(), 2, options(workers=workers))
        return ids_and_noise(loader.steps(0, 8))

    drawn = noise(0)
    pairs = [pair for ids, values in drawn[:4] for pair in zip(ids, values, strict=True)]
    assert len({sample for sample, _ in pairs}) < 23 == len({value for _, value in pairs})
    assert noise(2) == drawn


@pytest.mark.slow
def test_a_worker_of_a_server_of_processes_loads_batches_and_ends_with_the_main_process(tmp_path: Path) -> None:
    script = tmp_path / "forkserver_workers.py"
    script.write_text(
        "import multiprocessing, os, signal\n"
        "from tests.data.test_batches import steps\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('forkserver')\n"
        "    stream = steps(0, 8, workers=1)\n"
        "    next(stream)\n"
        "    print(*(worker.pid for worker in multiprocessing.active_children()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    # The output is complete when no process holds its pipe.
    done = subprocess.run([sys.executable, script], capture_output=True, timeout=PATIENCE, env=environment, check=False)
    assert len(done.stdout.split()) == 1, done.stderr.decode()
    assert not is_running(int(done.stdout))


def test_a_worker_has_ended_when_its_loss_is_reported() -> None:
    """Else torch reports the end a second time, while the first report is handled."""
    stream = steps(0, 8, workers=1, timeout=0.2)
    next(stream)
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid or 0, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="timed out"):
        list(stream)
    assert worker.exitcode == -signal.SIGKILL
