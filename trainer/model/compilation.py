"""Compilation with `torch.compile`: the blocks of a model for fixed shapes, or a whole model for changing shapes."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from trainer.errors import ConfigError, format_error
from trainer.model.attention import find_kernel

MAX_COMPILATIONS = 256
"""Programs of one process, for each shape of each kind of block: more would take longer than they can save."""

logger = logging.getLogger(__name__)


def compile_for_training(
    parts: Sequence[nn.Module], device: torch.device, *, dynamic: bool, mode: str | None = None
) -> None:
    """Compile modules in place, so that their weights keep their names; on a CPU without a compiler, warn.

    Only training uses the compiled program. In evaluation mode the modules run as they are written: the shapes of
    evaluation vary, and it then gives the results of `trainer eval`, whatever was compiled before.

    With fixed shapes, a program depends on nothing but its module and the shapes of its inputs, so a resumed run
    computes with the same programs. Blocks that differ only in their weights share one.

    Args:
        parts: Modules that are called by others or by the training loop.
        device: Their device.
        dynamic: Compile for changing shapes; otherwise once for each shape.
        mode: The mode of `torch.compile`.
    """
    if device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        logger.warning("compile: torch.compile needs a C++ compiler on the CPU and none was found; continuing without")
        return
    from torch._dynamo import config

    if not dynamic:
        # At the default limit of 8, further shapes would silently run without compilation, in other bits.
        config.recompile_limit = MAX_COMPILATIONS
        config.fail_on_recompile_limit_hit = True
        # Otherwise a block with a hook would share the program of a block without.
        config.skip_nnmodule_hook_guards = False
    find_kernel(device.type)  # asks for the abilities of the device, which no program can
    if any(getattr(module, "is_selective", False) for part in parts for module in part.modules()):
        logging.getLogger("torch._higher_order_ops.wrap").addFilter(_is_about_other_things)
        logger.info("compile: with model.gradient_checkpointing=selective, blocks must not change a tensor in place")
    for part in parts:
        part._compiled_call_impl = _call_in_training(part, dynamic=dynamic, mode=mode)


def _is_about_other_things(record: logging.LogRecord) -> bool:
    """Return whether a log record of torch is not its warning about selective checkpointing, which has our words."""
    return "context_fn is passed to torch.utils.checkpoint" not in record.getMessage()


def keep_results_of_graphs(model: nn.Module, blocks: Sequence[nn.Module]) -> None:
    """Let a model train with blocks that are replayed as CUDA graphs (the mode `reduce-overhead`).

    A graph writes its results to the same memory each time. So the results of all blocks must be kept until the next
    forward pass of the model begins, and gradients until the last micro-batch of a step: otherwise the gradients of
    the first would silently be overwritten (https://github.com/pytorch/pytorch/issues/169545).

    Args:
        model: The model that calls the blocks.
        blocks: The blocks that will be compiled.
    """

    def begin(module: nn.Module, arguments: object) -> None:
        if module.training:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    model.register_forward_pre_hook(begin)
    for parameter in {parameter for block in blocks for parameter in block.parameters()}:
        if parameter.requires_grad:
            parameter.register_hook(torch.Tensor.clone)  # type: ignore[no-untyped-call]


def _call_in_training(module: nn.Module, *, dynamic: bool, mode: str | None) -> Callable[..., Any]:
    from torch._dynamo.exc import FailOnRecompileLimitHit

    # A function of ours: the frames of torch's own modules, such as `nn.Sequential`, are not compiled.
    def call(*arguments: Any, **options: Any) -> Any:
        return module._call_impl(*arguments, **options)  # type: ignore[no-untyped-call]

    compiled = torch.compile(call, dynamic=dynamic, mode=mode)

    def choose(*arguments: Any, **options: Any) -> Any:
        if not module.training:
            return call(*arguments, **options)
        try:
            return compiled(*arguments, **options)
        except FailOnRecompileLimitHit as error:
            problem = f"the batches have too many shapes: {MAX_COMPILATIONS} programs were compiled"
            remedy = "Set compile=false, or for texts loader.tokens or loader.batching=fixed"
            raise ConfigError(format_error("compile", problem, remedy, value=True)) from error

    return choose
