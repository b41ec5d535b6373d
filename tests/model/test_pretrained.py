import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.exported import TOKEN_AXES, assert_exports_equal, assert_gradients_reach_everything
from tests.model.pretrained_folders import CONFIGS, TYPED, language_model, layouts, places, reference, save
from tests.model.token_batches import MAX_LENGTH, VOCAB_SIZE, exported_batches
from trainer.errors import ConfigError
from trainer.model.packed_attention import FAMILIES
from trainer.model.pooling import pool
from trainer.model.pretrained import Pretrained
from trainer.optimizer.groups import layers_of
from trainer.task.tokenization import load_tokenizer

KEYS: dict[str, Any] = {
    "config": {},
    "pooling": "mean",
    "attention": None,
    "gradient_checkpointing": False,
    "pretrained": True,
}
FACTS: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "num_outputs": 5, "max_length": MAX_LENGTH}
NO_DROPOUT = {
    "distilbert": ("dropout", "attention_dropout"),
    "gpt2": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
    "modernbert": (),
}
LANGUAGE = {"num_outputs": VOCAB_SIZE, "output_level": "token"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model of a family."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = save(name, tmp_path_factory.mktemp(name))
        return made[name]

    return find


def model_of(path: Path, **changes: Any) -> Pretrained:
    torch.manual_seed(0)
    return Pretrained(**(FACTS | KEYS | {"path": str(path)} | changes)).eval()


def last_hidden(model: Pretrained, inputs: dict[str, Tensor]) -> Tensor:
    """The base model's hidden states in a forward."""
    seen: list[Tensor] = []
    hook = model.base.register_forward_hook(lambda *arguments: seen.append(arguments[-1].last_hidden_state))
    model(**inputs)
    hook.remove()
    return seen[0]


def gradients(model: nn.Module, inputs: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (model(**inputs) * weights).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}


def test_every_family_is_tested() -> None:
    assert CONFIGS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("attention", [None, "eager"])
@pytest.mark.parametrize("name", CONFIGS)
def test_hidden_states_are_those_of_transformers(name: str, attention: Any, folder: Callable[[str], Path]) -> None:
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
def test_packed_rows_give_what_padded_ones_do(name: str, attention: str, folder: Callable[[str], Path]) -> None:
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
def test_a_language_model_has_its_own_head(name: str, folder: Callable[[str], Path]) -> None:
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
def test_made_again_without_its_folder(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    copy = shutil.copytree(folder(name), tmp_path / "copy")
    for facts in ({}, LANGUAGE):
        model = model_of(copy, **facts, config={"initializer_range": 0.5})
        architecture = json.loads(json.dumps(model.architecture))
        again = model_of(tmp_path / "nowhere", **facts, architecture=architecture)

        assert again.architecture == model.architecture
        again.load_state_dict(model.state_dict())
        inputs = layouts(4, pooled=not facts)[1]
        assert torch.equal(again(**inputs), model(**inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_layers_are_the_models_own(name: str, folder: Callable[[str], Path]) -> None:
    for facts in ({}, LANGUAGE):
        model = model_of(folder(name), **facts)
        depth = model.config.num_hidden_layers
        layers = layers_of(nn.ModuleDict({"model": model}))
        embedding = next(name for name in layers if "embed" in name or "wte" in name)

        assert layers[embedding] == 0
        assert set(layers.values()) <= set(range(depth + 2))
        assert {number for name, number in layers.items() if ".head." not in name} >= set(range(depth + 1))


@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_reach_every_parameter(name: str, folder: Callable[[str], Path]) -> None:
    inputs = layouts(9, pooled=False, typed=True)[1]
    assert_gradients_reach_everything(model_of(folder(name), **LANGUAGE), inputs)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.slow
def test_artifacts_are_equal(name: str, folder: Callable[[str], Path], tmp_path: Path) -> None:
    batches = exported_batches()
    typed = [{**batch, "token_type_ids": (batch["input_ids"] > 25).long()} for batch in batches]
    axes = {**TOKEN_AXES, "token_type_ids": TOKEN_AXES["input_ids"]}
    for facts, made, dimensions in (({}, typed, axes), (LANGUAGE, batches, TOKEN_AXES)):
        model = model_of(folder(name), **facts)
        assert_exports_equal(model, made[0], made[1:], dimensions, {"sequence": (1, 64)}, tmp_path)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_checkpointed_gradients_are_the_same(name: str, folder: Callable[[str], Path]) -> None:
    inputs, weights = layouts(5)[1], torch.ones(5, 5)
    found = []
    for checkpointing in (False, True):
        model = model_of(folder(name), gradient_checkpointing=checkpointing)
        blocks = [
            part for part in model.modules() if hasattr(part, "gradient_checkpointing") and part is not model.base
        ]
        assert {part.gradient_checkpointing for part in blocks} == {checkpointing}
        # With dropout, so that the draws are the same, too.
        model.train()
        torch.manual_seed(3)
        found.append(gradients(model, inputs, weights))

    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(gradient, found[1][key]) for key, gradient in found[0].items())


def test_a_changed_config(folder: Callable[[str], Path]) -> None:
    from transformers import AutoConfig, AutoModel

    changes = {"num_hidden_layers": 1, "hidden_act": "relu", "hidden_dropout_prob": 0.4}
    model = model_of(folder("bert"), config=changes)
    own = reference(AutoModel, folder("bert"), config=AutoConfig.from_pretrained(folder("bert"), **changes))
    inputs = layouts(3)[0]
    mask = inputs["attention_mask"].bool()
    expected = own(**inputs).last_hidden_state[mask]

    torch.testing.assert_close(last_hidden(model, inputs)[mask], expected, rtol=0, atol=1e-6)
    assert not torch.allclose(last_hidden(model_of(folder("bert")), inputs)[mask], expected, atol=1e-2)
    assert model.base.embeddings.dropout.p == 0.4
    assert model.architecture["config"]["hidden_act"] == "relu"


def test_the_dropout_of_every_family_is_a_key(folder: Callable[[str], Path]) -> None:
    inputs = layouts(3)[0]
    for name in CONFIGS:
        keys = NO_DROPOUT.get(name, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
        model = model_of(folder(name), config=dict.fromkeys(keys, 0.0)).train()
        assert torch.equal(model(**inputs), model(**inputs)), name


def test_a_nested_key(folder: Callable[[str], Path]) -> None:
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 500.0}}}
    rope = model_of(folder("modernbert"), config=nested).config.rope_parameters

    assert rope["full_attention"] == {"rope_type": "default", "rope_theta": 500.0}
    assert rope["sliding_attention"]["rope_theta"] == 10_000.0
    with pytest.raises(
        ConfigError, match=r"^config\.rope_parameters\.full_attention\.rope_thet: .*Did you mean rope_theta"
    ):
        model_of(folder("modernbert"), config={"rope_parameters": {"full_attention": {"rope_thet": 500.0}}})


def test_keys_that_the_config_does_not_have(folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError) as caught:
        model_of(folder("bert"), config={"hiden_dropout_prob": 0.2, "torchscript": True, "return_dict": False})

    assert [message.split(":")[0] for message in caught.value.messages] == [
        "config.hiden_dropout_prob",
        "config.torchscript",
        "config.return_dict",
    ]
    assert "Did you mean hidden_dropout_prob" in caught.value.messages[0]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_dropout_prob": "a lot"}, "config: is refused by .*hidden_dropout_prob"),
        ({"hidden_act": "nix"}, r"config: no model can be made of it \(KeyError"),
        ({"num_attention_heads": 5}, r"config: no model can be made of it \(ValueError: .*32.*5"),
        ({"num_hidden_layers": 3}, r"path: has no weights for encoder\.layer\.2\..* and 11 more"),
        (
            {"intermediate_size": 40},
            r"path: has weights of other shapes: encoder\.layer\.0.*\(48,\), the model \(40,\)",
        ),
    ],
)
def test_a_config_that_does_not_fit(config: dict[str, Any], message: str, folder: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(folder("bert"), config=config)


def test_random_weights_on_request(folder: Callable[[str], Path]) -> None:
    model = model_of(folder("bert"), pretrained=False, config={"num_hidden_layers": 3, "hidden_size": 64})
    torch.manual_seed(5)
    other = Pretrained(**(FACTS | KEYS | {"path": str(folder("bert")), "pretrained": False}))

    assert len(model.base.encoder.layer) == 3
    assert model(**layouts(3)[1]).shape == (3, 5)
    assert not torch.equal(
        other.base.embeddings.word_embeddings.weight, model_of(folder("bert")).base.embeddings.word_embeddings.weight
    )


def test_weights_of_half_precision_are_trained_in_full(folder: Callable[[str], Path], tmp_path: Path) -> None:
    from transformers import AutoModel

    model = reference(AutoModel, folder("bert"))
    model.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"

    for pretrained in (True, False):
        loaded = model_of(tmp_path, pretrained=pretrained)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    again = model_of(tmp_path, architecture=loaded.architecture)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_what_is_new_and_what_is_not_used_is_told(
    folder: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModel

    with caplog.at_level(logging.INFO):
        model_of(folder("bert"))
    assert f"weights of {folder('bert')} loaded; not used: cls.predictions" in caplog.text
    assert "new, with random weights: a linear head of 5 outputs" in caplog.text
    reference(AutoModel, folder("bert")).save_pretrained(tmp_path)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        model_of(tmp_path, **LANGUAGE)
    assert "new, with random weights: cls.predictions.bias" in caplog.text
    # Neither progress bars nor reports of transformers.
    assert capfd.readouterr().err.count("Loading weights") == 0


def test_the_settings_of_transformers_stay_as_they_were(folder: Callable[[str], Path]) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    model_of(folder("bert"))

    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


@pytest.mark.parametrize("pooling", ["cls", "mean", "max", "last"])
def test_pooling(pooling: Any, folder: Callable[[str], Path]) -> None:
    model = model_of(folder("bert"), pooling=pooling)
    padded, packed = layouts(5)
    expected = model.head(pool(last_hidden(model, padded), padded["attention_mask"].bool(), pooling))

    for inputs in (padded, packed):
        torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-5)


def test_outputs_of_tokens_and_features(folder: Callable[[str], Path]) -> None:
    padded = layouts(3, pooled=False)[0]
    width = padded["input_ids"].shape[1]

    assert model_of(folder("bert"), output_level="token")(**padded).shape == (3, width, 5)
    assert model_of(folder("bert"), output_level="token", num_outputs=None)(**padded).shape == (3, width, 32)
    assert model_of(folder("bert"), num_outputs=None)(**padded).shape == (3, 32)


def test_more_embeddings_than_tokens(folder: Callable[[str], Path]) -> None:
    padded = layouts(3, pooled=False)[0]
    fewer = {"vocab_size": VOCAB_SIZE - 3, "num_outputs": VOCAB_SIZE - 3, "output_level": "token"}
    model = model_of(folder("bert"), **fewer)

    torch.testing.assert_close(
        model(**padded), model_of(folder("bert"), **LANGUAGE)(**padded)[..., :-3], rtol=0, atol=0
    )


def test_a_task_that_does_not_fit(folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError) as caught:
        model_of(folder("roberta"), vocab_size=51, max_length=65)
    assert list(caught.value.messages) == [
        "path: the model has embeddings of 50 tokens, the task's tokenizer has 51. "
        "Give the model's own as task.tokenizer.",
        "path: the model has 64 positions, the task's samples have up to 65 tokens. Set task.max_length=64.",
    ]
    model_of(folder("bert"), vocab_size=30)
    assert "is task.tokenizer the model's own?" in caplog.text


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


def test_paths_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, message in (
        (tmp_path, "path: has no config.json"),
        (tmp_path / "file", "path: is a file"),
        (tmp_path / "none", "path: there is no such folder"),
        (Path("owner/name"), r"path: is no folder here, and the hub does not give it .*hf download"),
    ):
        with pytest.raises(ConfigError, match=message):
            model_of(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"path: cannot be read \(Unrecognized model"):
        model_of(tmp_path)


def test_a_folder_without_weights(folder: Callable[[str], Path], tmp_path: Path) -> None:
    shutil.copy(folder("bert") / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"path: cannot be read \(Error no file named model\.safetensors"):
        model_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder("bert") / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"path: cannot be read \(.*incomplete metadata"):
        model_of(tmp_path)
    model_of(tmp_path, pretrained=False)


def test_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match="path: is a t5, which has an encoder and a decoder"):
        model_of(tmp_path)


def test_no_host_waits_for_the_device(folder: Callable[[str], Path]) -> None:
    for name in CONFIGS:
        model = model_of(folder(name)).to("meta")
        for inputs in layouts(3):
            on_meta = {key: value.to("meta") for key, value in inputs.items()}
            # On the meta device there are no values: whatever would read one on the host fails.
            if "attention_mask" not in on_meta:
                assert model(**on_meta).shape == (3, 5)


def test_its_tokenizer(folder: Callable[[str], Path]) -> None:
    assert load_tokenizer(str(folder("bert"))).get_vocab_size() <= VOCAB_SIZE
