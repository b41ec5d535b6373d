"""Training under masks equals training torch's reparametrization; the right weights are pruned and counted."""

import json
import zlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.support.prune_reference import Layers, layers, weights_of
from trainer.ema import Ema
from trainer.errors import ConfigError
from trainer.prune.l1 import l1
from trainer.prune.masks import (
    Masks,
    measure_bytes,
    measure_sparsity,
    select_parameters,
    sparsity_report,
    total_sparsity,
)

STEPS = 6
TOLERANCE = 64 * torch.finfo(torch.float64).eps
"""The two computations group their sums differently, so a few units in the last place may differ after each step."""


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def masks_for(model: nn.Module) -> dict[str, Tensor]:
    return l1({f"{name}.weight": model.get_submodule(name).weight.detach() for name in "02"}, amount=0.4)  # type: ignore[misc]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, masks: Masks | None) -> list[float]:
    """Run a few clipped updates and return the norms of the gradients."""
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
    ],
    ids=["sgd", "adamw"],
)
def test_training_equals_torchs_reparametrization(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    ours, theirs = network(), network()
    masks = Masks(ours, masks_for(ours))
    for name in "02":
        prune.l1_unstructured(theirs.get_submodule(name), "weight", 0.4)

    norms = train(ours, make(ours.parameters()), masks)
    assert norms == pytest.approx(train(theirs, make(theirs.parameters()), None), rel=TOLERANCE, abs=0)
    for name in "02":
        prune.remove(theirs.get_submodule(name), "weight")
        for key in (f"{name}.weight", f"{name}.bias"):
            torch.testing.assert_close(
                ours.get_parameter(key), theirs.get_parameter(key), rtol=TOLERANCE, atol=TOLERANCE
            )


def test_zeros_survive_an_update_that_mixes_elements() -> None:
    model = network().float()
    masks = Masks(model, masks_for(model))
    kept = masks.state_dict()
    model[0].weight.grad = torch.where(kept["0.weight"], 1.0, 0.0) * torch.rand(8, 5)
    torch.optim.Muon([model[0].weight], lr=0.1).step()
    assert (model[0].weight[~kept["0.weight"]] != 0).any()

    masks.zero_weights()
    assert (model[0].weight[~kept["0.weight"]] == 0).all()
    assert (model[0].weight[kept["0.weight"]] != 0).all()


def test_average_keeps_the_zeros() -> None:
    model = network()
    masks = Masks(model, masks_for(model))
    ema = Ema(model, 0.9)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        train(model, optimizer, masks)
        ema.update(model)

    for name, mask in masks.state_dict().items():
        assert (ema.module.get_parameter(name)[~mask] == 0).all()
        assert (ema.module.get_parameter(name)[mask] != 0).all()


def test_overflow_in_pruned_elements_has_no_effect() -> None:
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


def test_state_dict_restores_the_masks_and_parameters_keep_their_names() -> None:
    model = network()
    names = [name for name, _ in model.named_parameters()]
    kept = masks_for(model)
    masks = Masks(model, kept)
    restored = Masks(network(), masks.state_dict())

    assert masks.names() == restored.names() == ("0.weight", "2.weight")
    assert all(torch.equal(restored.state_dict()[name], mask) for name, mask in kept.items())
    assert [name for name, _ in model.named_parameters()] == names


def test_without_masks_nothing_happens() -> None:
    model, untouched = network(), network()
    masks = Masks(model, {})
    masks.zero_gradients()
    masks.zero_weights()

    assert masks.state_dict() == {}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_default_selection_is_linear_layers_and_convolutions_except_for_the_head() -> None:
    from transformers.pytorch_utils import Conv1D

    model = layers()
    selected = select_parameters(model, None)
    assert list(selected) == list(weights_of(model))
    assert all(selected[name] is model.get_parameter(name) for name in selected)

    gpt2 = nn.ModuleDict({"attention": Conv1D(6, 2), "head": nn.Linear(6, 2)})
    assert list(select_parameters(gpt2, None)) == ["attention.weight"]


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["*linear*", "embedding.weight"], ["embedding.weight", "linear.weight"]),
        (["stack"], ["stack.0.weight", "stack.1.weight"]),
        (["*"], ["embedding.weight", "linear.weight", "stack.0.weight", "stack.1.weight", "head.weight"]),
    ],
)
def test_patterns_select_weights_and_never_biases(patterns: list[str], names: list[str]) -> None:
    assert list(select_parameters(layers(), patterns)) == names


def test_pattern_without_a_match_is_reported_with_similar_names() -> None:
    with pytest.raises(ConfigError) as caught:
        select_parameters(layers(), ["linaer.weight", "*.bias", "head"])
    misspelled, bias = caught.value.messages
    assert misspelled.startswith("targets: ")
    assert misspelled.endswith("got 'linaer.weight'. Did you mean linear.weight?")
    assert "got '*.bias'. Known: embedding.weight, head.weight, linear.weight" in bias


def test_model_with_only_a_head_needs_named_weights() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"targets: .* Name weights: prune\.targets=\[head\.weight\]"):
        select_parameters(model, None)


def test_tied_weights_are_one_weight_and_belong_to_the_embedding() -> None:
    class Tied(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(6, 11, bias=False)
            self.output.weight = self.embedding.weight

    torch.manual_seed(0)
    assert "embedding.weight" not in select_parameters(Tied(), None)
    assert list(select_parameters(Tied(), ["output"])) == ["embedding.weight"]


def test_zeros_are_counted_per_weight() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 5))
    with torch.no_grad():
        model[0].weight[0] = 0
        model[1].weight[:, 1] = -0.0
    sparsity = measure_sparsity(model, ["1.weight", "0.weight"])

    assert [(weight.name, weight.shape, weight.zeros, weight.size) for weight in sparsity] == [
        ("0.weight", (4, 3), 3, 12),
        ("1.weight", (5, 4), 5, 20),
    ]
    assert (sparsity[0].share, total_sparsity(sparsity).share) == (0.25, 8 / 32)
    report = json.loads(json.dumps(sparsity_report(sparsity)))
    assert report["layers"][1] == {"name": "1.weight", "shape": [5, 4], "zeros": 5, "size": 20, "share": 0.25}
    assert report["total"] == {"name": "total", "shape": [], "zeros": 8, "size": 32, "share": 0.25}


def test_zeros_compress() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 100)
    plain, compressed = measure_bytes(layer)
    file = save({name: tensor.contiguous() for name, tensor in layer.state_dict().items()}, {"format": "pt"})
    assert plain == len(file)
    assert 0.98 < compressed / len(zlib.compress(file)) < 1.02

    with torch.no_grad():
        layer.weight[:50] = 0
    still_plain, smaller = measure_bytes(layer)
    assert still_plain == plain
    assert 0.45 < smaller / compressed < 0.55
