import copy
from functools import partial

import pytest
import torch
from torch import nn

from trainer.precision import MIN_SCALE, Precision, PrecisionName

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def test_fp32_computes_in_float32_without_loss_scaling() -> None:
    precision = Precision("fp32", CPU)
    with precision.autocast():
        output = nn.Linear(2, 2)(torch.ones(1, 2))

    assert output.dtype == torch.float32
    assert precision.scale == 1
    assert not precision.can_lower_scale
    assert precision.state_dict() == {}


def test_only_tf32_rounds_float32_products_on_cuda(request: pytest.FixtureRequest) -> None:
    for settings in (torch.backends.cuda.matmul, torch.backends.cudnn):
        request.addfinalizer(partial(setattr, settings, "allow_tf32", settings.allow_tf32))
    names: list[PrecisionName] = ["tf32", "fp32", "tf32", "bf16"]
    for name in names:
        Precision(name, CUDA)
        assert (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32) == (
            name == "tf32",
            name == "tf32",
        )
        # torch.compile reads this one, and fails if the interfaces were mixed.
        assert torch.get_float32_matmul_precision() == ("high" if name == "tf32" else "highest")


def test_tf32_is_fp32_on_the_cpu() -> None:
    layer, x = nn.Linear(64, 64), torch.randn(3, 64)
    names: list[PrecisionName] = ["fp32", "tf32"]
    outputs = []
    for name in names:
        with Precision(name, CPU).autocast():
            outputs.append(layer(x))

    assert torch.equal(*outputs)


@pytest.mark.parametrize(("name", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_computes_in_its_dtype_with_float32_weights(name: str, dtype: torch.dtype) -> None:
    layer = nn.Linear(2, 2)
    with Precision(name, CPU).autocast():  # type: ignore[arg-type]
        output = layer(torch.ones(1, 2))

    assert output.dtype == dtype
    assert layer.weight.dtype == torch.float32


def test_unscaled_fp16_gradients_are_the_gradients_of_the_loss() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    precision = Precision("fp16", CPU)
    precision.backward(layer(torch.ones(1, 2)).sum())
    precision.unscale(optimizer)

    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[1.0, 1.0]]


def test_an_overflow_only_lowers_the_scale() -> None:
    layer = nn.Linear(2, 1, bias=False)
    before = layer.weight.clone()
    optimizer = torch.optim.AdamW(layer.parameters(), lr=1.0, fused=True)
    precision = Precision("fp16", CPU)
    scale = precision.scale
    precision.backward(layer(torch.ones(1, 2)).sum() * float("inf"))
    precision.unscale(optimizer)

    assert precision.can_lower_scale
    assert not precision.step(optimizer)
    assert precision.scale == scale / 2
    assert torch.equal(layer.weight, before)


def test_the_scale_has_a_minimum() -> None:
    precision = Precision("fp16", CPU)
    precision.load_state_dict(precision.state_dict() | {"scale": MIN_SCALE})

    assert not precision.can_lower_scale


def test_the_scaler_resumes_from_its_state() -> None:
    def run(precision: Precision, layer: nn.Module, steps: int) -> None:
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
        for _ in range(steps):
            optimizer.zero_grad()
            precision.backward(layer(torch.ones(1, 2)).sum())
            precision.unscale(optimizer)
            precision.step(optimizer)

    layer = nn.Linear(2, 1)
    whole = Precision("fp16", CPU)
    run(whole, layer, 5)
    resumed = Precision("fp16", CPU)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    run(whole, layer, 3)
    run(resumed, layer, 3)

    assert resumed.state_dict() == whole.state_dict()
    assert whole.state_dict()["_growth_tracker"] == 8
