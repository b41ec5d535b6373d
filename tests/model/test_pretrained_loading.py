"""Loading models of transformers: their config, their weights, and rebuilding them from an architecture."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.pretrained_folders import (
    CONFIGS,
    FACTS,
    KEYS,
    LANGUAGE,
    Folders,
    last_hidden,
    layouts,
    model_of,
    reference,
)
from trainer.errors import ConfigError
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_loading import linear_head

NO_DROPOUT = {
    "distilbert": ("dropout", "attention_dropout"),
    "gpt2": ("embd_pdrop", "resid_pdrop", "attn_pdrop"),
    "modernbert": (),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def test_config_changes_are_applied(folder: Folders) -> None:
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


def test_dropout_of_every_family_can_be_changed(folder: Folders) -> None:
    inputs = layouts(3)[0]
    for name in CONFIGS:
        keys = NO_DROPOUT.get(name, ("hidden_dropout_prob", "attention_probs_dropout_prob"))
        model = model_of(folder(name), config=dict.fromkeys(keys, 0.0)).train()
        assert torch.equal(model(**inputs), model(**inputs)), name


def test_nested_keys_keep_their_siblings(folder: Folders) -> None:
    nested = {"rope_parameters": {"full_attention": {"rope_theta": 500.0}}}
    rope = model_of(folder("modernbert"), config=nested).config.rope_parameters

    assert rope["full_attention"] == {"rope_type": "default", "rope_theta": 500.0}
    assert rope["sliding_attention"]["rope_theta"] == 10_000.0
    with pytest.raises(
        ConfigError, match=r"^config\.rope_parameters\.full_attention\.rope_thet: .*Did you mean rope_theta"
    ):
        model_of(folder("modernbert"), config={"rope_parameters": {"full_attention": {"rope_thet": 500.0}}})


def test_unknown_keys_are_reported_together(folder: Folders) -> None:
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
        ({"hidden_dropout_prob": "a lot"}, "config: .*hidden_dropout_prob|config: does not describe"),
        ({"hidden_act": "nix"}, r"config: .*\(KeyError"),
        ({"num_attention_heads": 5}, r"config: .*\(ValueError: .*32.*5"),
        ({"num_hidden_layers": 3}, r"path: has no weights for encoder\.layer\.2\..* and 11 more"),
        ({"intermediate_size": 40}, r"path: has weights of other shapes: encoder\.layer\.0.*\(48,\), .*\(40,\)"),
    ],
)
def test_invalid_config_changes_are_rejected(config: dict[str, Any], message: str, folder: Folders) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(folder("bert"), config=config)


def test_paths_without_a_model_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, problem in (
        (tmp_path, "has no config.json"),
        (tmp_path / "file", "is a file"),
        (tmp_path / "none", "no such folder"),
        (Path("owner/name"), "hf download"),
    ):
        with pytest.raises(ConfigError, match=f"^path: .*{problem}"):
            model_of(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"^path: cannot be read \(Unrecognized model"):
        model_of(tmp_path)


def test_an_encoder_decoder_model_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    with pytest.raises(ConfigError, match=r"^path: is a t5"):
        model_of(tmp_path)


def test_a_model_is_rebuilt_without_its_folder(folder: Folders, tmp_path: Path) -> None:
    for name in CONFIGS:
        copy = shutil.copytree(folder(name), tmp_path / name)
        for arguments in ({}, LANGUAGE):
            model = model_of(copy, **arguments, config={"initializer_range": 0.5})
            architecture = json.loads(json.dumps(model.architecture))
            again = model_of(tmp_path / "nowhere", **arguments, architecture=architecture)

            assert again.architecture == model.architecture
            again.load_state_dict(model.state_dict())
            inputs = layouts(4, pooled=not arguments)[1]
            assert torch.equal(again(**inputs), model(**inputs))


def test_pretrained_false_uses_random_weights(folder: Folders) -> None:
    model = model_of(folder("bert"), pretrained=False, config={"num_hidden_layers": 3, "hidden_size": 64})
    torch.manual_seed(5)
    other = Pretrained(**(FACTS | KEYS | {"path": str(folder("bert")), "pretrained": False}))

    assert len(model.base.encoder.layer) == 3
    assert model(**layouts(3)[1]).shape == (3, 5)
    assert not torch.equal(
        other.base.embeddings.word_embeddings.weight, model_of(folder("bert")).base.embeddings.word_embeddings.weight
    )


def test_a_new_head_starts_like_any_linear_layer_unless_the_config_is_changed() -> None:
    torch.manual_seed(0)
    head = linear_head(300, 400, {})
    assert isinstance(head, torch.nn.Linear)
    assert head.weight.std().item() == pytest.approx((3 * 300) ** -0.5, rel=0.02)
    chosen = linear_head(300, 400, {"initializer_range": 0.5})
    assert isinstance(chosen, torch.nn.Linear)
    assert chosen.weight.std().item() == pytest.approx(0.5, rel=0.02)
    assert not chosen.bias.any()


def test_half_precision_weights_are_loaded_in_float32(folder: Folders, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = reference(AutoModel, folder("bert"))
    model.half().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"

    for pretrained in (True, False):
        loaded = model_of(tmp_path, pretrained=pretrained)
        assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    again = model_of(tmp_path, architecture=loaded.architecture)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}


def test_new_and_unused_weights_are_logged(
    folder: Folders, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
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
    # No progress bars or reports of transformers.
    assert capfd.readouterr().err.count("Loading weights") == 0


def test_settings_of_transformers_are_restored(folder: Folders) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    model_of(folder("bert"))

    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


def test_missing_and_damaged_weights_are_reported(folder: Folders, tmp_path: Path) -> None:
    shutil.copy(folder("bert") / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"path: cannot be read \(Error no file named model\.safetensors"):
        model_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder("bert") / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"path: cannot be read \(.*incomplete metadata"):
        model_of(tmp_path)
    model_of(tmp_path, pretrained=False)
