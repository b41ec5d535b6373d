"""Named tensors as the bytes of a safetensors file (https://huggingface.co/docs/safetensors, section Format)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import torch
from safetensors.torch import load
from torch import Tensor

from trainer.errors import CheckpointError, format_error

_DTYPES: Final = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def encode(tensors: Mapping[str, Tensor]) -> Iterator[bytes | memoryview]:
    """The bytes of the file in order: the header, then each tensor's own memory.

    The library's `save` builds the whole file in memory first, which takes several times as long as writing it.
    Tensors that share memory (tied weights) are written once for each name.

    Raises:
        CheckpointError: A tensor is of a kind the format does not have.
    """
    # Wide elements first: every tensor then starts at a multiple of its element's size, as readers that map it need.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.layout is not torch.strided or tensor.dtype not in _DTYPES or name == "__metadata__":
            raise CheckpointError(format_error(name, f"a {tensor.layout} tensor of {tensor.dtype} cannot be stored"))
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def decode(data: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU, in memory of their own."""
    return load(data)
