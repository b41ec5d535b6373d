from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.exported_models import TOKEN_AXES, assert_exports_equal, assert_gradients_reach_everything
from tests.support.pretrained_folders import (
    CONFIGS,
    LANGUAGE,
    TYPED,
    Folders,
    gradients,
    language_model,
    last_hidden,
    layouts,
    model_of,
    places,
    reference,
)
from tests.support.token_batches import VOCAB_SIZE, exported_batches
from trainer.errors import ConfigError
from trainer.model.layers import pool
from trainer.model.pretrained import FAMILIES
from trainer.optimizer.parameter_groups import layer_indices
from trainer.task.tokenization import load_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_transformers(name: str, attention: Any, folder: Folders) -> None:
    from transformers import AutoModel

    inputs = layouts(6, typed=name in TYPED)[0]
    model = model_of(folder(name), attention=attention)
    own = reference(AutoModel, folder(name), **({"attn_implementation": attention} if attention else {}))
    expected = own(**inputs).last_hidden_state
    mask = inputs["attention_mask"].bool()

    torch.testing.assert_close(last_hidden(model, inputs)[mask], expected[mask], rtol=0, atol=1e-5)
    torch.testing.assert_close(model(**inputs), model.head(pool(expected, mask, "mean")), rtol=0, atol=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_packed_rows_give_what_padded_ones_do(name: str, attention: str, folder: Folders) -> None:
    model = model_of(folder(name), attention=attention).double()
    padded, packed = layouts(13, typed=True)
    weights = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert packed["input_ids"].shape[0] < 13
    torch.testing.assert_close(model(**packed), model(**padded), rtol=0, atol=1e-10)
    in_padded, in_packed = gradients(model, padded, weights), gradients(model, packed, weights)
    assert in_packed.keys() == dict(model.named_parameters()).keys()
    for parameter, gradient in in_packed.items():
        torch.testing.assert_close(gradient, in_padded[parameter], rtol=0, atol=1e-9, msg=parameter)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_language_model_has_its_own_head(name: str, folder: Folders) -> None:
    model = model_of(folder(name), **LANGUAGE)
    padded, packed = layouts(7, pooled=False)
    own = reference(language_model(name), folder(name))
    expected = own(**padded).logits.flatten(0, 1)
    for inputs, index in zip((padded, packed), places(7), strict=True):
        some = index >= 0
        output = model(**inputs, output_index=index)
        assert output.shape == (*index.shape, VOCAB_SIZE)
        torch.testing.assert_close(output[some], expected[places(7)[0]][some], rtol=0, atol=1e-5)
    everywhere, mask = model(**padded), padded["attention_mask"].bool()
    torch.testing.assert_close(everywhere[mask], own(**padded).logits[mask], rtol=0, atol=1e-5)
    # The embeddings are the head's weights where the model has tied them.
    assert sum(parameter.numel() for parameter in model.parameters()) == own.num_parameters()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_are_the_models_own(name: str, folder: Folders) -> None:
    for facts in ({}, LANGUAGE):
        model = model_of(folder(name), **facts)
        depth = model.config.num_hidden_layers
        layers = layer_indices(nn.ModuleDict({"model": model}))
        embedding = next(name for name in layers if "embed" in name or "wte" in name)

        assert layers[embedding] == 0
        assert set(layers.values()) <= set(range(depth + 2))
        assert {number for name, number in layers.items() if ".head." not in name} >= set(range(depth + 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter(name: str, folder: Folders) -> None:
    inputs = layouts(9, pooled=False, typed=True)[1]
    assert_gradients_reach_everything(model_of(folder(name), **LANGUAGE), inputs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_artifacts_are_equal(name: str, folder: Folders, tmp_path: Path) -> None:
    batches = exported_batches()
    typed = [{**batch, "token_type_ids": (batch["input_ids"] > 25).long()} for batch in batches]
    axes = {**TOKEN_AXES, "token_type_ids": TOKEN_AXES["input_ids"]}
    for facts, made, dimensions in (({}, typed, axes), (LANGUAGE, batches, TOKEN_AXES)):
        model = model_of(folder(name), **facts)
        assert_exports_equal(model, made[0], made[1:], dimensions, {"sequence": (1, 64)}, tmp_path)


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_pooling(pooling: Any, folder: Folders) -> None:
    model = model_of(folder("bert"), pooling=pooling)
    padded, packed = layouts(5)
    expected = model.head(pool(last_hidden(model, padded), padded["attention_mask"].bool(), pooling))

    for inputs in (padded, packed):
        torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-5)


def test_outputs_of_tokens_and_features(folder: Folders) -> None:
    padded = layouts(3, pooled=False)[0]
    width = padded["input_ids"].shape[1]

    assert model_of(folder("bert"), output_level="token")(**padded).shape == (3, width, 5)
    assert model_of(folder("bert"), output_level="token", num_outputs=None)(**padded).shape == (3, width, 32)
    assert model_of(folder("bert"), num_outputs=None)(**padded).shape == (3, 32)


def test_more_embeddings_than_tokens(folder: Folders) -> None:
    padded = layouts(3, pooled=False)[0]
    fewer = {"vocab_size": VOCAB_SIZE - 3, "num_outputs": VOCAB_SIZE - 3, "output_level": "token"}
    model = model_of(folder("bert"), **fewer)

    torch.testing.assert_close(
        model(**padded), model_of(folder("bert"), **LANGUAGE)(**padded)[..., :-3], rtol=0, atol=0
    )


def test_a_task_that_does_not_fit(folder: Folders, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        model_of(folder("roberta"), vocab_size=51, max_length=65)
    assert list(caught.value.messages) == [
        "path: the model has embeddings of 50 tokens, the task's tokenizer has 51. "
        "Give the model's own as task.tokenizer.",
        "path: the model has 64 positions, the task's samples have up to 65 tokens. Set task.max_length=64.",
    ]
    model_of(folder("bert"), vocab_size=30)
    assert "is task.tokenizer the model's own?" in caplog.text


def test_a_model_of_images(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^path: is a resnet, which reads no texts\. model=pretrained takes"):
        model_of(tmp_path)


def test_a_family_that_is_not_known_to_be_packed(tmp_path: Path) -> None:
    from transformers import AlbertConfig, AlbertModel

    sizes = {name: value for name, value in CONFIGS["bert"].items() if name != "max_position_embeddings"}
    own = AlbertModel(AlbertConfig(**sizes, embedding_size=16), add_pooling_layer=False).eval()
    own.save_pretrained(tmp_path)
    model = model_of(tmp_path)
    padded, packed = layouts(4, typed=True)

    assert not model.packed
    expected = own(**padded).last_hidden_state
    pooled = pool(expected, padded["attention_mask"].bool(), "mean")
    torch.testing.assert_close(model(**padded), model.head(pooled), rtol=0, atol=1e-6)
    with pytest.raises(ConfigError, match=r"loader\.batching: AlbertModel is not known .*Set it to padded"):
        model(**packed)
    with pytest.raises(ConfigError, match="path: is a albert, whose head of a language model is not known"):
        model_of(tmp_path, **LANGUAGE)


def test_no_host_waits_for_the_device(folder: Folders) -> None:
    for name in CONFIGS:
        model = model_of(folder(name)).to("meta")
        for inputs in layouts(3):
            on_meta = {key: value.to("meta") for key, value in inputs.items()}
            # On the meta device there are no values: whatever would read one on the host fails.
            if "attention_mask" not in on_meta:
                assert model(**on_meta).shape == (3, 5)


def test_its_tokenizer(folder: Folders) -> None:
    assert load_tokenizer(str(folder("bert"))).get_vocab_size() <= VOCAB_SIZE
