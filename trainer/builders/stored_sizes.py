"""The limit of the sizes in a stored config: no part of a checkpoint may need much more memory than its tensors do.

A stored config may come from anyone, and its numbers become tensors, modules and lists. So while a part is built for
a checkpoint, each tensor's size is computed on torch's `meta` device before its memory is allocated.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.tensors import StoredTensors
from trainer.config.stored import blaming_config
from trainer.errors import CheckpointError, TrainerError, format_error

_FACTOR = 4
"""Tied weights, and weights that are replaced while a model is built, are not stored."""
_EXTRA_VALUES = 2**27
"""Masks, tables of positions and the weights of layers that are left out are not stored either: 512 MiB of float32."""
_EXTRA_TENSORS = 10_000
_LARGEST_NUMBER = 2**24
"""Not every number is a size: bases of rotary positions and ids are larger than any width of a small model."""
_REMEDY = "Use another checkpoint"


@contextmanager
def bounded_build(group: str, snapshot: Snapshot | None, arguments: Mapping[str, object]) -> Iterator[None]:
    """Bound the memory of a part that the block builds for a checkpoint.

    Args:
        group: The part's group, for messages.
        snapshot: The checkpoint; None for a new part, which has no bounds.
        arguments: The documents with the part's arguments, by name.

    Raises:
        CheckpointError: A number is too large for the stored tensors, a tensor would be, or the part cannot be built.
    """
    if snapshot is None:
        yield
        return
    files = [tensors for name, tensors in snapshot.tensors.items() if name in ("model", "loss")]
    values, tensors = sum(map(_count_values, files)), sum(map(len, files))
    for path, number in _numbers("", arguments):
        if number > max(values, _LARGEST_NUMBER):
            raise CheckpointError(format_error(path, f"is too large for the {values} stored weights", value=number))
    counter = _Allocations(_FACTOR * values + _EXTRA_VALUES, _FACTOR * tensors + _EXTRA_TENSORS)
    try:
        with counter:
            yield
    except TrainerError:
        _raise_if_refused(group, counter, values)
        with blaming_config(snapshot.config_file):
            raise
    except Exception as error:  # of any type: the arguments, and a config of transformers, may be anything
        _raise_if_refused(group, counter, values)
        problem = f"cannot be rebuilt ({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        raise CheckpointError(format_error(group, problem, _REMEDY)) from error


def _raise_if_refused(group: str, counter: _Allocations, values: int) -> None:
    if counter.refused:
        problem = f"needs {counter.refused}, but the checkpoint stores {values} weights"
        raise CheckpointError(format_error(group, problem, _REMEDY)) from None


def _count_values(tensors: Mapping[str, Tensor]) -> int:
    if isinstance(tensors, StoredTensors):
        return tensors.count_values()
    return sum(tensor.numel() for tensor in tensors.values())


def _numbers(path: str, value: object) -> Iterator[tuple[str, int]]:
    """Yield the whole numbers in a document, with their keys."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _numbers(f"{path}.{key}" if path else str(key), item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(path, item)
    elif isinstance(value, int):
        yield path, value


class _TooLargeError(Exception):
    """A part would need more memory than its checkpoint accounts for."""


class _Allocations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the tensors that are allocated, before they are, and stops at a limit.

    Args:
        max_values: Elements of all new tensors, and of each result of a computation.
        max_tensors: Number of new tensors.

    Attributes:
        refused: The tensors that were refused, in words; empty if none were.
    """

    def __init__(self, max_values: int, max_tensors: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.refused = ""
        self._max_values, self._max_tensors = max_values, max_tensors
        self._values = self._tensors = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the first tensor loads torch's compiler, which takes longer than most models

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable or func.is_view:  # in place, or without memory of its own
            return func(*args, **kwargs)
        inputs = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
        result = _without_memory(func, args, kwargs, may_fail=bool(inputs))
        size = sum(value.numel() for value in tree_flatten(result)[0] if isinstance(value, Tensor))
        if not inputs or func is torch.ops.aten.clone.default:
            self._values, self._tensors = self._values + size, self._tensors + 1
        if max(size, self._values) > self._max_values or self._tensors > self._max_tensors:
            self.refused = f"{self._tensors} tensors and {max(size, self._values)} values or more"
            raise _TooLargeError(self.refused)
        return func(*args, **kwargs)


def _without_memory(func: Any, args: Any, kwargs: Any, *, may_fail: bool) -> Any:
    """Return the result of an operation on the meta device; None if it cannot be computed there."""

    def to_meta(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")

    args, kwargs = tree_map_only(Tensor, to_meta, (args, kwargs))
    device = {"device": torch.device("meta")} if any(each.name == "device" for each in func._schema.arguments) else {}
    try:
        return func(*args, **{**kwargs, **device})
    except (RuntimeError, NotImplementedError):
        if may_fail:
            return None
        raise
