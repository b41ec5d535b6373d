import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from trainer.checkpoint.tensors import _DTYPES, decode, encode
from trainer.errors import CheckpointError


def file_of(tensors):
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
def test_every_bit_comes_back(tensors):
    found = decode(file_of(tensors))
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert bits(found[name]) == bits(tensor)


def test_the_file_is_the_library_s_own():
    tensors = {
        "b": torch.randn(3, 2),
        "a": torch.randn(5).to(torch.bfloat16),
        "c": torch.tensor([True, False]),
        "steps": torch.tensor(7),
    }
    assert file_of(tensors) == save(tensors, metadata={"format": "pt"})


def test_readers_that_map_the_file(tmp_path):
    tensors = {"odd": torch.ones(3, dtype=torch.bool), "wide": torch.randn(2), "half": torch.ones(1).half()}
    (tmp_path / "model.safetensors").write_bytes(file_of(tensors))
    with safetensors.safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        for name, tensor in tensors.items():
            assert torch.equal(file.get_tensor(name), tensor)


def test_tied_weights_and_gradients():
    weight = torch.nn.Parameter(torch.randn(2, 3))
    found = decode(file_of({"one": weight, "two": weight, "view": weight.T}))
    assert torch.equal(found["one"], found["two"])
    assert torch.equal(found["view"], weight.detach().T)


@pytest.mark.parametrize("tensor", [torch.ones(2, dtype=torch.complex128), torch.eye(2).to_sparse()])
def test_what_the_format_lacks(tensor):
    with pytest.raises(CheckpointError, match=r"weird: a torch\.\w+ tensor of torch\.\w+ cannot be stored"):
        file_of({"weird": tensor})
