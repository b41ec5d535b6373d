from pathlib import Path

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


def test_hidden_states_match_transformers(folder: Folders) -> None:
    for name in CONFIGS:
        from transformers import AutoModel

        inputs = layouts(6, typed=name in TYPED)[0]
        mask = inputs["attention_mask"].bool()
        for attention in (None, "eager"):
            model = model_of(folder(name), attention=attention)
            own = reference(AutoModel, folder(name), **({"attn_implementation": attention} if attention else {}))
            expected = own(**inputs).last_hidden_state

            torch.testing.assert_close(last_hidden(model, inputs)[mask], expected[mask], rtol=0, atol=1e-5)
            torch.testing.assert_close(model(**inputs), model.head(pool(expected, mask, "mean")), rtol=0, atol=1e-5)


def test_packed_rows_give_the_results_of_padded_rows(folder: Folders) -> None:
    for name in CONFIGS:
        padded, packed = layouts(13, typed=True)
        weights = torch.randn(13, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert packed["input_ids"].shape[0] < 13
        # Rotary position embeddings are computed in float32, also in a float64 model.
        tolerance = 1e-7 if name == "modernbert" else 1e-10
        for attention in ("sdpa", "eager"):
            model = model_of(folder(name), attention=attention).double()

            torch.testing.assert_close(model(**packed), model(**padded), rtol=0, atol=tolerance)
            in_padded, in_packed = gradients(model, padded, weights), gradients(model, packed, weights)
            assert in_packed.keys() == dict(model.named_parameters()).keys()
            for parameter, gradient in in_packed.items():
                torch.testing.assert_close(gradient, in_padded[parameter], rtol=0, atol=10 * tolerance, msg=parameter)


def test_a_language_model_uses_its_own_head(folder: Folders) -> None:
    for name in CONFIGS:
        model = model_of(folder(name), **LANGUAGE)
        padded, packed = layouts(7, pooled=False)
        own = reference(language_model(name), folder(name))
        expected = own(**padded).logits.flatten(0, 1)
        for inputs, index in zip((padded, packed), places(7), strict=True):
            chosen = index >= 0
            output = model(**inputs, output_index=index)
            assert output.shape == (*index.shape, VOCAB_SIZE)
            torch.testing.assert_close(output[chosen], expected[places(7)[0]][chosen], rtol=0, atol=1e-5)
        everywhere, mask = model(**padded), padded["attention_mask"].bool()
        torch.testing.assert_close(everywhere[mask], own(**padded).logits[mask], rtol=0, atol=1e-5)
        # Tied embeddings are counted once.
        assert sum(parameter.numel() for parameter in model.parameters()) == own.num_parameters()


def test_optimizer_layers_are_the_models_layers(folder: Folders) -> None:
    for name in CONFIGS:
        for arguments in ({}, LANGUAGE):
            model = model_of(folder(name), **arguments)
            depth = model.config.num_hidden_layers
            layers = layer_indices(nn.ModuleDict({"model": model}))
            embedding = next(name for name in layers if "embed" in name or "wte" in name)

            assert layers[embedding] == 0
            assert set(layers.values()) <= set(range(depth + 2))
            assert {number for name, number in layers.items() if ".head." not in name} >= set(range(depth + 1))


def test_gradients_reach_every_parameter(folder: Folders) -> None:
    inputs = layouts(9, pooled=False, typed=True)[1]
    for name in CONFIGS:
        assert_gradients_reach_everything(model_of(folder(name), **LANGUAGE), inputs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_exported_outputs_match(name: str, folder: Folders, tmp_path: Path) -> None:
    batches = exported_batches()
    typed = [{**batch, "token_type_ids": (batch["input_ids"] > 25).long()} for batch in batches]
    axes = {**TOKEN_AXES, "token_type_ids": TOKEN_AXES["input_ids"]}
    for facts, made, dimensions in (({}, typed, axes), (LANGUAGE, batches, TOKEN_AXES)):
        model = model_of(folder(name), **facts)
        assert_exports_equal(model, made[0], made[1:], dimensions, {"sequence": (1, 64)}, tmp_path)


def test_pooling(folder: Folders) -> None:
    padded, packed = layouts(5)
    for pooling in ("cls", "mean", "max", "last"):
        model = model_of(folder("bert"), pooling=pooling)
        expected = model.head(pool(last_hidden(model, padded), padded["attention_mask"].bool(), pooling))

        for inputs in (padded, packed):
            torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-5)


def test_token_outputs_and_features(folder: Folders) -> None:
    padded = layouts(3, pooled=False)[0]
    width = padded["input_ids"].shape[1]

    assert model_of(folder("bert"), output_level="token")(**padded).shape == (3, width, 5)
    assert model_of(folder("bert"), output_level="token", num_outputs=None)(**padded).shape == (3, width, 32)
    assert model_of(folder("bert"), num_outputs=None)(**padded).shape == (3, 32)


def test_extra_embeddings_have_no_outputs(folder: Folders) -> None:
    padded = layouts(3, pooled=False)[0]
    fewer = {"vocab_size": VOCAB_SIZE - 3, "num_outputs": VOCAB_SIZE - 3, "output_level": "token"}
    model = model_of(folder("bert"), **fewer)

    torch.testing.assert_close(
        model(**padded), model_of(folder("bert"), **LANGUAGE)(**padded)[..., :-3], rtol=0, atol=0
    )


def test_a_task_that_does_not_fit_is_rejected(folder: Folders, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as error:
        model_of(folder("roberta"), vocab_size=51, max_length=65)
    vocabulary, length = error.value.messages
    assert vocabulary.startswith("path: the model has embeddings of 50 tokens, the task's tokenizer has 51.")
    assert length.startswith("path: the model has 64 positions, ")
    assert "Set task.max_length=64." in length
    model_of(folder("bert"), vocab_size=30)
    assert "has 30 tokens, but the model has embeddings of 50" in caplog.text


def test_remedy_for_added_tokens_enlarges_the_model(folder: Folders, tmp_path: Path) -> None:
    from transformers import AutoModel

    with pytest.raises(ConfigError) as error:
        model_of(folder("bert"), vocab_size=VOCAB_SIZE + 3)
    _, _, code = str(error.value).removesuffix(".").partition("enlarge the model in Python: ")
    exec(code, {"model": AutoModel.from_pretrained(folder("bert")), "FOLDER": tmp_path})

    assert model_of(tmp_path, vocab_size=VOCAB_SIZE + 3).base.get_input_embeddings().num_embeddings == VOCAB_SIZE + 3


def test_an_image_model_is_rejected(tmp_path: Path) -> None:
    from transformers import ResNetConfig, ResNetModel

    ResNetModel(ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1])).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"^path: is a resnet, .*model=pretrained_image"):
        model_of(tmp_path)


def test_an_unknown_family_is_only_padded(tmp_path: Path) -> None:
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
    with pytest.raises(ConfigError, match=r"^loader\.batching: AlbertModel .*Set it to padded"):
        model(**packed)
    with pytest.raises(ConfigError, match=r"^path: is a albert, .*head is not supported"):
        model_of(tmp_path, **LANGUAGE)


def test_forward_does_not_synchronize_with_the_host(folder: Folders) -> None:
    for name in CONFIGS:
        model = model_of(folder(name)).to("meta")
        for inputs in layouts(3):
            on_meta = {key: value.to("meta") for key, value in inputs.items()}
            # The meta device has no values, so reading one on the host fails.
            if "attention_mask" not in on_meta:
                assert model(**on_meta).shape == (3, 5)


def test_the_folders_tokenizer_is_loaded(folder: Folders) -> None:
    assert load_tokenizer(str(folder("bert"))).get_vocab_size() <= VOCAB_SIZE
