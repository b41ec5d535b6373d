"""Weights, gradients and optimizer state in shards: each device stores some rows of every tensor (torch's FSDP2).

A block of the model is complete on a device only while it runs. Gradients are summed over the devices as they are
without shards, so a step computes the same.

Source: Zhao et al. 2023, "PyTorch FSDP", https://arxiv.org/abs/2304.11277.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError, format_error
from trainer.protocols import HasLossHead, HasTagTransitions

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

_PLAIN = (Tensor, nn.Parameter)


class Sharding:
    """The division of tensors among devices: groups of `count` devices store one copy together.

    Every process must make the same calls in the same order.

    Args:
        ranks: The processes, one for each device.
        count: Devices that store one copy; divides the number of processes.
        device: The device of this process.

    Attributes:
        count: The same.
        index: The number of this process's shard, from 0.
        is_first_copy: True in the group of devices that writes checkpoints.
    """

    def __init__(self, ranks: Ranks, count: int, device: torch.device) -> None:
        from torch.distributed.device_mesh import init_device_mesh

        assert ranks.size % count == 0
        self.count = count
        self.index = ranks.rank % count
        self.is_first_copy = ranks.rank < count
        copies = ranks.size // count
        sizes, names = ((count,), ("shard",)) if copies == 1 else ((copies, count), ("copy", "shard"))
        self._mesh: DeviceMesh = init_device_mesh(device.type, sizes, mesh_dim_names=names)

    def shard(self, module: nn.Module) -> None:
        """Replace the parameters of a model by this process's rows of them, block by block; buffers stay complete.

        Raises:
            ConfigError: A parameter cannot be divided by rows.
        """
        for block in find_blocks(module):
            self._shard(block)
        self._shard(module)

    def shard_loss(self, loss: nn.Module) -> None:
        """Replace the parameters of a loss by this process's rows of them.

        The loss is complete as a whole while it runs: which of its modules run may depend on the targets, and all
        processes must ask for the same rows.

        Raises:
            ConfigError: A parameter cannot be divided by rows.
        """
        from torch.distributed.fsdp import register_fsdp_forward_method

        self._shard(loss)
        if isinstance(loss, HasLossHead):
            register_fsdp_forward_method(loss, "scores")
        if isinstance(loss, HasTagTransitions):
            register_fsdp_forward_method(loss, "tag_transitions")

    def _shard(self, module: nn.Module) -> None:
        from torch.distributed.fsdp import FSDPModule, fully_shard

        for name, parameter in module.named_parameters():
            if parameter.ndim == 0 or not parameter.is_contiguous():
                problem = "is a single number" if parameter.ndim == 0 else "is not stored row by row"
                remedy = "Set shard=false"
                raise ConfigError(
                    format_error("shard", f"the parameter {name} {problem} and cannot be divided", remedy)
                )
        # Never complete after a forward pass, also not the outermost module: an evaluation has no backward pass that
        # would end this, and the averaged weights would then be updated in memory that is about to be freed.
        fully_shard(module, mesh=self._mesh, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)  # sums, as losses are
        module.set_force_sum_reduction_for_comms(True)  # gloo has no other


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the modules that are complete one at a time: the entries of the outermost lists, if they have parameters.

    An entry that shares a parameter with the rest of the module (tied weights) is left out.
    """
    owners = _count_owners(module)
    blocks = []
    for block in _find_entries(module):
        own = _count_owners(block)
        if own and all(owners[parameter] == count for parameter, count in own.items()):
            blocks.append(block)
    return blocks


def _count_owners(module: nn.Module) -> Counter[nn.Parameter]:
    """Return the number of modules that have each parameter."""
    return Counter(parameter for part in module.modules() for parameter in part.parameters(recurse=False))


def _find_entries(module: nn.Module) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, nn.ModuleList | nn.Sequential):
            yield from child.children()
        else:
            yield from _find_entries(child)


def is_sharded(tensor: Tensor) -> bool:
    """Return whether this process stores only some rows of a tensor."""
    if type(tensor) in _PLAIN:
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def gather_shards(tensor: Tensor) -> Tensor:
    """Return a complete tensor; if it is sharded, every process must call this."""
    return cast("DTensor", tensor).full_tensor() if is_sharded(tensor) else tensor


def own_rows(tensor: Tensor) -> Tensor:
    """Return the rows that this process stores, in the same memory; all rows if the tensor is not sharded."""
    return cast("DTensor", tensor).to_local() if is_sharded(tensor) else tensor


def first_row(tensor: Tensor) -> int:
    """Return the position of this process's first row in the complete tensor."""
    if not is_sharded(tensor):
        return 0
    from torch.distributed.tensor import Shard

    sharded = cast("DTensor", tensor)
    (dim,) = (axis for axis, placement in enumerate(sharded.placements) if isinstance(placement, Shard))
    chunk = -(-sharded.shape[0] // sharded.device_mesh.size(dim))  # as torch.chunk divides
    return min(sharded.shape[0], chunk * sharded.device_mesh.get_local_rank(dim))


def count_shards(shard: bool | int, ranks: Ranks) -> int:
    """Return the number of devices that store one copy of the model, from the key `shard`.

    Raises:
        ConfigError: The number does not divide the number of devices.
    """
    count = ranks.size if shard is True else max(1, int(shard))
    if ranks.size % count:
        problem = f"must divide the number of devices, {ranks.size}"
        raise ConfigError(format_error("shard", problem, "Set shard=true for all devices", value=shard))
    return count
