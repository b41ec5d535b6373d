"""What a model is made of: its modules, the shapes they give, and where its parameters are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Row:
    """One module of a model.

    Attributes:
        name: Its path in the model; "" is the model itself.
        kind: Its class.
        output: The shape of what it gave last, or of the first tensor of that; None where it was not called.
        parameters: Its own, and those of modules in it that have no row; a parameter that several share counts once,
            where it is first met.
        trainable: How many of these are trained.
    """

    name: str
    kind: str
    output: tuple[int, ...] | None
    parameters: int
    trainable: int


def structure(model: nn.Module, depth: int, forward: Callable[[], Any] | None = None) -> list[Row]:
    """A row for each module up to `depth` levels below the model; the parameters of the rows add up to the model's.

    Args:
        model: Left as it is; its forward hooks are called where `forward` is given.
        depth: 0 for the model alone.
        forward: Runs the model once, so that the shapes are known.
    """
    shapes = {} if forward is None else _shapes(model, forward)
    rows: dict[str, list[Tensor]] = {}
    seen: set[int] = set()
    modules = dict(model.named_modules())
    for name, module in modules.items():
        row = ".".join(name.split(".")[:depth])
        own = [parameter for parameter in module.parameters(recurse=False) if id(parameter) not in seen]
        seen |= {id(parameter) for parameter in own}
        rows.setdefault(row, []).extend(own)
    return [
        Row(
            name,
            type(modules[name]).__name__,
            shapes.get(name),
            sum(parameter.numel() for parameter in own),
            sum(parameter.numel() for parameter in own if parameter.requires_grad),
        )
        for name, own in rows.items()
    ]


def _shapes(model: nn.Module, forward: Callable[[], Any]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if (tensor := first_tensor(output)) is not None:
                shapes[name] = tuple(tensor.shape)

        return hook

    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            hooks.callback(module.register_forward_hook(remember(name)).remove)
        forward()
    return shapes


def first_tensor(output: Any) -> Tensor | None:
    """What a module gave, or of a mapping or a sequence the first tensor anywhere in it; None where there is none."""
    if isinstance(output, Tensor):
        return output
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else ()
    return next((found for part in parts if (found := first_tensor(part)) is not None), None)
