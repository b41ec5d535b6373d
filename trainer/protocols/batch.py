"""The data that the parts pass on: columns, rows, and batches of tensors; and the state of a part.

Shapes: B samples of a micro-batch, R rows and L columns of a packed or padded micro-batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Batching = Literal["packed", "full_rows", "padded", "bucketed", "fixed"]


Columns = Mapping[str, Sequence[Any]]
"""A slice of a table: one sequence per column, all of the same length."""


Row = Mapping[str, Any]
"""A row of a table: a value per column."""


class ImageCell(TypedDict):
    bytes: bytes | None
    path: str | None


"""An encoded image, in memory or in its file, in the layout of the datasets library."""


EncodedColumns = dict[str, list[Any]]
"""Encoded rows: one list per column, all of the same length."""


Prediction = dict[str, Any]
"""One JSON object per predicted row; `Task.predictions` lists the keys."""


StateDict = dict[str, Any]
"""State of a part, by name."""


BLOCK_OF = "block_of"
"""The column of encoded rows with the position of the raw row that each is a block of, if a raw row has several."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        inputs: The model's keyword arguments.
        target: The tensor that the loss compares the output with; None if the task has no target.
        num_samples: The number of samples, B.
        ids: The positions of the samples in their split, for messages.
        piece: The position of this micro-batch among all that form its step, on whichever device they run.
        scale: Mean and standard deviation of each channel if `pixel_values` are bytes (B, H, W, C), which `to` turns
            into standardized images (B, C, H, W): a quarter of the bytes is copied. None changes nothing.
    """

    inputs: dict[str, Tensor]
    target: Tensor | None
    num_samples: int
    ids: tuple[int, ...]
    piece: int = 0
    scale: tuple[Tensor, Tensor] | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens that are not padding; 0 if the samples are no texts. It waits for a batch on a GPU."""
        mask = self.inputs.get("sequence_ids", self.inputs.get("attention_mask"))
        return 0 if mask is None or not self.num_samples else int(mask.count_nonzero())

    def to(self, device: torch.device) -> Batch:
        """Return the batch on `device`; from pinned memory, the copy overlaps with the host's work."""
        tensors = [*self.inputs.values(), *([] if self.target is None else [self.target])]
        if self.scale is None and all(tensor.device == device for tensor in tensors):
            return self
        batch = self._apply(lambda tensor: tensor.to(device, non_blocking=True))
        if batch.scale is None:
            return batch
        mean, std = batch.scale
        # A tensor, because CUDA would multiply by the rounded inverse of a number.
        pixels = batch.inputs["pixel_values"].float() / mean.new_full(mean.shape, 255.0)
        images = ((pixels - mean) / std).permute(0, 3, 1, 2).contiguous()
        return replace(batch, inputs={**batch.inputs, "pixel_values": images}, scale=None)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (called by PyTorch's DataLoader)."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _apply(self, change: Callable[[Tensor], Tensor]) -> Batch:
        inputs = {name: change(tensor) for name, tensor in self.inputs.items()}
        target = None if self.target is None else change(self.target)
        scale = None if self.scale is None else (change(self.scale[0]), change(self.scale[1]))
        return replace(self, inputs=inputs, target=target, scale=scale)


@runtime_checkable
class Stateful(Protocol):
    """A part that changes during a run: its state is saved in checkpoints and restored on resume."""

    def state_dict(self) -> StateDict:
        """Return the state."""
        ...

    def load_state_dict(self, state: StateDict) -> None:
        """Restore what `state_dict` returned."""
        ...


Target = Literal["class", "shares", "multi_hot", "values", "views", "similarity", "spans"]
"""The type of a batch's target, with the output that it is compared with:

* `class`: int64 (...,), output (..., C);
* `shares`: the share of each class, at least 0 and 1 in total, float32 (B, C), output (B, C);
* `multi_hot`: 0 or 1 for each label, float32 (B, C), output (B, C);
* `values`: float32 (B, V), output (B, V);
* `views`: int64 (B, K), the sample's number: the output (B * K, D) has K vectors per sample, sample by sample, the
  anchor first, then the positive, then hard negatives;
* `similarity`: -1 or 1, float32 (B,), output (2 * B, D): the two vectors of each sample, sample by sample;
* `spans`: int64 (B, T, M), the spans of tokens in each sample as `trainer.spans` describes, output (B, T, D), a vector
  for each token, from which the loss makes scores (B, C, T, T).
"""


Inputs = Literal["tokens", "features", "images"]
"""The inputs that a model reads:

* `tokens`: `input_ids` and what belongs to them, padded (`attention_mask`) or packed (`position_ids`, `sequence_ids`,
  `token_index` with a row for each sample; if all samples have one length, so that each is a row, `attention_mask`
  instead of `position_ids`); `output_index` of any shape selects the flattened positions that need outputs;
* `features`: `features`, float32 (B, F);
* `images`: `pixel_values`, float32 (B, channels, H, W).
"""
