"""The safetensors encoding and the bitwise comparison of tensors."""

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from trainer.checkpoint.tensors import _DTYPES, decode, encode, tensor_differences
from trainer.errors import CheckpointError


def encode_file(tensors):
    return b"".join(bytes(chunk) for chunk in encode(tensors))


def bits(tensor):
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@st.composite
def named_tensors(draw):
    names = draw(st.lists(st.text(min_size=1).filter(lambda name: name != "__metadata__"), unique=True, max_size=4))
    tensors = {}
    for name in names:
        dtype = draw(st.sampled_from(sorted(_DTYPES, key=str)))
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        size = torch.Size(shape).numel() * dtype.itemsize
        # Booleans have two valid bytes.
        byte = st.integers(0, 1) if dtype == torch.bool else st.integers(0, 255)
        data = draw(st.lists(byte, min_size=size, max_size=size))
        tensors[name] = torch.tensor(data, dtype=torch.uint8).view(dtype).reshape(shape)
    return tensors


@given(named_tensors())
def test_round_trip_keeps_every_bit(tensors):
    decoded = decode(encode_file(tensors))
    assert decoded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert decoded[name].dtype == tensor.dtype
        assert decoded[name].shape == tensor.shape
        assert bits(decoded[name]) == bits(tensor)


def test_file_equals_the_librarys_own():
    tensors = {
        "b": torch.randn(3, 2),
        "a": torch.randn(5).to(torch.bfloat16),
        "c": torch.tensor([True, False]),
        "steps": torch.tensor(7),
    }
    assert encode_file(tensors) == save(tensors, metadata={"format": "pt"})


def test_memory_mapped_readers_can_read_the_file(tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.bool), "wide": torch.randn(2), "half": torch.ones(1).half()}
    (tmp_path / "model.safetensors").write_bytes(encode_file(tensors))
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_tied_weights_and_views_are_stored_under_each_name():
    weight = torch.nn.Parameter(torch.randn(2, 3))
    decoded = decode(encode_file({"one": weight, "two": weight, "view": weight.T}))
    assert torch.equal(decoded["one"], decoded["two"])
    assert torch.equal(decoded["view"], weight.detach().T)


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()])
def test_unsupported_tensors_are_refused(tensor):
    with pytest.raises(CheckpointError, match=r"weird: a torch\.\w+ tensor of torch\.\w+ cannot be stored"):
        encode_file({"weird": tensor})


def differences(stored, replayed):
    return list(tensor_differences({"model": stored}, {"model": replayed}))


@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_equal_tensors_do_not_differ(shape):
    for dtype in _DTYPES:
        tensor = torch.ones(shape).to(dtype)
        assert differences({"a": tensor}, {"a": tensor.clone()}) == []


@given(st.integers(0, 5), st.integers(0, 31))
def test_any_flipped_bit_is_a_difference(position, bit):
    stored = torch.arange(6, dtype=torch.float32).view(2, 3)
    replayed = stored.clone()
    replayed.view(torch.int32).view(-1)[position] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)

    (line,) = differences({"a": stored}, {"a": replayed})
    assert line.startswith("model/a differs: 1 of 6 values, by ")


def test_nan_equals_itself_and_signed_zeros_differ():
    nan, zero = torch.tensor([float("nan")]), torch.tensor([0.0])
    assert differences({"a": nan}, {"a": nan.clone()}) == []
    assert differences({"a": zero}, {"a": -zero}) == ["model/a differs: 1 of 1 values, by at most 0"]


def test_largest_difference_is_reported():
    stored, replayed = torch.zeros(5), torch.tensor([0.0, 1e-3, -0.5, 0.0, 0.25])
    assert differences({"a": stored}, {"a": replayed}) == ["model/a differs: 3 of 5 values, by at most 0.5"]
    assert differences({"a": torch.zeros(2, dtype=torch.complex64)}, {"a": torch.tensor([0, 3j])}) == [
        "model/a differs: 1 of 2 values, by at most 3"
    ]


def test_names_dtypes_and_shapes_are_compared():
    one = torch.zeros(2, 3)
    assert differences({"a": one}, {"b": one}) == [
        "model/a is only in the checkpoint",
        "model/b is only in the replay",
    ]
    assert differences({"a": one}, {"a": one.view(3, 2)}) == [
        "model/a differs: stored torch.float32 (2, 3), replayed torch.float32 (3, 2)"
    ]
    assert differences({"a": one}, {"a": one.double()}) == [
        "model/a differs: stored torch.float32 (2, 3), replayed torch.float64 (2, 3)"
    ]
    assert list(tensor_differences({"ema": {"a": one}}, {})) == ["ema/a is only in the checkpoint"]
