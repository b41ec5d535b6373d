"""Parameters, gradients, groups and a training loop for tests of optimizers."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer.checkpoint.optimizer_state import capture_optimizer, restore_optimizer
from trainer.checkpoint.tensors import decode, encode
from trainer.errors import ConfigError
from trainer.optimizer.parameter_groups import make_parameter_groups

SHAPES = {"weight": (3, 4), "table": (5, 2), "bias": (3,)}

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Pairs = list[tuple[str, nn.Parameter]]


def named_parameters(shapes: Mapping[str, tuple[int, ...]] = SHAPES, dtype: torch.dtype = torch.float64) -> Pairs:
    generator = torch.Generator().manual_seed(2)
    return [
        (name, nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)))
        for name, shape in shapes.items()
    ]


def gradients(step: int, parameter: Tensor) -> Tensor:
    return torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) + step).reshape(parameter.shape)


def groups(parameters: Pairs, lr: float, weight_decay: float, **more: Any) -> list[dict[str, Any]]:
    """Return the parameter groups of a job; `table` belongs to an embedding."""
    layers = {name: 0 for name, _ in parameters}
    facts = {"no_decay": {"table"}, "layers": layers, **more}
    return make_parameter_groups(parameters, lr=lr, weight_decay=weight_decay, **facts)


def train(optimizer: torch.optim.Optimizer, parameters: Pairs, first: int, last: int) -> None:
    for step in range(first, last + 1):
        for _, parameter in parameters:
            # Gradients have the strides of the parameter, as in autograd.
            parameter.grad = torch.empty_like(parameter).copy_(gradients(step, parameter))
        optimizer.step()


def trained(make: Make, steps: int, lr: float, weight_decay: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the parameters before and after `steps` updates, in float64."""
    parameters = named_parameters()
    start = {name: parameter.detach().clone() for name, parameter in parameters}
    train(make(groups(parameters, lr, weight_decay)), parameters, 1, steps)
    return start, {name: parameter.detach() for name, parameter in parameters}


def assert_updates_match(
    make: Make,
    reference: Callable[[Tensor, int, float], Tensor],
    *,
    steps: int = 10,
    lr: float = 0.01,
    rtol: float = 1e-12,
    atol: float = 1e-13,
) -> None:
    """Check updates against `reference`, from a parameter's start, the number of updates and the weight decay."""
    start, end = trained(make, steps, lr, 0.3)
    for name, decay in {"weight": 0.3, "table": 0.0, "bias": 0.0}.items():
        assert torch.allclose(end[name], reference(start[name], steps, decay), rtol=rtol, atol=atol), name


def assert_groups(optimizer: torch.optim.Optimizer, **options: Any) -> None:
    """Check that a weight decay of 0.3 applies only to `weight`, and that both groups have the options."""
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["table", "bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0]
    for group in optimizer.param_groups:
        assert {name: group[name] for name in options} == options


def assert_out_of_range(make: Callable[..., object], *arguments: tuple[str, object]) -> None:
    """Check that each argument is refused with its name and the allowed values."""
    for name, value in arguments:
        with pytest.raises(ConfigError, match=rf"^{name}: must be .*, got "):
            make(groups(named_parameters(), 0.01, 0.3), **{name: value})


def assert_resumes_bitwise_equal(make: Make, lr: float, weight_decay: float, **more: Any) -> None:
    """Check that 5 updates equal 3 updates, a checkpoint restored into a new optimizer, and 2 more updates."""
    shapes = {**SHAPES, "kernel": (4, 3, 2, 2), "column": (6, 1), "scale": ()}

    def fresh() -> tuple[Pairs, torch.optim.Optimizer]:
        parameters = named_parameters(shapes, torch.float32)
        for name, parameter in parameters:
            if name == "kernel":
                parameter.data = parameter.data.to(memory_format=torch.channels_last)
        return parameters, make(groups(parameters, lr, weight_decay, layers=dict.fromkeys(shapes, 0), **more))

    whole, optimizer = fresh()
    train(optimizer, whole, 1, 5)
    before, stopped = fresh()
    train(stopped, before, 1, 3)
    tensors, document = capture_optimizer(stopped)
    tensors = decode(b"".join(bytes(chunk) for chunk in encode(tensors)))
    after, resumed = fresh()
    restore_optimizer(resumed, tensors, json.loads(json.dumps(document)))
    for (_, parameter), (_, value) in zip(after, before, strict=True):
        parameter.data.copy_(value.data)
    train(resumed, after, 4, 5)
    for (name, parameter), (_, expected) in zip(after, whole, strict=True):
        assert torch.equal(parameter, expected), name
        state, reference = resumed.state[parameter], optimizer.state[expected]
        assert state.keys() == reference.keys()
        for key, value in reference.items():
            assert torch.equal(torch.as_tensor(state[key]), torch.as_tensor(value)), (name, key)
    options = [{key: value for key, value in group.items() if key != "params"} for group in resumed.param_groups]
    assert options == [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
