"""A summary of a model: its modules, the shapes of their outputs, and their parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ModuleRow:
    """One module of a model.

    Attributes:
        name: Path in the model; "" is the model itself.
        kind: Name of the class.
        output: Shape of the last output, or of the first tensor in it; None if the module was not called.
        parameters: Number of own parameters, including modules inside that have no row; shared parameters count once,
            in the first module that has them.
        trainable: Number of these parameters that are trained.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: int


def summarize(model: nn.Module, depth: int, forward: Callable[[], object] | None = None) -> list[ModuleRow]:
    """Return a row per module, up to `depth` levels below the model; their parameters add up to the model's.

    Args:
        model: Not changed; its forward hooks are called if `forward` is given.
        depth: Number of levels; 0 for the model only.
        forward: Runs the model once, to learn the shapes of outputs.
    """
    shapes = {} if forward is None else _output_shapes(model, forward)
    rows: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        row = ".".join(name.split(".")[:depth])
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in own}
        rows.setdefault(row, []).extend(own)
    return [
        ModuleRow(
            name,
            type(modules[name]).__name__,
            shapes.get(name),
            sum(parameter.numel() for parameter in own),
            sum(parameter.numel() for parameter in own if parameter.requires_grad),
        )
        for name, own in rows.items()
    ]


def _output_shapes(model: nn.Module, forward: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def make_hook(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(module: nn.Module, arguments: object, output: object) -> None:
            if (tensor := first_tensor(output)) is not None:
                shapes[name] = tuple(tensor.shape)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(make_hook(name)).remove)
        forward()
    return shapes


def first_tensor(output: object) -> Tensor | None:
    """Return a module's output, or the first tensor anywhere in a mapping or sequence; None if there is none."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((tensor for part in parts if (tensor := first_tensor(part)) is not None), None)
