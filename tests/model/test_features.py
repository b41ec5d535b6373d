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


def by_hooks(model: nn.Module, names: list[str], inputs: dict[str, Tensor]) -> list[Tensor]:
    """What the modules give, by hooks of this test."""
    found: dict[str, Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: found.update({name: output}))
        for name in names
    ]
    model(**inputs)
    for handle in handles:
        handle.remove()
    return [found[name] for name in names]


def of_sample(tokens: Tensor, how: str) -> Tensor:
    return {"cls": tokens[0], "last": tokens[-1], "mean": tokens.mean(0), "max": tokens.max(0).values}[how]


@pytest.mark.parametrize("how", ["cls", "mean", "max", "last"])
@pytest.mark.parametrize("layout", [packed, padded])
def test_hidden_states_are_pooled_sample_by_sample(how: str, layout: Any) -> None:
    texts = samples(7)
    reference, inputs = encoder(how), layout(texts)
    model = FeatureExtractor(encoder(how), BLOCKS, 5, inputs).eval()
    rows = []
    for text in texts:
        # Each sample by itself, without padding.
        states = by_hooks(reference, BLOCKS, padded([text], width=len(text)))
        rows.append(torch.cat([of_sample(state[0], how) for state in states]))
    expected = model.head(torch.stack(rows))

    assert model.num_features == 24
    assert expected.shape == (7, 5)
    torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=2e-6)


def test_by_hand() -> None:
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


