"""The memory that a job needs on a device, and the memory that a device of this machine has."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from trainer.distributed.ranks import BUCKET_BYTES
from trainer.distributed.sharding import find_blocks
from trainer.errors import ConfigError, format_error
from trainer.loop import set_learning_rate
from trainer.report.console import format_bytes
from trainer.run import Run

_PEAK_ERROR = 0.01
"""The share of the peak by which `LiveTensors.peak` may be too small."""


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is active, records the bytes of the tensors that operations return and that exist at the same time.

    Args:
        ignored: Returns tensors that do not count, nor do views of them; they may change with time.

    Attributes:
        peak: The most bytes at a time, up to 1% less.
    """

    def __init__(self, ignored: Callable[[], Iterable[Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._ignored = ignored
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}
        self._bound = 0

    def __torch_dispatch__(
        self, operation: Any, types: Any, arguments: tuple[Any, ...] = (), options: dict[str, Any] | None = None
    ) -> Any:
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._storages:
                    # A weak reference keeps the address from being used again.
                    reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                    self._storages[storage._cdata] = reference, storage.nbytes()
                    self._bound += storage.nbytes()
        if self._bound > self.peak * (1 + _PEAK_ERROR):  # to count after each operation would take too long
            self._bound = self.count()
            self.peak = max(self.peak, self._bound)
        return result

    def count(self) -> int:
        """Return the bytes of the tensors that still exist."""
        self._storages = {
            key: entry
            for key, entry in self._storages.items()
            if not entry[0].expired()  # type: ignore[no-untyped-call]
        }
        ignored = {tensor.untyped_storage()._cdata for tensor in self._ignored()}
        return sum(size for key, (_, size) in self._storages.items() if key not in ignored)


def certain_bytes(run: Run, state: int, shards: int, device: str) -> dict[str, int]:
    """Return the bytes that a device needs whatever its samples are.

    With shards, this is the first device, which has the most rows.
    """
    averaged = () if run.ema is None else (run.ema.module, None if run.ema.loss is run.loss else run.ema.loss)
    weights = _bytes(weights_of(run.model, run.loss), shards)
    average = _bytes(weights_of(*averaged), shards)
    certain = {"weights": weights, "gradients": _bytes(_trained(run), shards), "optimizer": state, "ema": average}
    if run.moved_weights is not None:
        # The gradients at the weights themselves; a copy of the weights and their offsets.
        certain["moved"] = certain["gradients"] + 2 * _bytes(run.moved_weights.weights.values(), shards)
    # On a CPU, the copies that are being written are in the same memory.
    return certain | ({"saving": weights + state + average} if _is_cpu(device) else {})


def state_bytes(run: Run, shards: Sequence[int]) -> list[int]:
    """Return the bytes of the optimizer's state on a device, for each number of shards.

    Updates one parameter at a time, so that this needs little memory. The state is empty afterwards.
    """
    optimizer, totals = run.optimizer, [0] * len(shards)
    set_learning_rate(optimizer, run.schedule(0))
    optimizer.zero_grad(set_to_none=True)
    for parameter in _trained(run):
        parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = [value for value in optimizer.state[parameter].values() if isinstance(value, Tensor)]
        totals = [total + _bytes(state, count) for total, count in zip(totals, shards, strict=True)]
        parameter.grad = None
        optimizer.state.clear()
    return totals


def step_bytes(
    run: Run, certain: Mapping[str, int], activations: int | None, devices: int, shards: int
) -> dict[str, int | None]:
    """Return the bytes that a step needs on a device; without a trial, the activations and the total are None."""
    document: dict[str, int | None] = {**certain, "activations": activations}
    if shards > 1:
        document["gathered"] = _gathered_bytes(run.model)
    elif devices > 1:
        largest = max((parameter.nbytes for parameter in _trained(run)), default=0)
        document["exchange"] = min(certain["gradients"], BUCKET_BYTES + largest)
    return {**document, "total": None if activations is None else sum(value or 0 for value in document.values())}


def refuse_what_cannot_fit(certain: Mapping[str, int], available: int | None, devices: int, shards: int) -> None:
    """Refuse a job that cannot fit, whatever its batches are.

    Raises:
        ConfigError: It does not fit.
    """
    needed = sum(certain.values())
    if available is None or needed <= available:
        return
    parts = ", ".join(f"{name} {format_bytes(value)}" for name, value in certain.items() if value)
    problem = f"a device needs {format_bytes(needed)} ({parts}), but has {format_bytes(available)}"
    key = "shard" if shards < devices or devices == 1 else "devices"
    smaller = ", or optimizer=sgd" if certain["optimizer"] > certain["gradients"] else ""
    smaller += ", or ema.decay=null" if certain["ema"] else ""
    raise ConfigError(format_error(key, problem, f"{smaller_share(devices, shards)}, or a smaller model{smaller}"))


def smaller_share(devices: int, shards: int) -> str:
    """Return what makes the weights that a device stores fewer."""
    if devices == 1:
        return "Set devices=N shard=true"
    return "Set shard=true" if shards < devices else "Use more devices"


def _trained(run: Run) -> list[Tensor]:
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    return [parameter for parameter in parameters if parameter.requires_grad]


def weights_of(*modules: object) -> Iterator[Tensor]:
    """Yield the parameters and buffers of those arguments that are modules."""
    for module in modules:
        if isinstance(module, nn.Module):
            yield from module.parameters()
            yield from module.buffers()


def _bytes(tensors: Iterable[Tensor], shards: int = 1) -> int:
    """Return the bytes of tensors; of parameters and of the state of their optimizer, only the first shard's."""
    return sum(tensor.nbytes if tensor.ndim == 0 or shards == 1 else _rows_bytes(tensor, shards) for tensor in tensors)


def _rows_bytes(tensor: Tensor, shards: int) -> int:
    return -(-len(tensor) // shards) * (tensor.nbytes // max(1, len(tensor)))


def _gathered_bytes(model: nn.Module) -> int:
    """Return about the bytes of the complete weights and gradients that a device needs at the same time.

    These are the parameters outside of the blocks, and two blocks: the one that runs and the next one.
    """
    blocks = [sum(parameter.nbytes for parameter in block.parameters()) for block in find_blocks(model)]
    outside = sum(parameter.nbytes for parameter in model.parameters()) - sum(blocks)
    return 2 * (outside + sum(sorted(blocks)[-2:]))


def _is_cpu(name: str) -> bool:
    return name == "cpu" or (name == "auto" and not torch.cuda.is_available())


def available_memory(name: str, devices: int) -> int | None:
    """Return the bytes that a process of this machine may use on its device; None if they are not known."""
    if _is_cpu(name):
        return host_limit(devices)
    device = torch.device("cuda" if name == "auto" else name)
    if device.type != "cuda" or (device.index or 0) >= torch.cuda.device_count():
        return None
    return int(torch.cuda.mem_get_info(device)[0])


def host_limit(devices: int) -> int:
    """Return the bytes that each of `devices` processes of this machine may use."""
    shared = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _group_limits():
        with suppress(OSError, ValueError):  # a group of processes without a limit has the text "max"
            shared.append(int(path.read_text(encoding="ascii")))
    own = []
    for limit, used in ((resource.RLIMIT_AS, "VmSize"), (resource.RLIMIT_DATA, "VmData")):
        if (soft := resource.getrlimit(limit)[0]) != resource.RLIM_INFINITY:
            own.append(max(0, soft - _used_bytes(used)))
    return min([min(shared) // devices, *own])


def _group_limits(groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")) -> list[Path]:
    """Return the files that may limit the memory of this process's control group and of the groups that contain it.

    Only the files of this system's version exist; in a container, the mount may begin at the process's own group.

    Args:
        groups: Lines `number:controllers:group`; version 2 has no controllers.
        mount: Where the groups are.
    """
    files = []
    with suppress(OSError):
        for line in groups.read_text(encoding="utf-8").splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers in ("", "memory"):
                root, name = (mount / "memory", "memory.limit_in_bytes") if controllers else (mount, "memory.max")
                inner = PurePosixPath(group.lstrip("/"))
                files += [root / each / name for each in (inner, *inner.parents)]
    return files


def _used_bytes(name: str) -> int:
    """Return an amount of memory that Linux reports of this process; 0 on other systems."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
    return 0
