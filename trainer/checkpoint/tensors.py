"""Named tensors as the bytes of a safetensors file (https://huggingface.co/docs/safetensors, section Format), and the
bitwise comparison of two sets of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from safetensors.torch import load
from torch import Tensor

from trainer.errors import CheckpointError, format_error
from trainer.layout import Document

NamedTensors = Mapping[str, Tensor]

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


def encode(tensors: NamedTensors) -> Iterator[bytes | memoryview]:
    """Yield the bytes of the file in order: the header, then each tensor's own memory.

    The library's `save` first builds the whole file in memory, which takes several times as long as writing it.
    Tensors that share memory (tied weights) are written once under each name.

    Raises:
        CheckpointError: The format has no such dtype or layout.
    """
    # Wide elements first: every tensor then starts at a multiple of its element size, as readers that map it need.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: Document = {"__metadata__": {"format": "pt"}}
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
    """Return the tensors of a safetensors file, on the CPU, in memory of their own."""
    return load(data)


def tensor_differences(stored: Mapping[str, NamedTensors], replayed: Mapping[str, NamedTensors]) -> Iterator[str]:
    """Yield a line for each tensor that differs in any bit, starting with its name; the devices may differ.

    Args:
        stored: File name -> named tensors, as in a snapshot.
        replayed: The same, computed again.
    """
    for file in dict.fromkeys([*stored, *replayed]):
        before, after = stored.get(file, {}), replayed.get(file, {})
        for name in sorted({*before, *after}):
            if name not in before or name not in after:
                yield f"{file}/{name} is only in the {'checkpoint' if name in before else 'replay'}"
            elif difference := _describe_difference(before[name], after[name]):
                yield f"{file}/{name} differs: {difference}"


def _describe_difference(stored: Tensor, replayed: Tensor) -> str:
    """Return what differs between two tensors; empty if they are equal in every bit."""
    stored, replayed = stored.detach().cpu(), replayed.detach().cpu()
    if stored.dtype != replayed.dtype or stored.shape != replayed.shape:
        return f"stored {stored.dtype} {tuple(stored.shape)}, replayed {replayed.dtype} {tuple(replayed.shape)}"
    changed = (_as_bytes(stored) != _as_bytes(replayed)).view(stored.numel(), stored.element_size()).any(1)
    if not changed.any():
        return ""
    if stored.is_complex():
        stored, replayed = torch.view_as_real(stored), torch.view_as_real(replayed)
    # Integers above 2**53 may be equal in float64; the comparison of bytes has decided already.
    largest = (stored.double() - replayed.double()).abs().max().item()
    return f"{int(changed.sum())} of {changed.numel()} values, by at most {largest:.3g}"


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
