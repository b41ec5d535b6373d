import json
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support.predictions import answers
from trainer.errors import ConfigError, DataError, RowError
from trainer.sample_rng import SampleRng
from trainer.task.text_classification import TextClassification

TEXTS = ["a red apple", "a green pear", "an old saw", "the new hammer and the saw", "red and green", "saw"]
LABELS = ["fruit", "fruit", "tool", "tool", "fruit", "tool"]


def dataset(texts: list[str] = TEXTS, labels: list[str] = LABELS) -> Dataset:
    return Dataset.from_dict({"text": texts, "label": labels, "row": list(range(len(texts)))})


def task(**changes: Any) -> TextClassification:
    options: dict[str, Any] = {"max_length": 8, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return TextClassification(**(options | changes))


def fitted(**changes: Any) -> TextClassification:
    made = task(**changes)
    made.fit(dataset())
    return made


def encoded(made: TextClassification, rows: Dataset | None = None) -> Dataset:
    rows = dataset() if rows is None else rows
    return rows.map(made.encode, batched=True, remove_columns=rows.column_names)


def test_labels_and_their_counts_come_from_training() -> None:
    made = fitted()

    assert made.class_target.classes.labels == ["fruit", "tool"]
    assert made.info().arguments() == {
        "vocab_size": made.texts.tokenizer.get_vocab_size(),
        "num_outputs": 2,
        "max_length": 8,
        "pad_id": 0,
        "class_counts": [3, 3],
        "num_train": 6,
    }


def test_encoding_is_the_tokenizers_own_and_counts_what_is_lost() -> None:
    made = fitted()
    rows = encoded(made, dataset(["the new hammer and the saw on a table", "a 京 saw"], ["tool", "fruit"]))

    assert rows["input_ids"][0] == made.texts.tokenizer.encode("the new hammer and the saw on a table").ids
    assert len(rows["input_ids"][0]) == 8
    assert list(rows["truncated"]) == [True, False]
    assert rows["unknown"][1] == 1
    assert list(rows["label"]) == [1, 0]
    assert made.lengths(rows).tolist() == [8, len(rows["input_ids"][1])]


def test_a_label_that_training_never_saw() -> None:
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'tol'\. Did you mean tool") as caught:
        fitted().encode({"text": ["a", "b"], "label": ["fruit", "tol"]})

    assert (caught.value.position, caught.value.role) == (1, "label")


def test_one_label_cannot_be_learnt() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["a", "b"], ["same", "same"]))


def test_many_unknown_tokens_and_cut_texts_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    made = fitted()
    with caplog.at_level(logging.INFO):
        assert made.check({"train": encoded(made)}) == []
        (loud,) = made.check({"test": encoded(made, dataset(["京 都 大 学 京 都 大 学 京 都"], ["tool"]))})

    (quiet,) = (told for told in caplog.messages if "classes" not in told)
    assert "0.0 % of tokens unknown, 0.0 % of texts truncated at 8 tokens" in quiet
    assert "75.0 % of tokens unknown, 100.0 % of texts truncated" in loud
    assert "task.tokenizer" in loud
    assert "Raise task.max_length" in loud


def test_batches_in_each_layout_hold_the_same_samples() -> None:
    made = fitted()
    rows = encoded(made)
    columns = {"input_ids": [np.array(ids) for ids in rows["input_ids"]], "label": list(rows["label"])}
    draws = SampleRng(0, 0, range(6))
    padded = made.collate(columns, draws, "padded")
    packed = made.collate(columns, draws, "packed")

    assert padded.target is not None
    assert padded.target.tolist() == [0, 0, 1, 1, 0, 1]
    assert packed.ids == padded.ids == (0, 1, 2, 3, 4, 5)
    assert padded.inputs["attention_mask"].sum() == (packed.inputs["sequence_ids"] > 0).sum()


def test_answers_are_labels_with_their_probability() -> None:
    logits = torch.tensor([[0.0, 0.0], [-1.0, 1.0]])
    first, second = answers(fitted(), logits)

    assert first == {"label": "fruit", "probability": 0.5}
    assert second == {"label": "tool", "probability": pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)}
    (both,) = answers(fitted(), logits[1:], top=2)
    assert both["probabilities"] == {"tool": second["probability"], "fruit": pytest.approx(0.119203, abs=1e-6)}


def test_metrics_by_hand() -> None:
    metrics = fitted().metrics()
    metrics.update(torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))
    values = {name: value.item() for name, value in metrics.compute().items()}

    assert values == pytest.approx({"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2})


def test_an_example_has_the_sizes_that_are_asked_for() -> None:
    made = fitted()
    inputs = made.example({"batch": 5, "sequence": 7}, np.random.default_rng(0))

    assert {name: tuple(value.shape) for name, value in inputs.items()} == {
        "input_ids": (5, 7),
        "attention_mask": (5, 7),
    }
    assert inputs["attention_mask"][0].all()
    assert inputs["attention_mask"].sum() < 35
    assert inputs["input_ids"].max() < made.texts.tokenizer.get_vocab_size()


def test_the_state_is_json_and_gives_the_same_task() -> None:
    made, copy = fitted(), task()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))

    assert copy.info() == made.info()
    assert (
        copy.encode({"text": TEXTS, "label": LABELS})["label"] == made.encode({"text": TEXTS, "label": LABELS})["label"]
    )
    assert [row.tolist() for row in copy.encode({"text": TEXTS, "label": LABELS})["input_ids"]] == [
        row.tolist() for row in made.encode({"text": TEXTS, "label": LABELS})["input_ids"]
    ]


def test_artifact_files_read_back() -> None:
    from tokenizers import Tokenizer

    made = fitted()
    files = made.artifact_files()

    assert json.loads(files["labels.json"]) == ["fruit", "tool"]
    text = "the new hammer and the saw on a table"
    assert Tokenizer.from_str(files["tokenizer.json"]).encode(text).ids == made.texts.tokenizer.encode(text).ids


def test_the_fingerprint_follows_what_encoding_depends_on() -> None:
    prints = {made.fingerprint() for made in (task(), task(max_length=9), task(vocab_size=151), task(lowercase=False))}

    assert len(prints) == 4
    assert task().fingerprint() == fitted().fingerprint()


def test_workers_get_it_by_pickle() -> None:
    made = fitted()

    assert pickle.loads(pickle.dumps(made)).state_dict() == made.state_dict()


@pytest.mark.parametrize(("change", "key"), [({"max_length": 2}, "max_length"), ({"vocab_size": 99}, "vocab_size")])
def test_sizes_that_cannot_work(change: dict[str, int], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: must be at least"):
        task(**change)
