"""Gradient checkpointing: the blocks of a model store less for the backward pass, which computes the rest again.

Source: Chen et al. 2016, "Training deep nets with sublinear memory cost", https://arxiv.org/abs/1604.06174; storing the
results that take the most time after Korthikanti et al. 2022, https://arxiv.org/abs/2205.05198.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, partial
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from trainer.errors import ConfigError, format_error

Mode = Literal["none", "blocks", "selective"]

_KEY: Final = "gradient_checkpointing"
_KEPT: Final = ("aten::mm", "aten::addmm", "aten::convolution", "aten::_scaled_dot_product", "varlen_attn")
"""Beginnings or parts of the names of operations whose results `selective` keeps: they take most of the time."""


def checkpoint_blocks(model: nn.Module, setting: bool | Mode) -> None:
    """Make the entries of the model's outermost module lists compute parts of their forward pass again.

    Gradients have the same bits: random numbers are drawn again from the same state, and buffers change only once.

    Args:
        model: Changed in place; the classes of its blocks are replaced by subclasses of the same name.
        setting: `blocks`, or True as in earlier versions, stores only the inputs of the blocks; `selective` also stores
            the results of matrix products, convolutions and fused attention; `none` or False changes nothing.

    Raises:
        ConfigError: The model has no list of blocks.
    """
    if setting in (False, "none"):
        return
    blocks = find_blocks(model)
    if not blocks:
        problem = "this model has no list of blocks"
        raise ConfigError(format_error(_KEY, problem, "Set it to none", value=setting))
    for block in blocks:
        block.__class__ = _checkpointed_class(cast(Any, type(block)))
        cast(_Checkpointed, block).is_selective = setting == "selective"


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the entries of the model's outermost module lists that have parameters."""
    return [block for block in _entries(model) if next(block.parameters(), None) is not None]


def _entries(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _entries(child)


class _Checkpointed:
    """Precedes a block's class in its bases."""

    is_selective: bool

    def forward(self, *arguments: Any, **options: Any) -> Any:
        block = cast(nn.Module, self)
        forward = super().forward  # type: ignore[misc]  # the block's method
        if not (block.training and torch.is_grad_enabled()):
            return forward(*arguments, **options)
        contexts = partial(create_selective_checkpoint_contexts, _policy) if self.is_selective else None
        if not torch.compiler.is_compiling() and next(block.buffers(), None) is not None:
            contexts = partial(_with_earlier_buffers, block, contexts)
        if contexts is not None:
            options["context_fn"] = contexts
        return checkpoint(forward, *arguments, use_reentrant=False, **options)


@cache
def _checkpointed_class(block: type[nn.Module]) -> type[nn.Module]:
    # Under the block's own name, for code that distinguishes or prints modules by class name.
    return type(block.__name__, (_Checkpointed, block), {"__module__": block.__module__, "__doc__": block.__doc__})


def _policy(context: object, operation: Any, *arguments: object, **options: object) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if _is_kept(operation) else CheckpointPolicy.PREFER_RECOMPUTE


@cache
def _is_kept(operation: Any) -> bool:
    name = operation.name().partition(".")[0]
    return any(name == kept or (kept in name and kept not in ("aten::mm", "aten::addmm")) for kept in _KEPT)


Contexts = tuple[AbstractContextManager[Any], AbstractContextManager[Any]]


def _with_earlier_buffers(block: nn.Module, contexts: partial[Contexts] | None) -> Contexts:
    """Return the contexts of the forward pass and of its repetition, which sees and changes copies of the buffers.

    The statistics of a batch norm would otherwise be updated twice.
    """
    first, again = (nullcontext(), nullcontext()) if contexts is None else contexts()
    copies = [
        (module, name, buffer.clone())
        for module in block.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    return first, _repetition(again, copies)


@contextmanager
def _repetition(context: AbstractContextManager[Any], copies: list[tuple[nn.Module, str, Tensor]]) -> Iterator[None]:
    current = [(module, name, module._buffers[name]) for module, name, _ in copies]
    with context:
        for module, name, copy in copies:
            module._buffers[name] = copy
        try:
            yield
        finally:
            for module, name, buffer in current:
                module._buffers[name] = buffer
