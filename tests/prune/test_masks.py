"""Training under masks is what torch's own reparametrization trains, and the zeros stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from trainer.ema import Ema
from trainer.prune.l1 import l1
from trainer.prune.masks import Masks

STEPS = 6
TOLERANCE = 64 * torch.finfo(torch.float64).eps
"""The two computations group their sums differently, so a few units in the last place may differ after each step."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def masks_for(model: nn.Module) -> dict[str, Tensor]:
    return l1({f"{name}.weight": model.get_submodule(name).weight.detach() for name in "02"}, amount=0.4)  # type: ignore[misc]


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks | None) -> list[float]:
    """Clipped updates; the norms of the gradients."""
    generator = torch.Generator().manual_seed(1)
    norms = []
    for _ in range(STEPS):
        x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
        optimizer.zero_grad(set_to_none=True)
        model(x).square().sum().backward()
        if masks is not None:
            masks.zero_gradients()
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norms.append(nn.utils.clip_grad_norm_(parameters, 0.5).item())
        optimizer.step()
        if masks is not None:
            masks.zero_weights()
    return norms


@pytest.mark.parametrize(
    "make",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.01),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.01),
    ],
    ids=["sgd", "adamw", "rmsprop"],
)
def test_it_is_torchs_reparametrization(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    ours, theirs = network(), network()
    masks = Masks(ours, masks_for(ours))
    for name in "02":
        prune.l1_unstructured(theirs.get_submodule(name), "weight", 0.4)

    norms = trained(ours, make(ours.parameters()), masks)
    assert norms == pytest.approx(trained(theirs, make(theirs.parameters()), None), rel=TOLERANCE, abs=0)
    for name in "02":
        prune.remove(theirs.get_submodule(name), "weight")
        for key in (f"{name}.weight", f"{name}.bias"):
            torch.testing.assert_close(
                ours.get_parameter(key), theirs.get_parameter(key), rtol=TOLERANCE, atol=TOLERANCE
            )


def test_an_update_that_mixes_the_elements_leaves_the_zeros_too() -> None:
    model = network().float()
    masks = Masks(model, masks_for(model))
    kept = masks.state_dict()
    model[0].weight.grad = torch.where(kept["0.weight"], 1.0, 0.0) * torch.rand(8, 5)
    torch.optim.Muon([model[0].weight], lr=0.1).step()
    assert (model[0].weight[~kept["0.weight"]] != 0).any()

    masks.zero_weights()
    assert (model[0].weight[~kept["0.weight"]] == 0).all()
    assert (model[0].weight[kept["0.weight"]] != 0).all()


def test_the_average_keeps_the_zeros() -> None:
    model = network()
    masks = Masks(model, masks_for(model))
    ema = Ema(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        trained(model, optimizer, masks)
        ema.update(model)

    for name, mask in masks.state_dict().items():
        assert (ema.module.get_parameter(name)[~mask] == 0).all()
        assert (ema.module.get_parameter(name)[mask] != 0).all()


def test_what_overflows_where_nothing_is_has_no_consequence() -> None:
    model = network()
    masks = Masks(model, masks_for(model))
    pruned = ~masks.state_dict()["0.weight"]
    model[0].weight.grad = torch.where(pruned, torch.inf, 1.0).double()
    masks.zero_gradients()
    assert torch.equal(model[0].weight.grad, (~pruned).double())

    with torch.no_grad():
        model[0].weight[pruned] = torch.nan
    masks.zero_weights()
    assert torch.isfinite(model[0].weight).all()
    assert not model[0].weight[pruned].signbit().any()


def test_masks_are_what_is_kept_and_the_names_of_the_model_stay() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    kept = masks_for(model)
    masks = Masks(model, kept)
    again = Masks(network(), masks.state_dict())

    assert masks.names() == again.names() == ("0.weight", "2.weight")
    assert all(torch.equal(again.state_dict()[name], mask) for name, mask in kept.items())
    assert [name for name, _ in model.named_parameters()] == names


def test_without_masks_nothing_happens() -> None:
    model, untouched = network(), network()
    masks = Masks(model, {})
    masks.zero_gradients()
    masks.zero_weights()

    assert masks.state_dict() == {}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))
