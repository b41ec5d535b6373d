"""Capture and restoration of the global random generators."""

import json
import random

import numpy as np
import pytest
import torch

from trainer.checkpoint.rng_state import capture_rng_state, restore_rng_state


def draws():
    return (
        [random.random() for _ in range(5)],
        random.gauss(0, 1),
        np.random.random(5).tolist(),
        float(np.random.standard_normal()),
        torch.rand(5).tolist(),
        torch.randn(20).tolist(),
        torch.randperm(9).tolist(),
    )


@pytest.mark.parametrize("before", [0, 1, 700])
def test_restored_state_repeats_the_draws(before):
    random.seed(before)
    np.random.seed(before)
    torch.manual_seed(before)
    for _ in range(before):
        draws()
    # An odd number of normal draws leaves the second of a pair in the generator.
    random.gauss(0, 1)
    np.random.standard_normal()
    state = json.loads(json.dumps(capture_rng_state()))
    expected = draws()
    assert draws() != expected
    restore_rng_state(state)
    assert capture_rng_state() == state
    assert draws() == expected


def test_capture_draws_nothing():
    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    capture_rng_state()
    assert torch.rand(3).tolist() == expected


def test_states_of_absent_devices_are_skipped():
    state = capture_rng_state()
    restore_rng_state({**state, "cuda": [state["torch"]] * 64} if not torch.cuda.is_available() else state)
    assert capture_rng_state() == state


@pytest.mark.gpu
def test_restored_state_repeats_the_draws_of_every_device():
    for index in range(torch.cuda.device_count()):
        torch.rand(7, device=f"cuda:{index}")
    state = json.loads(json.dumps(capture_rng_state()))
    assert len(state["cuda"]) == torch.cuda.device_count()
    expected = [torch.randn(9, device=f"cuda:{index}").tolist() for index in range(torch.cuda.device_count())]
    restore_rng_state(state)
    assert [torch.randn(9, device=f"cuda:{index}").tolist() for index in range(torch.cuda.device_count())] == expected
