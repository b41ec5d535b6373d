"""Layouts of a micro-batch of token rows: packed without padding, or padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from trainer.protocols import Batch, Batching

Ids = np.ndarray
"""Integers of one sample, (T,)."""

IGNORE_INDEX = -100
"""The target of a token that no loss or metric counts."""

_TOKEN_ROWS = frozenset({"input_ids", "position_ids", "sequence_ids", "token_type_ids"})
"""Inputs with a value for every position (R, L)."""


@dataclass(frozen=True)
class Layout:
    """Positions of the tokens of B samples in R rows of L columns.

    Attributes:
        shape: R and L.
        starts: The position of each sample's first token in the flattened rows: int64 (B,).
        lengths: The number of tokens of each sample: int64 (B,).
        numbers: The number of each sample within its row, from 1: int64 (B,).
        packed: True if a row may contain several samples.
        uniform: True if packed rows contain one sample each and no padding, because all samples have one length.
    """

    shape: tuple[int, int]
    starts: Ids
    lengths: Ids
    numbers: Ids
    packed: bool
    uniform: bool = False

    @cached_property
    def offsets(self) -> Ids:
        """The offset of each token in its sample, for all tokens of all samples: int64 (N,)."""
        offsets: Ids = np.arange(self.lengths.sum()) - np.repeat(self.lengths.cumsum() - self.lengths, self.lengths)
        return offsets

    @cached_property
    def places(self) -> Ids:
        """The position of each token in the flattened rows, for all tokens of all samples: int64 (N,)."""
        places: Ids = np.repeat(self.starts, self.lengths) + self.offsets
        return places

    def spread(self, values: Ids | int, fill: int) -> Tensor:
        """Return one value per token, (N,) or the same for all, as int64 (R, L), with `fill` at other positions."""
        rows = np.full(self.shape[0] * self.shape[1], fill, dtype=np.int64)
        rows[self.places] = values
        return torch.from_numpy(rows.reshape(self.shape))

    def fill(self, samples: Sequence[Ids], fill: int) -> Tensor:
        """Return one value per token of each sample as int64 (R, L), with `fill` at positions without a token."""
        return self.spread(np.concatenate(samples), fill)

    def index(self, tokens: Sequence[Ids] | None = None) -> Tensor:
        """Return the flattened positions of each sample's tokens: int64 (B, W), -1 after the last one.

        Args:
            tokens: The tokens to include, as offsets within each sample; None includes all tokens.
        """
        if tokens is None:
            columns = np.arange(self.lengths.max())
            return torch.from_numpy(np.where(columns < self.lengths[:, None], self.starts[:, None] + columns, -1))
        index = np.full((len(tokens), max(map(len, tokens))), -1, dtype=np.int64)
        for row, (start, offsets) in enumerate(zip(self.starts, tokens, strict=True)):
            index[row, : len(offsets)] = start + offsets
        return torch.from_numpy(index)

    def request_outputs(self, tokens: Sequence[Ids]) -> dict[str, Tensor]:
        """Return the model input that limits outputs to these tokens of each sample; padded layouts output all tokens.

        Args:
            tokens: Offsets within each sample.
        """
        return {"output_index": self.index(tokens)} if self.packed else {}

    def request_targets(self, tokens: Sequence[Ids], classes: Sequence[Ids]) -> tuple[dict[str, Tensor], Tensor]:
        """Return the model input that limits outputs to these tokens of each sample, and their targets.

        Packed: `output_index` and targets (B, W). Padded: no input, and targets (R, L) for the outputs of all tokens.
        Targets are int64, `IGNORE_INDEX` at other positions.

        Args:
            tokens: Offsets within each sample.
            classes: The target of each of these tokens.
        """
        index = self.index(tokens)
        valid = index >= 0
        values = torch.from_numpy(np.concatenate(classes).astype(np.int64))
        if self.packed:
            return {"output_index": index}, torch.full_like(index, IGNORE_INDEX).masked_scatter_(valid, values)
        target = torch.full(self.shape, IGNORE_INDEX)
        target.view(-1)[index[valid]] = values
        return {}, target


def lay_out(lengths: Sequence[int], *, max_length: int, batching: Batching) -> Layout:
    """Return the layout of samples of these lengths.

    `packed` fills rows as long as the longest sample with whole samples (see `pack`), `full_rows` fills rows of
    `max_length`; `fixed` pads to `max_length`; `padded` and `bucketed` pad to the longest sample.
    """
    if batching == "packed":
        width = max(lengths)
        if min(lengths) == width:
            return replace(_padded(lengths, width), packed=True, uniform=True)
        return _packed(lengths, width)
    if batching == "full_rows":
        return _packed(lengths, max_length)
    return _padded(lengths, max_length if batching == "fixed" else max(lengths))


def token_inputs(samples: Sequence[Ids], layout: Layout, *, pad_id: int) -> dict[str, Tensor]:
    """Return the ids in their layout and the inputs that separate the samples, all int64, (R, L) unless stated.

    Padded: `input_ids` and `attention_mask`. Packed: `input_ids`, `position_ids` (restarting at each sample),
    `sequence_ids` (1 for the first sample of a row, 2 for the second, 0 for padding), and `token_index` (B, T), the
    positions of each sample's tokens in the flattened rows, -1 after the last one. Packed samples of one length are a
    padded batch too: their `attention_mask` takes the place of `position_ids`, and spares the model larger masks.

    Source: Krell et al. 2021, "Efficient sequence packing without cross-contamination".
    """
    inputs = {"input_ids": layout.fill(samples, pad_id)}
    if not layout.packed:
        return {**inputs, "attention_mask": layout.spread(1, 0)}
    if layout.uniform:
        ones = torch.ones(layout.shape, dtype=torch.int64)
        return {**inputs, "attention_mask": ones, "sequence_ids": ones, "token_index": layout.index()}
    inputs["position_ids"] = layout.spread(layout.offsets, 0)
    numbers = np.repeat(layout.numbers, layout.lengths)
    return {**inputs, "sequence_ids": layout.spread(numbers, 0), "token_index": layout.index()}


def padded_inputs(samples: Sequence[Ids], *, pad_id: int, width: int) -> dict[str, Tensor]:
    """Return `input_ids` and `attention_mask`, both int64 (B, width), one sample per row."""
    return token_inputs(samples, _padded([len(sample) for sample in samples], width), pad_id=pad_id)


def select_token_outputs(output: Tensor, tokens: Sequence[Ids], batching: Batching) -> list[Tensor]:
    """Return the outputs (W, C) of these tokens of each sample.

    Args:
        output: Padded: the outputs of all tokens, (B, T, C). Packed: the outputs requested for `tokens`, (B, W, C).
        tokens: Offsets within each sample.
        batching: The layout of the model's inputs.
    """
    if batching == "packed":
        return [outputs[: len(offsets)] for outputs, offsets in zip(output, tokens, strict=True)]
    return [outputs[offsets] for outputs, offsets in zip(output, tokens, strict=True)]


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Assign samples to rows of at most `capacity` tokens by first-fit decreasing.

    Args:
        lengths: Tokens of each sample, none above `capacity`.
        capacity: Tokens that a row holds.

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


def divide_into_rows(lengths: Sequence[int], width: int, num_rows: int) -> list[list[int]]:
    """Divide samples into micro-batches that `pack` puts into at most `num_rows` rows of `width` tokens each.

    Returns:
        The samples' positions, micro-batch by micro-batch, each in ascending order: `pack` then puts the samples of a
        micro-batch into the same rows again, because each row takes the samples for which no earlier row has room.
    """
    rows = pack(lengths, width)
    starts = range(0, len(rows), num_rows)
    return [sorted(chain.from_iterable(rows[start : start + num_rows])) for start in starts]


def add_empty_rows(batch: Batch, num_rows: int, output_level: Literal["token"] | None) -> Batch:
    """Return a packed batch with rows without samples at the end, so that it has `num_rows` rows.

    Args:
        batch: The batch.
        num_rows: The number of rows, R.
        output_level: See `TaskInfo`.

    Raises:
        ValueError: The batch has more rows.
    """
    missing = num_rows - batch.inputs["input_ids"].shape[0]
    if missing < 0:
        raise ValueError(f"a batch has {num_rows - missing} rows instead of at most {num_rows}")

    def extend(values: Tensor, fill: int) -> Tensor:
        return torch.cat([values, values.new_full((missing, *values.shape[1:]), fill)])

    inputs = {name: extend(values, 0) if name in _TOKEN_ROWS else values for name, values in batch.inputs.items()}
    if missing and "attention_mask" in inputs:  # of samples of one length: the rows are no longer the samples
        positions = torch.arange(inputs.pop("attention_mask").shape[1])
        inputs["position_ids"] = positions.expand_as(inputs["input_ids"])
    if batch.target is None or output_level is None or "output_index" in inputs:
        return replace(batch, inputs=inputs)
    return replace(batch, inputs=inputs, target=extend(batch.target, IGNORE_INDEX))


def _padded(lengths: Sequence[int], width: int) -> Layout:
    num_rows = len(lengths)
    starts, ones = width * np.arange(num_rows), np.ones(num_rows, dtype=np.int64)
    return Layout((num_rows, width), starts, np.asarray(lengths, dtype=np.int64), ones, packed=False)


def _packed(lengths: Sequence[int], width: int) -> Layout:
    rows = pack(lengths, width)
    starts, numbers = np.zeros((2, len(lengths)), dtype=np.int64)
    for row, members in enumerate(rows):
        start = row * width
        for number, member in enumerate(members, start=1):
            starts[member], numbers[member] = start, number
            start += lengths[member]
    return Layout((len(rows), width), starts, np.asarray(lengths, dtype=np.int64), numbers, packed=True)
