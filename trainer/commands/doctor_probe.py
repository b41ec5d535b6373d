"""The facts about torch and the other libraries, found by a process of its own, which may crash without harm.

    python -m trainer.commands.doctor_probe

It prints a JSON document: `facts` by name, and `failures` (the libraries that cannot be imported, with the reason).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

_LIBRARIES = ("numpy", "safetensors", "tokenizers", "PIL", "pyarrow", "onnxruntime", "transformers", "datasets")


def main() -> int:
    """Print the document. Each fact is printed as soon as it is known: what is found before a crash is kept."""
    failures: dict[str, str] = {}
    for name in ("torch", *_LIBRARIES):
        try:
            import_module(name)
        except Exception as error:  # a broken library may raise anything
            failures[name] = f"{type(error).__name__}: {error}"
        _print("failures", failures)
    if "torch" not in failures:
        for name, fact in _FACTS.items():
            try:
                _print(name, fact())
            except Exception as error:
                _print(name, {"error": f"{type(error).__name__}: {error}".splitlines()[0]})
    return 0


def _print(name: str, value: object) -> None:
    print(json.dumps({name: value}), flush=True)


def _build() -> dict[str, Any]:
    import torch

    return {"version": torch.__version__, "cuda": torch.version.cuda, "threads": torch.get_num_threads()}


def _devices() -> list[dict[str, Any]]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        x = torch.ones(64, 64, device=f"cuda:{index}")
        devices.append(
            {
                "name": f"cuda:{index} {properties.name}",
                "free": free,
                "total": total,
                "works": bool(((x @ x) == 64).all()),
                "bf16": torch.cuda.is_bf16_supported(),
            }
        )
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "works": True, "bf16": True})
    return devices


def _attention() -> dict[str, list[str]]:
    """Return the kernels of attention that run on the CPU and on the first GPU."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    kernels: dict[str, list[str]] = {}
    for device in ("cpu", *(["cuda"] if torch.cuda.is_available() else [])):
        x = torch.ones(1, 2, 16, 64, device=device, dtype=torch.float32 if device == "cpu" else torch.bfloat16)
        kernels[device] = []
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            try:
                with sdpa_kernel(getattr(SDPBackend, name)):
                    scaled_dot_product_attention(x, x, x)
            except (RuntimeError, AttributeError):
                continue
            kernels[device].append(name.removesuffix("_ATTENTION").lower())
    return kernels


def _memory() -> int:
    from trainer.builders.memory import host_limit

    return host_limit(1)


_FACTS: dict[str, Callable[[], object]] = {
    "torch": _build,
    "devices": _devices,
    "attention": _attention,
    "memory": _memory,
}

if __name__ == "__main__":
    # torch warns of backends that it does not choose.
    import warnings

    warnings.simplefilter("ignore")
    sys.exit(main())
