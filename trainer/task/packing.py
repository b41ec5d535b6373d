"""Token rows to a micro-batch: packed without padding, or padded."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from trainer.protocols import Batching

Ids = np.ndarray


def text_inputs(samples: Sequence[Ids], *, pad_id: int, max_length: int, batching: Batching) -> dict[str, Tensor]:
    """The model's inputs for B samples of token ids.

    `packed` fills rows with whole samples (see `pack`); `fixed` pads to `max_length`, `padded` and `bucketed`
    to the longest sample.
    """
    if batching == "packed":
        return packed_inputs(samples, pad_id=pad_id)
    width = max_length if batching == "fixed" else max(len(sample) for sample in samples)
    return padded_inputs(samples, pad_id=pad_id, width=width)


def padded_inputs(samples: Sequence[Ids], *, pad_id: int, width: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both int64 (B, width), one sample a row."""
    input_ids = np.full((len(samples), width), pad_id, dtype=np.int64)
    attention_mask = np.zeros((len(samples), width), dtype=np.int64)
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = sample
        attention_mask[row, : len(sample)] = 1
    return {"input_ids": torch.from_numpy(input_ids), "attention_mask": torch.from_numpy(attention_mask)}


def packed_inputs(samples: Sequence[Ids], *, pad_id: int) -> dict[str, Tensor]:
    """Several samples a row, all int64: `input_ids`, `position_ids` (restarting at each sample) and
    `sequence_ids` (1 for the first sample of a row, 2 for the second, 0 for padding), each (R, L) with L the
    longest sample; `token_index` (B, T): where each sample's tokens lie in the flattened rows, -1 past its end.

    Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination".
    """
    lengths = [len(sample) for sample in samples]
    width = max(lengths)
    rows = pack(lengths, width)
    input_ids = np.full((len(rows), width), pad_id, dtype=np.int64)
    position_ids = np.zeros_like(input_ids)
    sequence_ids = np.zeros_like(input_ids)
    token_index = np.full((len(samples), width), -1, dtype=np.int64)
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members, start=1):
            length = lengths[member]
            here = slice(start, start + length)
            input_ids[row, here] = samples[member]
            position_ids[row, here] = np.arange(length)
            sequence_ids[row, here] = number
            token_index[member, :length] = row * width + start + np.arange(length)
            start += length
    return {
        "input_ids": torch.from_numpy(input_ids),
        "position_ids": torch.from_numpy(position_ids),
        "sequence_ids": torch.from_numpy(sequence_ids),
        "token_index": torch.from_numpy(token_index),
    }


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """First-fit decreasing: samples into rows of at most `capacity` tokens.

    Args:
        lengths: Tokens of each sample, none above `capacity`.
        capacity: Tokens a row holds.

    Returns:
        The samples' positions, row by row. It never needs more than 11/9 of the fewest rows possible, plus one
        (Johnson 1973, "Near-optimal bin packing algorithms").
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for sample in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        length = lengths[sample]
        row = next((index for index, free in enumerate(room) if free >= length), None)
        if row is None:
            rows.append([sample])
            room.append(capacity - length)
        else:
            rows[row].append(sample)
            room[row] -= length
    return rows
