"""The random numbers of the model and the loss in a step: a function of (seed, step, piece), as of dropout."""

from __future__ import annotations

import hashlib

import torch


class StepRng:
    """Seeds torch's generators before each forward pass, so no generator has a state that a checkpoint must keep.

    The pieces of a step are numbered over all devices. So one device with two micro-batches draws the same numbers as
    two devices with one micro-batch each.

    Args:
        seed: The run's seed.
        device: The device of the model.
        keyed: False draws from torch's generators as they are. Runs of earlier versions did: their checkpoints contain
            the generators' states, and they resume only on one device.
    """

    def __init__(self, seed: int, device: torch.device, *, keyed: bool = True) -> None:
        self.keyed = keyed
        self._seed = seed
        self._device = device

    def start(self, step: int, piece: int, stream: int = 0) -> None:
        """Seed the generators for one forward pass and its loss.

        Args:
            step: The step, counted from 0.
            piece: The number of the piece in its step.
            stream: The number of the pass; passes of one number draw the same random numbers.
        """
        if not self.keyed:
            return
        digest = hashlib.blake2b(
            f"{self._seed}/{step}/{piece}{f'/{stream}' if stream else ''}".encode(), digest_size=8
        ).digest()
        key = int.from_bytes(digest, "little") >> 1
        # torch.manual_seed takes a few hundred times as long.
        torch.default_generator.manual_seed(key)
        if self._device.type == "cuda":
            index = torch.cuda.current_device() if self._device.index is None else self._device.index
            torch.cuda.default_generators[index].manual_seed(key)
        elif self._device.type == "mps":
            torch.mps.manual_seed(key)
