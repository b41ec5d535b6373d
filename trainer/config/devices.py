"""Validation of the keys of devices: which combinations cannot work is known before torch is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Final

from trainer.config import signatures
from trainer.config.compatibility import value_at
from trainer.config.groups import OWN
from trainer.distributed.environment import is_rank, num_processes
from trainer.errors import format_error

_SHARDABLE_OPTIMIZERS: Final = ("adam", "adamw", "lamb", "lion", "sgd")
"""Optimizers whose updates in shards were compared with the updates of complete weights."""

_MOST_DEVICES: Final = max(64, os.cpu_count() or 1)
"""So many processes start on any machine; thousands would stop it."""

WITHOUT_GRAPHS: Final = "Set compile=true"
VARYING_SHAPES: Final = "graphs needs batches of one shape"
SHAPES_REMEDY: Final = "Set loader.batching=fixed, or loader.tokens, or compile=true"

_WITHOUT_SHARDS: Final = "Set shard=false"


def validate_devices(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of `devices`, `shard` and `compile=graphs`; wrong types are reported elsewhere."""
    devices, device = config.get("devices"), config.get("device")
    if isinstance(devices, int) and devices > _MOST_DEVICES and not is_rank():
        problem = f"must be at most {_MOST_DEVICES} on this machine, as each device needs a process"
        yield format_error("devices", problem, value=devices)
    several = devices == "auto" or (isinstance(devices, int) and devices > 1)
    if several and device == "mps":
        yield format_error("device", "mps is a single device", "Set devices=1, or device=cpu", value=device)
    elif several and isinstance(device, str) and device.startswith("cuda:"):
        remedy = "Set device=cuda, or devices=1. CUDA_VISIBLE_DEVICES selects GPUs"
        yield format_error("device", f"names a single device, but devices is {devices}", remedy, value=device)
    if config.get("compile") == "graphs":
        yield from _validate_graphs(config)
    if _is_sharded(config.get("shard")):
        yield from _validate_shard(config["shard"], devices, device)
        yield from _validate_parts(config)


def _validate_graphs(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problems of CUDA graphs, which replay a block for one shape; `device=auto` is resolved later."""
    if config.get("device") in ("cpu", "mps"):
        problem = f"graphs needs CUDA, but device is {config['device']}"
        yield format_error("compile", problem, WITHOUT_GRAPHS, value="graphs")
    is_text = value_at(config, "task.max_length") is not None
    if is_text and value_at(config, "loader.tokens") is None and value_at(config, "loader.batching") != "fixed":
        yield format_error("compile", VARYING_SHAPES, SHAPES_REMEDY, value="graphs")
    if signatures.attribute(str(value_at(config, "perturb._target_")), "perturbs") == "outputs":
        # A second forward pass would overwrite the results of the first one before their backward pass.
        yield format_error(
            "compile", "graphs keeps the results of a single forward pass", WITHOUT_GRAPHS, value="graphs"
        )


def _is_sharded(shard: object) -> bool:
    return shard is True or (isinstance(shard, int) and not isinstance(shard, bool) and shard > 1)


def _validate_shard(shard: bool | int, devices: object, device: object) -> Iterator[str]:
    # Under torchrun and Slurm the default of `devices` stands for the number of processes.
    if devices == 1 and not is_rank():
        yield format_error("shard", "needs several devices, but devices is 1", "Set devices=N", value=shard)
    elif devices == "auto" and not is_rank() and num_processes("auto", str(device)) == 1:
        yield format_error("shard", "needs several devices, but devices=auto is 1 here", "Set shard=false", value=shard)
    elif isinstance(devices, int) and devices > 1 and devices % int(shard):
        problem = f"must divide the number of devices, {devices}"
        yield format_error("shard", problem, "Set shard=true for all devices", value=shard)


def _validate_parts(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts that are not known to work with shards."""
    optimizer = config.get("optimizer")
    target = str(optimizer.get("_target_")) if isinstance(optimizer, Mapping) else None
    if target is not None and target not in {f"{OWN}optimizer.{name}.{name}" for name in _SHARDABLE_OPTIMIZERS}:
        remedy = f"Use one of {', '.join(_SHARDABLE_OPTIMIZERS)}, or set shard=false"
        yield format_error("optimizer", "does not support shard", remedy, value=target)
    if config.get("prune") is not None:
        yield format_error("prune", "does not support shard", _WITHOUT_SHARDS)
    model = config.get("model")
    if isinstance(model, Mapping) and model.get("channels_last") is True:
        yield format_error("model.channels_last", "does not support shard", _WITHOUT_SHARDS, value=True)
    if config.get("compile") in (True, "graphs"):
        yield format_error("compile", "does not support shard", _WITHOUT_SHARDS, value=config["compile"])
