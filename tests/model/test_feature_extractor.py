import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.exported_models import IMAGE_AXES, TOKEN_AXES, assert_exports_equal, assert_onnx_equal, images
from tests.support.token_batches import MAX_LENGTH, VOCAB_SIZE, exported_batches, packed, padded, samples, token_layouts
from trainer.errors import ConfigError
from trainer.model.convnet import ConvNet
from trainer.model.feature_extractor import FeatureExtractor
from trainer.model.mlp import Mlp
from trainer.model.resnet import ResNet
from trainer.model.text_encoder import TextEncoder
from trainer.model.vit import ViT

BLOCKS = ["token_embedding", "blocks.0", "blocks.1"]


def encoder(pooling: Any = "mean", depth: int = 3) -> TextEncoder:
    torch.manual_seed(0)
    return TextEncoder(
        VOCAB_SIZE, 3, MAX_LENGTH, dim=8, depth=depth, heads=2, hidden=16, dropout=0.1, pooling=pooling
    ).eval()


def hooked_outputs(model: nn.Module, names: list[str], inputs: dict[str, Tensor]) -> list[Tensor]:
    """Return the outputs of the modules, recorded with hooks."""
    outputs: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: outputs.update({name: output}))
        for name in names
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return [outputs[name] for name in names]


def of_sample(tokens: Tensor, how: str) -> Tensor:
    return {"cls": tokens[0], "last": tokens[-1], "mean": tokens.mean(0), "max": tokens.max(0).values}[how]


def test_hidden_states_are_pooled_per_sample() -> None:
    for layout in [packed, padded]:
        texts = samples(7)
        inputs = layout(texts)
        for pooling in ("cls", "mean", "max", "last"):
            reference = encoder(pooling)
            model = FeatureExtractor(encoder(pooling), BLOCKS, 5, inputs).eval()
            rows = []
            for text in texts:
                # Each sample alone, without padding.
                states = hooked_outputs(reference, BLOCKS, padded([text], width=len(text)))
                rows.append(torch.cat([of_sample(state[0], pooling) for state in states]))
            expected = model.head(torch.stack(rows))

            assert model.num_features == 24
            assert expected.shape == (7, 5)
            torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=2e-6)


def test_matches_a_manual_forward() -> None:
    torch.manual_seed(1)
    model = encoder()
    inputs = padded(samples(4), width=MAX_LENGTH)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    hidden = model.token_embedding(ids) + model.position_embedding(torch.arange(MAX_LENGTH))
    weights = mask[..., None] / mask.sum(1)[:, None, None]
    first = model.blocks[0](hidden, mask.bool()[:, None, None, :])
    second = model.blocks[1](first, mask.bool()[:, None, None, :])
    expected = torch.cat([(first * weights).sum(1), (second * weights).sum(1)], dim=1)

    extractor = FeatureExtractor(model, ["blocks.0", "blocks.1"], None, inputs).eval()
    torch.testing.assert_close(extractor(**inputs), expected, rtol=0, atol=2e-6)


def test_feature_maps_are_averaged_over_height_and_width() -> None:
    inputs = images(6, 3, 8, 8)
    reference = ResNet(3, 3, (8, 8), depth=8, width=4, shortcut="projection").eval()
    names = [*(f"blocks.{number}" for number in range(3)), "head"]
    *maps, outputs = hooked_outputs(reference, names, inputs)
    model = FeatureExtractor(copy.deepcopy(reference), names, 2, inputs).eval()

    assert [tuple(one.shape[1:]) for one in maps] == [(4, 8, 8), (8, 4, 4), (16, 2, 2)]
    expected = torch.cat([*(one.flatten(2).mean(2) for one in maps), outputs], dim=1)
    torch.testing.assert_close(model(**inputs), model.head(expected), rtol=0, atol=1e-6)


def test_image_tokens_are_pooled_as_in_the_model() -> None:
    inputs = images(3, 1, 8, 8)
    for pooling in ("cls", "mean"):
        vit = ViT(3, 1, (8, 8), patch=4, dim=8, depth=2, heads=2, hidden=16, dropout=0.0, pooling=pooling).eval()
        (state,) = hooked_outputs(vit, ["blocks.0"], inputs)
        model = FeatureExtractor(vit, ["blocks.0"], None, inputs).eval()
        expected = state[:, 0] if pooling == "cls" else state.mean(1)
        torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-7)


def test_vectors_are_used_unchanged() -> None:
    mlp = Mlp(3, num_features=4, hidden=[6, 5], activation="relu", dropout=0.0, norm="none").eval()
    inputs = {"features": torch.randn(7, 4)}
    names = [name for name, module in mlp.named_modules() if isinstance(module, nn.Linear)]
    model = FeatureExtractor(mlp, names, None, inputs).eval()
    assert torch.equal(model(**inputs), torch.cat(hooked_outputs(mlp, names, inputs), dim=1))
    assert model.num_features == 6 + 5 + 3


