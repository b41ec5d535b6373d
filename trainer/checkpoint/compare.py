"""Two checkpoints of one step, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

_Tensors = Mapping[str, Tensor]


def tensor_differences(stored: Mapping[str, _Tensors], found: Mapping[str, _Tensors]) -> Iterator[str]:
    """A line for each tensor that differs in any bit, its name first; the devices may differ.

    Args:
        stored: Files to named tensors, as in a snapshot.
        found: The same, made again.
    """
    for file in dict.fromkeys([*stored, *found]):
        before, after = stored.get(file, {}), found.get(file, {})
        for name in dict.fromkeys([*before, *after]):
            if name not in before or name not in after:
                yield f"{file}/{name} is only in the {'checkpoint' if name in before else 'replay'}"
            elif difference := _difference(before[name], after[name]):
                yield f"{file}/{name} differs: {difference}"


def _difference(stored: Tensor, found: Tensor) -> str:
    stored, found = stored.detach().cpu(), found.detach().cpu()
    if stored.dtype != found.dtype or stored.shape != found.shape:
        return f"{stored.dtype} {tuple(stored.shape)} instead of {found.dtype} {tuple(found.shape)}"
    changed = (_bytes(stored) != _bytes(found)).view(stored.numel(), stored.element_size()).any(1)
    if not changed.any():
        return ""
    if stored.is_complex():
        stored, found = torch.view_as_real(stored), torch.view_as_real(found)
    # Integers above 2**53 may be equal in float64; the bytes have told already.
    largest = (stored.double() - found.double()).abs().max().item()
    return f"{int(changed.sum())} of {changed.numel()} values, by {largest:.3g} at most"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)
