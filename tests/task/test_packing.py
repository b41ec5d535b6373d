import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.token_batches import packed
from trainer.protocols import Batch
from trainer.task.packing import add_empty_rows, lay_out, pack, padded_inputs, token_inputs

lengths = st.lists(st.integers(1, 30), min_size=1, max_size=60)


@given(lengths, st.integers(0, 20))
def test_rows_contain_every_sample_once_and_never_overflow(lengths: list[int], spare: int) -> None:
    capacity = max(lengths) + spare
    rows = pack(lengths, capacity)

    assert sorted(sample for row in rows for sample in row) == list(range(len(lengths)))
    assert all(sum(lengths[sample] for sample in row) <= capacity for row in rows)


@given(lengths)
def test_number_of_rows_is_within_eleven_ninths_of_the_optimum(lengths: list[int]) -> None:
    capacity = max(lengths)
    fewest = -(-sum(lengths) // capacity)

    assert len(pack(lengths, capacity)) <= 11 / 9 * max(
        fewest, sum(2 * length > capacity for length in lengths)
    ) + 1 + (
        # The bound is against the optimum, which may exceed both lower bounds by what fragmentation costs.
        fewest / 9
    )


def test_first_fit_decreasing_equals_a_hand_computed_case() -> None:
    assert pack([4, 8, 1, 4, 2, 1], 10) == [[1, 4], [0, 3, 2, 5]]


def samples(lengths: list[int]) -> list[np.ndarray]:
    return [np.arange(length) + 100 * number for number, length in enumerate(lengths, start=1)]


@given(lengths)
def test_token_index_finds_every_token(lengths: list[int]) -> None:
    inputs = packed(samples(lengths))
    flat = inputs["input_ids"].flatten()
    every = torch.arange(max(lengths)).expand_as(inputs["input_ids"])  # of a batch that leaves it to the model
    positions = inputs.get("position_ids", every).flatten()

    for number, sample in enumerate(samples(lengths)):
        where = inputs["token_index"][number]
        assert (where[len(sample) :] == -1).all()
        assert flat[where[: len(sample)]].tolist() == sample.tolist()
        assert positions[where[: len(sample)]].tolist() == list(range(len(sample)))
        assert inputs["sequence_ids"].flatten()[where[: len(sample)]].unique().numel() == 1
    assert (inputs["sequence_ids"] > 0).sum() == sum(lengths)


def test_samples_of_one_length_are_a_padded_batch_too() -> None:
    inputs, rows = packed(samples([3, 3])), padded_inputs(samples([3, 3]), pad_id=0, width=3)

    assert inputs.keys() == {*rows, "sequence_ids", "token_index"}
    assert all(torch.equal(inputs[name], rows[name]) for name in rows)
    assert inputs["token_index"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert "attention_mask" not in packed(samples([3, 2]))
    # Rows of a fixed length keep one set of inputs, so that a compiled model sees one shape.
    assert "attention_mask" not in token_inputs(
        samples([3, 3]), lay_out([3, 3], max_length=3, batching="full_rows"), pad_id=0
    )
    longer = add_empty_rows(Batch(inputs, None, 2, (0, 1)), 3, None).inputs
    assert "attention_mask" not in longer
    assert longer["position_ids"].tolist() == [[0, 1, 2]] * 3


def test_neighbors_in_a_row_have_different_sequence_ids() -> None:
    inputs = packed(samples([3, 2, 5]))

    assert inputs["sequence_ids"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 2, 2]]
    assert inputs["input_ids"].tolist() == [[300, 301, 302, 303, 304], [100, 101, 102, 200, 201]]


def test_padded_rows_have_a_mask() -> None:
    inputs = padded_inputs(samples([2, 3]), pad_id=9, width=4)

    assert inputs["input_ids"].tolist() == [[100, 101, 9, 9], [200, 201, 202, 9]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 0, 0], [1, 1, 1, 0]]
    assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == torch.int64


def test_each_batching_has_its_layout() -> None:
    made = {
        batching: token_inputs(samples([2, 3]), lay_out([2, 3], max_length=7, batching=batching), pad_id=0)
        for batching in ("packed", "padded", "bucketed", "fixed")
    }

    assert made["padded"]["input_ids"].shape == made["bucketed"]["input_ids"].shape == (2, 3)
    assert made["fixed"]["input_ids"].shape == (2, 7)
    assert "attention_mask" not in made["packed"]


@given(lengths, st.data())
def test_index_finds_the_requested_tokens(lengths: list[int], data: st.DataObject) -> None:
    tokens = [np.array(data.draw(st.lists(st.integers(0, length - 1), max_size=4)), dtype=int) for length in lengths]
    tokens[0] = np.array([lengths[0] - 1])
    for batching in ("packed", "padded"):
        layout = lay_out(lengths, max_length=30, batching=batching)  # type: ignore[arg-type]
        flat = layout.fill(samples(lengths), -7).flatten()
        for sample, chosen, row in zip(samples(lengths), tokens, layout.index(tokens), strict=True):
            assert flat[row[row >= 0]].tolist() == sample[chosen].tolist()
            assert (row >= 0).tolist() == [True] * len(chosen) + [False] * (len(row) - len(chosen))
