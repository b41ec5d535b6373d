import copy
import inspect

import pytest
import torch

from trainer.optimizer.eager import eager

CLASSES = {
    torch.optim.AdamW: {"fused": True},
    torch.optim.Adam: {"amsgrad": True},
    torch.optim.SGD: {"momentum": 0.9},
    torch.optim.Adafactor: {},
    torch.optim.Muon: {},
}


@pytest.mark.parametrize("optimizer", CLASSES, ids=lambda optimizer: optimizer.__name__)
def test_updates_and_states_have_the_bits_of_torch(optimizer: type[torch.optim.Optimizer]) -> None:
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    weights = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    both = [
        each([("weight", weight)], lr=0.1, **CLASSES[optimizer])
        for each, weight in zip((optimizer, eager(optimizer)), weights, strict=True)
    ]
    for step in range(3):
        for made, weight in zip(both, weights, strict=True):
            made.zero_grad(set_to_none=True)
            assert weight.grad is None
            ((weight + step) ** 3).sum().backward()
            made.step()
    state, expected = both[1].state_dict(), both[0].state_dict()
    assert torch.equal(*weights)
    assert repr(state) == repr(expected)
    both[1].load_state_dict(copy.deepcopy(expected))
    assert isinstance(both[1], optimizer)
    assert repr(both[1]) == repr(both[0])


def test_hooks_see_each_step_and_no_gradient_is_recorded() -> None:
    seen = []
    weight = torch.nn.Parameter(torch.ones(2))
    made = eager(torch.optim.SGD)([weight], lr=0.1)
    made.register_step_post_hook(lambda *arguments: seen.append(torch.is_grad_enabled()))
    weight.grad = torch.ones(2)
    made.step()
    assert seen == [True]  # the hook itself runs in the caller's mode
    assert weight.requires_grad
    assert weight.grad_fn is None


def test_a_class_is_made_once() -> None:
    assert eager(torch.optim.SGD) is eager(torch.optim.SGD)
    assert inspect.unwrap(eager(torch.optim.SGD).zero_grad) is eager(torch.optim.SGD).zero_grad
