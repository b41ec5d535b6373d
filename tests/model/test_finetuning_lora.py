import copy
import math
import sys
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.token_batches import VOCAB_SIZE, padded, samples
from trainer.errors import ConfigError
from trainer.model.finetuning import apply_lora, merge_lora
from trainer.model.text_encoder import TextEncoder

LAYERS = ["query_key_value", "attention_output", "feed_forward.0", "feed_forward.2"]


def encoder(depth: int = 2) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(VOCAB_SIZE, 3, 64, dim=8, depth=depth, heads=2, hidden=16, dropout=0.0, pooling="mean")


def randomize(model: nn.Module) -> None:
    """Fill B, which is 0 at first, with random values."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


class TestWithPeft:
    def test_only_adapters_and_the_head_are_trainable(self) -> None:
        cases: list[Any] = [
            ("all-linear", [f"blocks.{block}.{layer}" for block in range(2) for layer in LAYERS]),
            (["query_key_value"], ["blocks.0.query_key_value", "blocks.1.query_key_value"]),
            (["blocks.1.feed_forward.0", "blocks.0.attention_output"], None),
        ]
        for targets, names in cases:
            model, inputs = encoder().eval(), padded(samples(4))
            names = names or targets
            before = model(**inputs)

            assert list(apply_lora(model, 3, 6.0, 0.1, targets)) == names
            assert trainable(model) == {"head.weight", "head.bias"} | {
                f"{name}.lora_{part}.default.weight" for name in names for part in "AB"
            }
            assert torch.equal(model.eval()(**inputs), before)
            randomize(model)
            model.train()(**inputs).pow(2).sum().backward()
            for name, parameter in model.named_parameters():
                assert (parameter.grad is not None) == (name in trainable(model)), name
                assert parameter.grad is None or parameter.grad.abs().sum() > 0, name

    def test_output_includes_the_low_rank_product(self) -> None:
        layer = nn.Sequential(nn.Linear(5, 4))
        weight, bias = layer[0].weight.detach().clone(), layer[0].bias.detach().clone()
        apply_lora(layer, 2, 3.0, 0.0, ["0"])
        randomize(layer)
        state = {name: tensor.detach() for name, tensor in layer.named_parameters()}
        product = state["0.lora_B.default.weight"] @ state["0.lora_A.default.weight"]
        x = torch.randn(7, 5)
        torch.testing.assert_close(layer(x), x @ (weight + 3.0 / 2 * product).T + bias, rtol=0, atol=1e-5)

    def test_merging_restores_the_model(self) -> None:
        for targets in ["all-linear", ["token_embedding", "attention_output"]]:
            model, inputs = encoder().eval(), padded(samples(4))
            names = [(name, parameter.shape) for name, parameter in model.named_parameters()]
            types = [type(module) for module in model.modules()]
            before = model(**inputs)
            apply_lora(model, 4, 8.0, 0.2, targets)
            for parameter_name, parameter in model.named_parameters():
                if "lora_" in parameter_name:
                    nn.init.normal_(parameter, std=0.1)
            changed = model.eval()(**inputs)
            merge_lora(model)

            assert (changed - before).abs().max() > 1e-3
            torch.testing.assert_close(model(**inputs), changed, rtol=0, atol=2e-6)
            assert sorted((name, parameter.shape) for name, parameter in model.named_parameters()) == sorted(names)
            assert [type(module) for module in model.modules()] == types
            encoder().load_state_dict(model.state_dict())

    def test_a_copy_is_independent(self) -> None:
        model, inputs = encoder(), padded(samples(4))
        apply_lora(model, 2, 4.0, 0.0, "all-linear")
        randomize(model)
        twin = copy.deepcopy(model)
        assert torch.equal(twin(**inputs), model(**inputs))
        merge_lora(twin)
        assert any("lora_" in name for name in model.state_dict())

    def test_a_frozen_head_stays_frozen(self) -> None:
        model = encoder()
        model.head.requires_grad_(False)
        apply_lora(model, 2, 4.0, 0.0, ["attention_output"])
        assert not any("head" in name for name in trainable(model))

    def test_weights_that_are_not_finite_are_not_merged(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3))
        apply_lora(model, 2, 4.0, 0.0, ["0"])
        nn.init.constant_(model[0].lora_B["default"].weight, math.inf)
        with pytest.raises(ConfigError, match=r"^lora: 0 cannot be merged"):
            merge_lora(model)


def test_missing_peft_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    model = encoder()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"^lora: .*peft.*pip install 'trainer\[lora\]'"):
        apply_lora(model, 2, 4.0, 0.0, "all-linear")
    assert set(trainable(model)) == set(before)


def test_a_model_without_lora_is_not_changed_by_merging() -> None:
    model = encoder()
    modules = list(model.modules())
    merge_lora(model)
    assert list(model.modules()) == modules


def test_problems_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        apply_lora(encoder(), 0, -1.0, 1.0, ["queri_key_value", "blocks.0", "norm"])
    messages = error.value.messages
    assert [message.split(":")[0] for message in messages] == [
        "lora.rank",
        "lora.alpha",
        "lora.dropout",
        *["lora.targets"] * 3,
    ]
    assert "Did you mean query_key_value" in messages[3]
    assert "It contains blocks.0.query_key_value, blocks.0.attention_output" in messages[4]
    assert "got 'norm'" in messages[5]


def test_invalid_targets_are_rejected() -> None:
    cases: list[Any] = [
        (encoder(), "query_key_value", "must be a list"),
        (encoder(), [], "must be a list"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), "all-linear", "no linear layers"),
        (nn.MultiheadAttention(4, 2), ["out_proj"], "is no linear layer"),
    ]
    for model, targets, problem in cases:
        with pytest.raises(ConfigError, match=rf"^lora\.targets: .*{problem}"):
            apply_lora(model, 2, 4.0, 0.0, targets)