def test_feature_maps_are_averaged_over_their_places() -> None:
    inputs = images(6, 3, 8, 8)
    reference = ResNet(3, 3, (8, 8), depth=8, width=4, shortcut="projection").eval()
    names = [*(f"blocks.{number}" for number in range(3)), "head"]
    *maps, outputs = by_hooks(reference, names, inputs)
    model = FeatureExtractor(copy.deepcopy(reference), names, 2, inputs).eval()

    assert [tuple(one.shape[1:]) for one in maps] == [(4, 8, 8), (8, 4, 4), (16, 2, 2)]
    expected = torch.cat([*(one.flatten(2).mean(2) for one in maps), outputs], dim=1)
    torch.testing.assert_close(model(**inputs), model.head(expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["cls", "mean"])
def test_tokens_of_images_are_pooled_as_the_model_does(how: Any) -> None:
    inputs = images(3, 1, 8, 8)
    vit = ViT(3, 1, (8, 8), patch=4, dim=8, depth=2, heads=2, hidden=16, dropout=0.0, pooling=how).eval()
    (state,) = by_hooks(vit, ["blocks.0"], inputs)
    model = FeatureExtractor(vit, ["blocks.0"], None, inputs).eval()
    torch.testing.assert_close(model(**inputs), state[:, 0] if how == "cls" else state.mean(1), rtol=0, atol=1e-7)


def test_vectors_are_taken_as_they_are() -> None:
    mlp = Mlp(3, num_features=4, hidden=[6, 5], activation="relu", dropout=0.0, norm="none").eval()
    inputs = {"features": torch.randn(7, 4)}
    names = [name for name, module in mlp.named_modules() if isinstance(module, nn.Linear)]
    model = FeatureExtractor(mlp, names, None, inputs).eval()
    assert torch.equal(model(**inputs), torch.cat(by_hooks(mlp, names, inputs), dim=1))
    assert model.num_features == 6 + 5 + 3


def test_outputs_of_samples_are_taken_in_packed_rows_too() -> None:
    backbone, inputs = encoder(), packed(samples(9))
    assert len(inputs["input_ids"]) != 9
    model = FeatureExtractor(backbone, ["head"], None, inputs).eval()
    assert torch.equal(model(**inputs), backbone(**inputs))


def test_of_several_calls_the_last_one_counts() -> None:
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
    """A module of transformers' kind: it gives a tuple whose first part is None, in a dict."""

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


def test_of_a_collection_the_first_tensor_is_taken() -> None:
    outer, inputs = Outer(), {"features": torch.randn(3, 4)}
    model = FeatureExtractor(outer, ["inner"], None, inputs)
    assert torch.equal(model(**inputs), outer.inner.layer(inputs["features"]))


@pytest.mark.slow
def test_models_of_transformers() -> None:
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
    def test_what_no_feature_depends_on_is_not_trained(self) -> None:
        inputs = padded(samples(4))
        model = FeatureExtractor(encoder(), ["blocks.1", "blocks.0"], 2, inputs).train()
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        above = ("backbone.blocks.2.", "backbone.norm.", "backbone.head.")
        assert frozen == {name for name, _ in model.named_parameters() if name.startswith(above)}

        model(**inputs).pow(2).sum().backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == (name not in frozen), name

    def test_what_was_frozen_stays_frozen(self) -> None:
        backbone = encoder().requires_grad_(False)
        model = FeatureExtractor(backbone, ["blocks.0"], 2, padded(samples(4)))
        assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == {
            "head.weight",
            "head.bias",
        }

    def test_gradients_are_those_of_the_hooks(self) -> None:
        inputs = packed(samples(5))
        model = FeatureExtractor(encoder().double(), ["blocks.1"], None, inputs).eval()
        (state,) = by_hooks(model.backbone, ["blocks.1"], inputs)
        index = inputs["token_index"]
        flat = state.flatten(0, 1)
        expected = torch.stack([flat[places[places >= 0]].mean(0) for places in index])
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        wanted = torch.autograd.grad(expected.pow(3).sum(), weights)
        for found, gradient in zip(torch.autograd.grad(model(**inputs).pow(3).sum(), weights), wanted, strict=True):
            torch.testing.assert_close(found, gradient, rtol=0, atol=1e-10)


class TestDryRun:
    def test_it_moves_neither_generators_nor_modes_nor_statistics(self) -> None:
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

    def test_it_runs_without_gradients_too(self) -> None:
        with torch.no_grad():
            model = FeatureExtractor(encoder(), ["blocks.0"], 2, padded(samples(4)))
        assert model.backbone.blocks[0].attention_output.weight.requires_grad
        assert not model.backbone.blocks[1].attention_output.weight.requires_grad


def test_the_signature_is_that_of_the_model() -> None:
    backbone, inputs = encoder(), padded(samples(4))
    model = FeatureExtractor(backbone, ["blocks.0"], 2, inputs).eval()
    assert inspect.signature(model.forward) == inspect.signature(backbone.forward)
    inspect.signature(model.forward).bind(**packed(samples(2)))
    with pytest.raises(TypeError):
        inspect.signature(model.forward).bind(pixel_values=1)
    assert torch.equal(model(inputs["input_ids"], inputs["attention_mask"]), model(**inputs))


def test_a_copy_has_features_of_its_own() -> None:
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


def test_checkpointed_blocks_leave_nothing_behind() -> None:
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
def test_compiled_it_is_the_same() -> None:
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


def test_artifacts_on_tokens_are_equal(tmp_path: Path) -> None:
    model, (traced, *others) = token_case()
    assert_exports_equal(model, traced, others, TOKEN_AXES, {"sequence": (1, MAX_LENGTH)}, tmp_path)


def test_artifacts_on_images_are_equal(tmp_path: Path) -> None:
    model, (traced, *others) = image_case()
    assert_exports_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
def test_onnx_is_equal(tmp_path: Path) -> None:
    model, (traced, *others) = token_case()
    assert_onnx_equal(model, traced, others, TOKEN_AXES, {"sequence": (1, MAX_LENGTH)}, tmp_path)
    model, (traced, *others) = image_case()
    assert_onnx_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


class TestRefusals:
    def refusal(self, model: nn.Module, names: list[str], inputs: dict[str, Tensor]) -> tuple[str, ...]:
        with pytest.raises(ConfigError) as caught:
            FeatureExtractor(model, names, 3, inputs)
        return caught.value.messages

    def test_names_come_together(self) -> None:
        assert self.refusal(encoder(), ["block.0", "blocks.1", "xyzzy"], padded(samples(2))) == (
            "features: the model has no such module, got 'block.0'. Did you mean blocks.0.",
            "features: the model has no such module, got 'xyzzy'. Known: token_embedding, position_embedding, dropout, "
            "blocks, norm, head and what is in them.",
        )
        assert self.refusal(encoder(), [], padded(samples(2)))[0].startswith("features: must name one module at least,")
        twice = self.refusal(encoder(), ["norm", "norm"], padded(samples(2)))
        assert twice == ("features: names a module twice, got ['norm', 'norm'].",)

    def test_modules_that_give_nothing_to_pool(self) -> None:
        inputs = {"features": torch.randn(3, 4)}
        assert self.refusal(Outer(), ["list"], inputs) == (
            "features: gives no tensor where the model is run, got 'list'.",
        )
        (message,) = self.refusal(Outer(), ["whole"], inputs)
        assert message.startswith("features: whole gives (3, 4) int64, which cannot be pooled.")
        texts = padded(samples(3))
        (message,) = self.refusal(encoder(), ["position_embedding"], texts)
        assert message.startswith("features: position_embedding gives (64, 8) float32, which cannot be pooled. Wanted")

    def test_outputs_of_tokens(self) -> None:
        (_, fixed), (_, rows) = token_layouts([np.arange(3), np.arange(5)])
        message = "features: are pooled to one vector a sample, and the task has outputs of tokens."
        assert self.refusal(encoder(), ["blocks.0"], rows) == (message,)
        assert self.refusal(encoder(), ["blocks.0"], fixed | {"output_index": torch.zeros(2)}) == (message,)
