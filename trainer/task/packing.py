"""Token rows to a micro-batch: packed without padding, or padded."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainer.protocols import Batching

Ids = np.ndarray


@dataclass(frozen=True)
class Layout:
    """Where the tokens of B samples lie in R rows of L columns.

    Attributes:
        shape: R and L.
        places: The positions of each sample's tokens in the flattened rows, B arrays of its length.
        numbers: The number of each sample within its row, from 1, (B,).
        packed: Whether a row may hold several samples.
    """

    shape: tuple[int, int]
    places: tuple[Ids, ...]
    numbers: Ids
    packed: bool

    def fill(self, samples: Sequence[Ids], fill: int) -> Tensor:
        """A value for each token of each sample as int64 (R, L), `fill` where there is none."""
        rows = np.full(self.shape[0] * self.shape[1], fill, dtype=np.int64)
        rows[np.concatenate(self.places)] = np.concatenate(samples)
        return torch.from_numpy(rows.reshape(self.shape))

    def index(self, wanted: Sequence[Ids] | None = None) -> Tensor:
        """The flattened positions of each sample's tokens, or of those `wanted`: int64 (B, W), -1 past its end."""
        chosen = self.places if wanted is None else [place[at] for place, at in zip(self.places, wanted, strict=True)]
        index = np.full((len(chosen), max(map(len, chosen))), -1, dtype=np.int64)
        for row, positions in enumerate(chosen):
            index[row, : len(positions)] = positions
        return torch.from_numpy(index)

    def asked(self, wanted: Sequence[Ids]) -> dict[str, Tensor]:
        """What asks a model for outputs at the `wanted` tokens of each sample alone; of padded ones it gives all."""
        return {"output_index": self.index(wanted)} if self.packed else {}

    def outputs_at(self, wanted: Sequence[Ids], values: Sequence[Ids]) -> tuple[dict[str, Tensor], Tensor]:
        """What asks a model for outputs at the `wanted` tokens of each sample alone, and their targets, the `values`.

        Packed: `output_index` and targets (B, W). Padded: nothing, and targets (R, L), so that the outputs at all
        tokens serve. Targets are int64, -100 where there is none.
        """
        index = self.index(wanted)
        some = index >= 0
        found = torch.from_numpy(np.concatenate(values).astype(np.int64))
        if self.packed:
            return {"output_index": index}, torch.full_like(index, -100).masked_scatter_(some, found)
        target = torch.full(self.shape, -100)
        target.view(-1)[index[some]] = found
        return {}, target


def lay_out(lengths: Sequence[int], *, max_length: int, batching: Batching) -> Layout:
    """Places for samples of these lengths.

    `packed` fills rows with whole samples (see `pack`); `fixed` pads to `max_length`, `padded` and `bucketed`
    to the longest sample.
    """
    if batching == "packed":
        return _packed(lengths)
    return _padded(lengths, max_length if batching == "fixed" else max(lengths))


def token_inputs(samples: Sequence[Ids], layout: Layout, *, pad_id: int) -> dict[str, Tensor]:
    """The ids of a layout and what says which of them belong together, all int64 (R, L).

    Padded: `input_ids` and `attention_mask`. Packed: `input_ids`, `position_ids` (restarting at each sample) and
    `sequence_ids` (1 for the first sample of a row, 2 for the second, 0 for padding).

    Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination".
    """
    inputs = {"input_ids": layout.fill(samples, pad_id)}
    if not layout.packed:
        return {**inputs, "attention_mask": layout.fill([np.ones_like(place) for place in layout.places], 0)}
    inputs["position_ids"] = layout.fill([np.arange(len(place)) for place in layout.places], 0)
    numbers = [np.full_like(place, number) for place, number in zip(layout.places, layout.numbers, strict=True)]
    return {**inputs, "sequence_ids": layout.fill(numbers, 0)}


def padded_inputs(samples: Sequence[Ids], *, pad_id: int, width: int) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask`, both int64 (B, width), one sample a row."""
    return token_inputs(samples, _padded([len(sample) for sample in samples], width), pad_id=pad_id)


def _padded(lengths: Sequence[int], width: int) -> Layout:
    places = tuple(row * width + np.arange(length) for row, length in enumerate(lengths))
    return Layout((len(lengths), width), places, np.ones(len(lengths), dtype=np.int64), packed=False)


def _packed(lengths: Sequence[int]) -> Layout:
    width = max(lengths)
    rows = pack(lengths, width)
    places: list[Ids] = [np.empty(0, dtype=np.int64)] * len(lengths)
    numbers = np.zeros(len(lengths), dtype=np.int64)
    for row, members in enumerate(rows):
        start = row * width
        for number, member in enumerate(members, start=1):
            places[member] = start + np.arange(lengths[member])
            numbers[member] = number
            start += lengths[member]
    return Layout((len(rows), width), tuple(places), numbers, packed=True)


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
