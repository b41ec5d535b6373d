import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.pretrained_folders import (
    CONFIGS,
    LANGUAGE,
    TYPED,
    Folders,
    language_model,
    layouts,
    model_of,
    reference,
)
from trainer.model import pretrained_folder
from trainer.model.layers import pool
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_folder import HEAD
from trainer.task.tokenization import load_tokenizer

TAGS = ["O", "B-tool", "I-tool", "B-fruit", "I-fruit"]
HEADED = {"bert", "camembert", "distilbert", "electra", "gpt2", "roberta", "xlm-roberta"}
"""Families whose token classification class has only a linear layer on the hidden states."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    return layouts(6, typed=name in TYPED)[0]


def files_of(path: Path) -> dict[str, str]:
    tokenizer = load_tokenizer(str(path))
    tokenizer.enable_truncation(64)
    return {"tokenizer.json": tokenizer.to_str(), "labels.json": json.dumps(TAGS)}


def save(model: Pretrained, source: Path, name: str, place: Path, **options: Any) -> dict[str, Any]:
    options = {"max_length": None, "half": False, **options}
    with torch.no_grad():
        return pretrained_folder.save(model, place, inputs_of(name), files_of(source), **options)


def assert_round_trip(model: Pretrained, place: Path) -> None:
    """Loading the folder restores every bit in a model with other weights."""
    other = deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.fill_(float("nan"))
    pretrained_folder.load(other, place)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def mask_of(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return inputs["attention_mask"].bool()


def test_a_language_model_uses_its_own_class(folder: Folders, tmp_path: Path) -> None:
    for name in CONFIGS:
        model = model_of(folder(name), **LANGUAGE)
        about = save(model, folder(name), name, tmp_path / name)
        own = reference(language_model(name), tmp_path / name)
        assert about == {"library": "transformers", "class": type(own).__name__}
        inputs = inputs_of(name)
        with torch.no_grad():
            expected = model(**inputs)[mask_of(inputs)]
            torch.testing.assert_close(own(**inputs).logits[mask_of(inputs)], expected, rtol=0, atol=1e-5)
        assert getattr(own.config, "use_cache", False) == (name == "gpt2")
        assert_round_trip(model, tmp_path / name)


def test_a_tagger_uses_the_librarys_class_if_the_heads_match(folder: Folders, tmp_path: Path) -> None:
    for name in CONFIGS:
        from transformers import AutoModelForTokenClassification

        model = model_of(folder(name), output_level="token")
        about = save(model, folder(name), name, tmp_path / name)
        assert ("head" not in about) == (name in HEADED)
        if name in HEADED:
            own = reference(AutoModelForTokenClassification, tmp_path / name)
            inputs = inputs_of(name)
            with torch.no_grad():
                torch.testing.assert_close(
                    own(**inputs).logits[mask_of(inputs)], model(**inputs)[mask_of(inputs)], rtol=0, atol=1e-5
                )
            assert [own.config.id2label[number] for number in range(5)] == TAGS
        assert_round_trip(model, tmp_path / name)


def test_our_own_head_is_saved_next_to_the_model(folder: Folders, tmp_path: Path) -> None:
    for name in ["bert", "modernbert"]:
        from transformers import AutoModel, AutoTokenizer

        model = model_of(folder(name))
        about = save(model, folder(name), name, tmp_path / name)
        assert about["head"] == HEAD
        own, head = reference(AutoModel, tmp_path / name), load_file(tmp_path / name / HEAD)
        inputs = inputs_of(name)
        with torch.no_grad():
            pooled = pool(own(**inputs).last_hidden_state, mask_of(inputs), "mean")
            torch.testing.assert_close(
                pooled @ head["head.weight"].T + head["head.bias"], model(**inputs), rtol=0, atol=1e-5
            )
        content = read_json(tmp_path / name / "head.json")
        assert content["reads"] == "last_hidden_state, pooled: mean"
        assert content["tensors"] == {"head.weight": [5, 32], "head.bias": [5]}
        assert content["labels"] == TAGS
        # Nothing promises a head that transformers would load: it starts a random one.
        assert {"id2label", "label2id", "num_labels"}.isdisjoint(read_json(tmp_path / name / "config.json"))
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer("a few words")["input_ids"] == load_tokenizer(str(folder(name))).encode("a few words").ids
        assert tokenizer.model_max_length == 64
        assert {*tokenizer("a few words")} == {*inputs}
        assert_round_trip(model, tmp_path / name)


def test_half_precision(folder: Folders, tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    model = model_of(folder("bert"), **LANGUAGE)
    for half in (False, True):
        save(model, folder("bert"), "bert", tmp_path / str(half), half=half)
    sizes = [(tmp_path / str(half) / "model.safetensors").stat().st_size for half in (True, False)]
    assert sizes[0] < 0.6 * sizes[1]
    assert reference(AutoModelForMaskedLM, tmp_path / "True").dtype == torch.float16
    inputs = inputs_of("bert")
    expected = model(**inputs)
    pretrained_folder.load(model, tmp_path / "True")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    torch.testing.assert_close(model(**inputs), expected, rtol=0, atol=1e-2)
    assert not torch.equal(model(**inputs), expected)


def test_sentence_transformers_gives_equal_embeddings(folder: Folders, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="an optional peer, in no extra")
    for dim in [None, 7]:
        texts = ["a few words", "learn", "a few words to learn from, more than fit"]
        tokenizer = load_tokenizer(str(folder("bert")))
        tokenizer.enable_truncation(6)
        for pooling in ("cls", "mean", "max", "last"):
            model = model_of(folder("bert"), num_outputs=dim, pooling=pooling)
            saved = tmp_path / f"{pooling}-{dim}"
            about = save(model, folder("bert"), "bert", saved, max_length=6)
            assert about["library"] == "sentence-transformers"
            theirs = sentence_transformers.SentenceTransformer(str(saved), device="cpu")
            embeddings = torch.from_numpy(theirs.encode(texts, show_progress_bar=False))
            for text, row in zip(texts, embeddings, strict=True):
                ids = torch.tensor([tokenizer.encode(text).ids])
                with torch.no_grad():
                    expected = model(input_ids=ids, attention_mask=torch.ones_like(ids))[0]
                torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
            assert_round_trip(model, saved)
