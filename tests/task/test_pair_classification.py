import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.predictions import answers
from trainer.data.batches import Batches, BatchIndices
from trainer.errors import ConfigError, DataError, RowError
from trainer.export.cases import forward_of, proof_cases
from trainer.model.linear import Linear
from trainer.protocols import Batch, Batching
from trainer.task.pair_classification import PairClassification

FIRST = ["a red apple", "a green pear", "an old saw and a hammer and a nail and a saw", "hammer", "saw"]
SECOND = ["apple", "hammer", "the new saw", "pear", "a saw and a hammer and a nail and a saw"]
LABELS = ["yes", "no", "yes", "no", "yes"]


def dataset(labels: list[str] = LABELS) -> Dataset:
    return Dataset.from_dict({"text": FIRST, "text_pair": SECOND, "label": labels})


def task(**changes: Any) -> PairClassification:
    options: dict[str, Any] = {"max_length": 11, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return PairClassification(**(options | changes))


def fitted(**changes: Any) -> PairClassification:
    made = task(**changes)
    made.fit(dataset())
    return made


@pytest.fixture
def without_types(tmp_path: Path) -> str:
    """A tokenizer that frames pairs without telling them apart by types."""
    words = sorted({word for text in FIRST + SECOND for word in text.split()})
    names = ["<s>", "</s>", "<unk>", *words]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>:0", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return str(tmp_path)


def batch(made: PairClassification, batching: Batching) -> Batch:
    rows = dataset()
    encoded = rows.map(made.encode, batched=True, batch_size=2, remove_columns=rows.column_names)
    return Batches(encoded, made, batching, seed=0)[BatchIndices(0, tuple(range(5)))]


def test_a_pair_is_framed_with_types_and_both_texts_are_kept() -> None:
    made = fitted()
    columns = made.encode({"text": FIRST, "text_pair": SECOND, "label": LABELS})
    tokens = [[made.texts.tokenizer.id_to_token(token) for token in ids] for ids in columns["input_ids"]]

    assert tokens[0] == ["[CLS]", "a", "red", "apple", "[SEP]", "apple", "[SEP]"]
    assert columns["token_type_ids"][0].tolist() == [0, 0, 0, 0, 0, 1, 1]
    assert tokens[2] == ["[CLS]", "an", "old", "saw", "and", "a", "[SEP]", "the", "new", "saw", "[SEP]"]
    assert tokens[4] == ["[CLS]", "saw", "[SEP]", "a", "saw", "and", "a", "hammer", "and", "a", "[SEP]"]
    assert columns["truncated"] == [False, False, True, False, True]
    assert columns["label"] == [1, 0, 1, 0, 1]
    assert made.encode({"text": ["京"], "text_pair": ["都 apple"], "label": ["no"]})["unknown"] == [2]


def test_facts_say_how_many_token_types_there_are(without_types: str) -> None:
    made, other = fitted(), fitted(tokenizer=without_types)

    assert made.info().arguments() == {
        **made.texts.info_fields(),
        "num_outputs": 2,
        "class_counts": [2, 3],
        "num_token_types": 2,
        "num_train": 5,
    }
    assert other.info().num_token_types == 1
    assert batch(other, "padded").inputs.keys() == {"input_ids", "attention_mask"}
    assert other.axes().keys() == {"input_ids", "attention_mask"}
    assert other.example({"batch": 2, "sequence": 5}, np.random.default_rng(0)).keys() == other.axes().keys()


@pytest.mark.parametrize("batching", ["packed", "bucketed", "fixed"])
def test_every_layout_gives_the_same_outputs_and_targets(batching: Batching) -> None:
    made = fitted()
    torch.manual_seed(0)
    model = Linear(2, vocab_size=made.info().vocab_size, num_token_types=2)
    padded, other = batch(made, "padded"), batch(made, batching)

    assert padded.target is not None
    assert other.target is not None
    assert padded.target.tolist() == other.target.tolist() == [1, 0, 1, 0, 1]
    torch.testing.assert_close(model(**padded.inputs), model(**other.inputs), rtol=0, atol=1e-5)
    assert other.inputs["token_type_ids"].shape == other.inputs["input_ids"].shape
    assert other.inputs["token_type_ids"].sum() == padded.inputs["token_type_ids"].sum() > 0


def test_the_vocabulary_has_the_words_of_both_texts() -> None:
    vocabulary = fitted().texts.tokenizer.get_vocab()

    assert {"red", "new"} <= vocabulary.keys()


def test_an_example_has_types_where_there_are_tokens() -> None:
    made = fitted()
    inputs = made.example({"batch": 50, "sequence": 7}, np.random.default_rng(0))
    types, mask = inputs["token_type_ids"], inputs["attention_mask"]

    assert made.axes().keys() == inputs.keys()
    assert types.shape == (50, 7)
    assert types.unique().tolist() == [0, 1]
    assert (types <= mask).all()
    assert all((row[kept].diff() >= 0).all() for row, kept in zip(types, mask.bool(), strict=True))


def test_an_export_is_proved_with_three_inputs() -> None:
    made = fitted()
    model = Linear(2, vocab_size=made.info().vocab_size, num_token_types=2)
    with torch.no_grad():
        cases = proof_cases(made, forward_of(model))

    assert all(case.inputs.keys() == made.axes().keys() for case in cases)
    assert any(case.padded for case in cases)


def test_rows_that_cannot_be_used() -> None:
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'maybe'") as caught:
        fitted().encode({"text": ["a", "a"], "text_pair": ["b", "b"], "label": ["yes", "maybe"]})
    assert (caught.value.position, caught.value.role) == (1, "label")
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["yes"] * 5))


@pytest.mark.parametrize(("change", "key"), [({"max_length": 4}, "max_length"), ({"vocab_size": 99}, "vocab_size")])
def test_sizes_that_cannot_work(change: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: must be at least"):
        task(**change)


def test_metrics_and_answers_are_those_of_classes() -> None:
    made = fitted()
    metrics = made.metrics()
    metrics.update(torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))

    assert metrics.compute()["accuracy"].item() == 3 / 4
    assert metrics.compute()["macro_f1"].item() == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert answers(made, torch.tensor([[0.0, 0.0]])) == [{"label": "no", "probability": 0.5}]


def test_the_state_is_json_and_gives_the_same_task() -> None:
    made, copy = fitted(), task()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))
    rows = {"text": FIRST, "text_pair": SECOND, "label": LABELS}

    assert copy.info() == made.info()
    assert copy.state_dict() == made.state_dict() == pickle.loads(pickle.dumps(made)).state_dict()
    assert [ids.tolist() for ids in copy.encode(rows)["input_ids"]] == [
        ids.tolist() for ids in made.encode(rows)["input_ids"]
    ]
    assert made.artifact_files().keys() == {"labels.json", "tokenizer.json"}


def test_the_fingerprint_follows_what_encoding_depends_on() -> None:
    prints = {made.fingerprint() for made in (task(), task(max_length=9), task(vocab_size=151), task(lowercase=False))}

    assert len(prints) == 4
    assert task().fingerprint() == fitted().fingerprint()
