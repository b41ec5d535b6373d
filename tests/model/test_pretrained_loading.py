import json
import logging
import shutil
from pathlib import Path

import pytest
import torch

from tests.support.pretrained_folders import (
    CONFIGS,
    FACTS,
    KEYS,
    LANGUAGE,
    Folders,
    gradients,
    layouts,
    model_of,
    reference,
)
from trainer.errors import ConfigError
from trainer.model.pretrained import Pretrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


@pytest.mark.parametrize("name", CONFIGS)
def test_made_again_without_its_folder(name: str, folder: Folders, tmp_path: Path) -> None:
    copy = shutil.copytree(folder(name), tmp_path / "copy")
    for facts in ({}, LANGUAGE):
        model = model_of(copy, **facts, config={"initializer_range": 0.5})
        architecture = json.loads(json.dumps(model.architecture))
        again = model_of(tmp_path / "nowhere", **facts, architecture=architecture)

        assert again.architecture == model.architecture
        again.load_state_dict(model.state_dict())
        inputs = layouts(4, pooled=not facts)[1]
        assert torch.equal(again(**inputs), model(**inputs))


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_checkpointed_gradients_are_the_same(name: str, folder: Folders) -> None:
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


def test_random_weights_on_request(folder: Folders) -> None:
    model = model_of(folder("bert"), pretrained=False, config={"num_hidden_layers": 3, "hidden_size": 64})
    torch.manual_seed(5)
    other = Pretrained(**(FACTS | KEYS | {"path": str(folder("bert")), "pretrained": False}))

    assert len(model.base.encoder.layer) == 3
    assert model(**layouts(3)[1]).shape == (3, 5)
    assert not torch.equal(
        other.base.embeddings.word_embeddings.weight, model_of(folder("bert")).base.embeddings.word_embeddings.weight
    )


def test_weights_of_half_precision_are_trained_in_full(folder: Folders, tmp_path: Path) -> None:
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
    # Neither progress bars nor reports of transformers.
    assert capfd.readouterr().err.count("Loading weights") == 0


def test_the_settings_of_transformers_stay_as_they_were(folder: Folders) -> None:
    from transformers.utils import logging as theirs

    before = theirs.get_verbosity(), theirs.is_progress_bar_enabled()
    model_of(folder("bert"))

    assert (theirs.get_verbosity(), theirs.is_progress_bar_enabled()) == before


def test_a_folder_without_weights(folder: Folders, tmp_path: Path) -> None:
    shutil.copy(folder("bert") / "config.json", tmp_path)
    with pytest.raises(ConfigError, match=r"path: cannot be read \(Error no file named model\.safetensors"):
        model_of(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((folder("bert") / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(ConfigError, match=r"path: cannot be read \(.*incomplete metadata"):
        model_of(tmp_path)
    model_of(tmp_path, pretrained=False)
