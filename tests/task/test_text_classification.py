import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support.predictions import predict
from trainer.errors import ConfigError, DataError, RowError
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


def test_info_describes_the_training_split() -> None:
    made = fitted()

    assert made.class_target.classes.labels == ["fruit", "tool"]
    assert made.info().arguments() == {
        "vocab_size": made.texts.tokenizer.get_vocab_size(),
        "num_outputs": 2,
        "max_length": 8,
        "pad_id": 0,
        "class_counts": [3, 3],
        "class_names": ["fruit", "tool"],
        "num_train": 6,
    }


def test_encoding_truncates_and_counts_unknown_tokens() -> None:
    made = fitted()
    rows = encoded(made, dataset(["the new hammer and the saw on a table", "a 京 saw"], ["tool", "fruit"]))

    assert rows["input_ids"][0] == made.texts.tokenizer.encode("the new hammer and the saw on a table").ids
    assert len(rows["input_ids"][0]) == 8
    assert list(rows["truncated"]) == [True, False]
    assert rows["unknown"][1] == 1
    assert list(rows["label"]) == [1, 0]
    assert made.lengths(rows).tolist() == [8, len(rows["input_ids"][1])]


def test_unknown_label_is_a_row_error() -> None:
    with pytest.raises(RowError, match=r"label: does not occur in training, got 'tol'\. Did you mean tool") as caught:
        fitted().encode({"text": ["a", "b"], "label": ["fruit", "tol"]})

    assert (caught.value.position, caught.value.role) == (1, "label")


def test_single_label_is_a_data_error() -> None:
    with pytest.raises(DataError, match="at least 2 different labels"):
        task().fit(dataset(["a", "b"], ["same", "same"]))


def test_unknown_tokens_and_truncation_are_warned_about(caplog: pytest.LogCaptureFixture) -> None:
    made = fitted()
    with caplog.at_level(logging.INFO):
        assert made.check({"train": encoded(made)}) == []
        (loud,) = made.check({"test": encoded(made, dataset(["京 都 大 学 京 都 大 学 京 都"], ["tool"]))})

    (quiet,) = (message for message in caplog.messages if "classes" not in message)
    assert "0.0% of tokens unknown, 0.0% of texts truncated at 8 tokens" in quiet
    assert "75.0% of tokens unknown, 100.0% of texts truncated" in loud
    assert "task.tokenizer" in loud
    assert "Raise task.max_length" in loud


def test_predictions_are_labels_with_probabilities() -> None:
    logits = torch.tensor([[0.0, 0.0], [-1.0, 1.0]])
    first, second = predict(fitted(), logits)

    assert first == {"label": "fruit", "probability": 0.5}
    assert second == {"label": "tool", "probability": pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)}
    (both,) = predict(fitted(), logits[1:], top=2)
    assert both["probabilities"] == {"tool": second["probability"], "fruit": pytest.approx(0.119203, abs=1e-6)}


def test_metrics_equal_hand_computed_values() -> None:
    metrics = fitted().metrics()
    metrics.update(torch.tensor([[2.0, 1], [2, 1], [2, 1], [1, 2]]), torch.tensor([0, 0, 1, 1]))
    values = {name: value.item() for name, value in metrics.compute().items()}

    assert values == pytest.approx({"accuracy": 3 / 4, "macro_f1": (4 / 5 + 2 / 3) / 2})


def test_artifact_files_contain_labels_and_tokenizer() -> None:
    from tokenizers import Tokenizer

    made = fitted()
    files = made.artifact_files()

    assert json.loads(files["labels.json"]) == ["fruit", "tool"]
    text = "the new hammer and the saw on a table"
    assert Tokenizer.from_str(files["tokenizer.json"]).encode(text).ids == made.texts.tokenizer.encode(text).ids


def test_sizes_below_the_minimum_are_errors() -> None:
    for key, value in {"max_length": 2, "vocab_size": 99}.items():
        with pytest.raises(ConfigError, match=f"^{key}: must be at least"):
            task(**{key: value})
