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
def test_the_same_draws_follow(before):
    random.seed(before)
    np.random.seed(before)
    torch.manual_seed(before)
    for _ in range(before):
        draws()
    # An odd number of normal draws leaves the other one of the pair in the generator.
    random.gauss(0, 1)
    np.random.standard_normal()
    state = json.loads(json.dumps(capture_rng_state()))
    expected = draws()
    assert draws() != expected
    restore_rng_state(state)
    assert capture_rng_state() == state
    assert draws() == expected


def test_capturing_draws_nothing():
    torch.manual_seed(1)
    expected = torch.rand(3).tolist()
    torch.manual_seed(1)
    capture_rng_state()
    assert torch.rand(3).tolist() == expected


def test_a_device_that_is_not_there_is_passed_over():
    state = capture_rng_state()
    restore_rng_state({**state, "cuda": [state["torch"]] * 64} if not torch.cuda.is_available() else state)
    assert capture_rng_state() == state


@pytest.mark.gpu
def test_the_same_draws_follow_on_every_device():
    for index in range(torch.cuda.device_count()):
        torch.rand(7, device=f"cuda:{index}")
    state = json.loads(json.dumps(capture_rng_state()))
    assert len(state["cuda"]) == torch.cuda.device_count()
    expected = [torch.randn(9, device=f"cuda:{index}").tolist() for index in range(torch.cuda.device_count())]
    restore_rng_state(state)
    assert [torch.randn(9, device=f"cuda:{index}").tolist() for index in range(torch.cuda.device_count())] == expected
