import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pretrained_folders import (
    CONFIGS,
    Folders,
    last_hidden,
    layouts,
    model_of,
    reference,
)
from trainer.errors import ConfigError

NO_DROPOUT = {
    "distilbert": ("dropout", "attention_dropout"),
    "gpt2": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
    "modernbert": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def test_a_changed_config(folder: Folders) -> None:
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


def test_the_dropout_of_every_family_is_a_key(folder: Folders) -> None:
    inputs = layouts(3)[0]
    for name in CONFIGS:
        keys = NO_DROPOUT.get(name, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
        model = model_of(folder(name), config=dict.fromkeys(keys, 0.0)).train()
        assert torch.equal(model(**inputs), model(**inputs)), name


def test_a_nested_key(folder: Folders) -> None:
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 500.0}}}
    rope = model_of(folder("modernbert"), config=nested).config.rope_parameters

    assert rope["full_attention"] == {"rope_type": "default", "rope_theta": 500.0}
    assert rope["sliding_attention"]["rope_theta"] == 10_000.0
    with pytest.raises(
        ConfigError, match=r"^config\.rope_parameters\.full_attention\.rope_thet: .*Did you mean rope_theta"
    ):
        model_of(folder("modernbert"), config={"rope_parameters": {"full_attention": {"rope_thet": 500.0}}})


def test_keys_that_the_config_does_not_have(folder: Folders) -> None:
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
        ({"hidden_dropout_prob": "a lot"}, "config: (is refused by .*hidden_dropout_prob|no model can be made)"),
        ({"hidden_act": "nix"}, r"config: no model can be made of it \(KeyError"),
        ({"num_attention_heads": 5}, r"config: no model can be made of it \(ValueError: .*32.*5"),
        ({"num_hidden_layers": 3}, r"path: has no weights for encoder\.layer\.2\..* and 11 more"),
        (
            {"intermediate_size": 40},
            r"path: has weights of other shapes: encoder\.layer\.0.*\(48,\), the model \(40,\)",
        ),
    ],
)
def test_a_config_that_does_not_fit(config: dict[str, Any], message: str, folder: Folders) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(folder("bert"), config=config)


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


def test_an_encoder_with_a_decoder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match="path: is a t5, which has an encoder and a decoder"):
        model_of(tmp_path)