def test_sample_outputs_are_used_for_packed_rows() -> None:
    backbone, inputs = encoder(), packed(samples(9))
    assert len(inputs["input_ids"]) != 9
    model = FeatureExtractor(backbone, ["head"], None, inputs).eval()
    assert torch.equal(model(**inputs), backbone(**inputs))


def test_the_last_of_several_calls_is_used() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, features: Tensor) -> Tensor:
            output: Tensor = self.layer(self.layer(features))
            return output

    twice, inputs = Twice(), {"features": torch.randn(3, 4)}
    model = FeatureExtractor(twice, ["layer"], None, inputs)
    assert torch.equal(model(**inputs), twice(**inputs))


class Tuples(nn.Module):
    """A module that returns a dict with None and a tuple, as modules of transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, features: Tensor) -> dict[str, Any]:
        return {"none": None, "states": (self.layer(features), features)}


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Tuples()
        self.list = nn.ModuleList([nn.Linear(4, 2)])
        self.whole = nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        states: Tensor = self.inner(features)["states"][0]
        self.whole(features.long())
        return states


def test_the_first_tensor_of_a_collection_is_used() -> None:
    outer, inputs = Outer(), {"features": torch.randn(3, 4)}
    model = FeatureExtractor(outer, ["inner"], None, inputs)
    assert torch.equal(model(**inputs), outer.inner.layer(inputs["features"]))


@pytest.mark.slow
def test_inner_modules_of_transformers() -> None:
    from transformers import BertConfig, BertModel

    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = BertConfig(
                vocab_size=VOCAB_SIZE, hidden_size=8, num_hidden_layers=3, num_attention_heads=2, intermediate_size=16
            )
            self.base = BertModel(config)

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            pooled: Tensor = self.base(input_ids=input_ids, attention_mask=attention_mask).pooler_output
            return pooled

    adapter, inputs = Adapter().eval(), padded(samples(4))
    with torch.no_grad():
        states = adapter.base(**inputs, output_hidden_states=True).hidden_states
    names = ["base.encoder.layer.0", "base.encoder.layer.1"]
    model = FeatureExtractor(adapter, names, None, inputs).eval()
    mask = inputs["attention_mask"].bool()
    expected = torch.stack(
        [torch.cat([state[row, mask[row]].mean(0) for state in states[1:3]]) for row in range(len(mask))]
    )
    torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=2e-6)
    frozen = {name for name, parameter in adapter.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, _ in adapter.named_parameters() if ".layer.2." in name or "pooler" in name}


class TestTraining:
    def test_parameters_without_influence_are_frozen(self) -> None:
        inputs = padded(samples(4))
        model = FeatureExtractor(encoder(), ["blocks.1", "blocks.0"], 2, inputs).train()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        above = ("backbone.blocks.2.", "backbone.norm.", "backbone.head.")
        assert frozen == {name for name, _ in model.named_parameters() if name.startswith(above)}

        model(**inputs).pow(2).sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name not in frozen), name

    def test_frozen_parameters_stay_frozen(self) -> None:
        backbone = encoder().requires_grad_(False)
        model = FeatureExtractor(backbone, ["blocks.0"], 2, padded(samples(4)))
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
            "head.weight",
            "head.bias",
        }

    def test_gradients_match_the_hooked_outputs(self) -> None:
        inputs = packed(samples(5))
        model = FeatureExtractor(encoder().double(), ["blocks.1"], None, inputs).eval()
        (state,) = hooked_outputs(model.backbone, ["blocks.1"], inputs)
        index = inputs["token_index"]
        flat = state.flatten(0, 1)
        expected = torch.stack([flat[places[places >= 0]].mean(0) for places in index])
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        wanted = torch.autograd.grad(expected.pow(3).sum(), weights)
        for found, gradient in zip(torch.autograd.grad(model(**inputs).pow(3).sum(), weights), wanted, strict=True):
            torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)


class TestDryRun:
    def test_it_changes_no_random_state_mode_or_statistics(self) -> None:
        resnet = ResNet(3, 3, (8, 8), depth=8, width=4, shortcut="projection").train()
        resnet.blocks[1].eval()
        modes = {name: module.training for name, module in resnet.named_modules()}
        before = {name: buffer.clone() for name, buffer in resnet.named_buffers()}
        state = torch.get_rng_state()
        FeatureExtractor(resnet, ["blocks.0"], None, images(4, 3, 8, 8))
        assert torch.equal(torch.get_rng_state(), state)
        assert {name: module.training for name, module in resnet.named_modules()} == modes
        assert all(torch.equal(buffer, before[name]) for name, buffer in resnet.named_buffers())
        assert all(parameter.grad is None for parameter in resnet.parameters())

    def test_it_works_under_no_grad(self) -> None:
        with torch.no_grad():
            model = FeatureExtractor(encoder(), ["blocks.0"], 2, padded(samples(4)))
        assert model.backbone.blocks[0].attention_output.weight.requires_grad
        assert not model.backbone.blocks[1].attention_output.weight.requires_grad


def test_forward_has_the_signature_of_the_model() -> None:
    backbone, inputs = encoder(), padded(samples(4))
    model = FeatureExtractor(backbone, ["blocks.0"], 2, inputs).eval()
    assert inspect.signature(model.forward) == inspect.signature(backbone.forward)
    inspect.signature(model.forward).bind(**packed(samples(2)))
    with pytest.raises(TypeError):
        inspect.signature(model.forward).bind(pixel_values=1)
    assert torch.equal(model(inputs["input_ids"], inputs["attention_mask"]), model(**inputs))


def test_a_copy_is_independent() -> None:
    inputs = padded(samples(4))
    model = FeatureExtractor(encoder(), ["blocks.0"], 2, inputs).eval()
    before = model(**inputs)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    assert twin.forward.__self__ is twin
    assert torch.equal(model(**inputs), before)
    assert not torch.equal(twin(**inputs), before)
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(**inputs), before)


def test_checkpointed_blocks_keep_no_outputs() -> None:
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, features: Tensor) -> Tensor:
            output: Tensor = checkpoint(self.layer, features, use_reentrant=False)
            return output

    inputs = {"features": torch.randn(3, 4)}
    model = FeatureExtractor(Checkpointed(), ["layer"], 2, inputs)
    model(**inputs).sum().backward()
    assert model.backbone.layer.weight.grad is not None
    assert model.backbone.layer.kept is None
    copy.deepcopy(model)


@pytest.mark.slow
def test_compiled_outputs_match() -> None:
    texts = samples(6)
    model = FeatureExtractor(encoder(), BLOCKS, 5, padded(texts)).eval()
    expected = [model(**inputs) for inputs in (packed(texts), packed(texts[:3]))]
    model.compile(dynamic=True, backend="eager", fullgraph=True)
    for inputs, wanted in zip((packed(texts), packed(texts[:3])), expected, strict=True):
        torch.testing.assert_close(model(**inputs), wanted, rtol=0, atol=1e-6)


def token_case() -> tuple[FeatureExtractor, list[dict[str, Tensor]]]:
    batches = exported_batches()
    return FeatureExtractor(encoder(), ["blocks.0", "blocks.1"], 4, batches[0]), batches


def image_case() -> tuple[FeatureExtractor, list[dict[str, Tensor]]]:
    batches = [images(count, 1, 8, 8, seed=count) for count in (4, 1, 9)]
    convnet = ConvNet(3, 1, (8, 8), channels=(4, 6), hidden=[5])
    return FeatureExtractor(convnet, ["blocks.0", "blocks.2"], 4, batches[0]), batches


def test_exported_outputs_on_tokens_match(tmp_path: Path) -> None:
    model, (traced, *others) = token_case()
    assert_exports_equal(model, traced, others, TOKEN_AXES, {"sequence": (1, MAX_LENGTH)}, tmp_path)


def test_exported_outputs_on_images_match(tmp_path: Path) -> None:
    model, (traced, *others) = image_case()
    assert_exports_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
def test_onnx_outputs_match(tmp_path: Path) -> None:
    model, (traced, *others) = token_case()
    assert_onnx_equal(model, traced, others, TOKEN_AXES, {"sequence": (1, MAX_LENGTH)}, tmp_path)
    model, (traced, *others) = image_case()
    assert_onnx_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


def problems(model: nn.Module, names: list[str], inputs: dict[str, Tensor]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        FeatureExtractor(model, names, 3, inputs)
    assert all(message.startswith("features: ") for message in error.value.messages)
    return error.value.messages


def test_unknown_names_are_reported_together() -> None:
    first, second = problems(encoder(), ["block.0", "blocks.1", "xyzzy"], padded(samples(2)))
    assert "got 'block.0'. Did you mean blocks.0" in first
    assert "got 'xyzzy'. Known: token_embedding, position_embedding, dropout, blocks, norm, head" in second
    assert "at least one module" in problems(encoder(), [], padded(samples(2)))[0]
    (message,) = problems(encoder(), ["norm", "norm"], padded(samples(2)))
    assert "twice, got ['norm', 'norm']" in message


def test_modules_without_suitable_outputs_are_rejected() -> None:
    inputs = {"features": torch.randn(3, 4)}
    (message,) = problems(Outer(), ["list"], inputs)
    assert "no tensor" in message
    (message,) = problems(Outer(), ["whole"], inputs)
    assert "whole returns (3, 4) int64" in message
    (message,) = problems(encoder(), ["position_embedding"], padded(samples(3)))
    assert "position_embedding returns (64, 8) float32" in message


def test_token_level_tasks_are_rejected() -> None:
    for _, inputs in token_layouts([np.arange(3), np.arange(5)]):
        (message,) = problems(encoder(), ["blocks.0"], inputs | {"output_index": torch.zeros(2)})
        assert "one output per sample" in message
