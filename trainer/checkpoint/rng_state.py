"""The state of every global random generator as JSON, captured and restored bit for bit."""

from __future__ import annotations

import base64
import random

import numpy as np
import torch
from torch import Tensor

from trainer.layout import Document


def capture_rng_state(*, devices: bool = True) -> Document:
    """Return the states of the global generators of Python and NumPy, and of torch and every device that is in use.

    Args:
        devices: False leaves out torch and the devices, whose generators are seeded anew in every step.
    """
    version, words, gauss = random.getstate()
    algorithm, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: Document = {
        "python": {"version": version, "words": _pack(np.array(words, np.uint32)), "gauss": gauss},
        "numpy": {
            "kind": algorithm,
            "keys": _pack(np.asarray(keys, np.uint32)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
    }
    if not devices:
        return state
    state["torch"] = _pack(torch.get_rng_state().numpy())
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [_pack(device.numpy()) for device in torch.cuda.get_rng_state_all()]
    if torch.backends.mps.is_available():
        state["mps"] = _pack(torch.mps.get_rng_state().numpy())
    return state


def restore_rng_state(state: Document) -> None:
    """Set every generator to the state that `capture_rng_state` returned.

    States of devices that this machine does not have are skipped: a run that resumes on other devices cannot draw the
    same numbers on them.
    """
    python, numpy = state["python"], state["numpy"]
    words = _unpack(python["words"], np.uint32).tolist()
    random.setstate((python["version"], tuple(words), python["gauss"]))
    keys = _unpack(numpy["keys"], np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    if "torch" not in state:
        return
    torch.set_rng_state(_as_tensor(state["torch"]))
    # The count is 0 without CUDA.
    for index, text in enumerate(state.get("cuda", [])[: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_as_tensor(text), index)
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_as_tensor(state["mps"]))


def _pack(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _unpack(text: str, dtype: type[np.generic]) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), dtype).copy()


def _as_tensor(text: str) -> Tensor:
    return torch.from_numpy(_unpack(text, np.uint8))
