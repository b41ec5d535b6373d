"""The comparison of two checkpoints misses no bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.checkpoint.compare import tensor_differences

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool]


def differences(stored: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> list[str]:
    return list(tensor_differences({"model": stored}, {"model": found}))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_equal_tensors(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.ones(shape, dtype=dtype)
    assert differences({"a": tensor}, {"a": tensor.clone()}) == []


@given(st.integers(0, 5), st.integers(0, 31))
def test_any_flipped_bit_is_seen(position: int, bit: int) -> None:
    stored = torch.arange(6, dtype=torch.float32).view(2, 3)
    found = stored.clone()
    found.view(torch.int32).view(-1)[position] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)

    (line,) = differences({"a": stored}, {"a": found})
    assert line.startswith("model/a differs: 1 of 6 values, by ")


def test_what_numbers_hide() -> None:
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert differences({"a": nan}, {"a": nan.clone()}) == []
    assert differences({"a": zero}, {"a": -zero}) == ["model/a differs: 1 of 1 values, by 0 at most"]


def test_the_largest_difference() -> None:
    stored, found = torch.zeros(5), torch.tensor([0.0, 1e-3, -0.5, 0.0, 0.25])
    assert differences({"a": stored}, {"a": found}) == ["model/a differs: 3 of 5 values, by 0.5 at most"]
    assert differences({"a": torch.zeros(2, dtype=torch.complex64)}, {"a": torch.tensor([0, 3j])}) == [
        "model/a differs: 1 of 2 values, by 3 at most"
    ]


def test_names_kinds_and_shapes() -> None:
    one = torch.zeros(2, 3)
    assert differences({"a": one}, {"b": one}) == [
        "model/a is only in the checkpoint",
        "model/b is only in the replay",
    ]
    assert differences({"a": one}, {"a": one.view(3, 2)}) == [
        "model/a differs: torch.float32 (2, 3) instead of torch.float32 (3, 2)"
    ]
    assert differences({"a": one}, {"a": one.double()}) == [
        "model/a differs: torch.float32 (2, 3) instead of torch.float64 (2, 3)"
    ]
    assert list(tensor_differences({"ema": {"a": one}}, {})) == ["ema/a is only in the checkpoint"]
