"""The state of every global random generator as JSON, and back, bit for bit."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor


def capture_rng_state() -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, of every device that is in use included."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "words": _pack(np.array(words, np.uint32)), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": _pack(np.asarray(keys, np.uint32)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": _pack(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [_pack(device.numpy()) for device in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = _pack(torch.mps.get_rng_state().numpy())
    return state


def restore_rng_state(state: dict[str, Any]) -> None:
    """Puts every generator back to where `capture_rng_state` found it.

    States of devices that this machine does not have are passed over: where a run goes on with other devices, its draws
    on them cannot be the same.
    """
    python, numpy = state["python"], state["numpy"]
    words = _unpack(python["words"], np.uint32).tolist()
    random.setstate((python["version"], tuple(words), python["gauss"]))
    keys = _unpack(numpy["keys"], np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(_bytes(state["torch"]))
    # The count is 0 where there is no such device.
    for index, text in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_bytes(text), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_bytes(state["mps"]))


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str, dtype: type[np.generic]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).copy()


def _bytes(text: str) -> Tensor:
    return torch.from_numpy(_unpack(text, np.uint8))
