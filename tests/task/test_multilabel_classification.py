import json
import logging
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value

from tests.support.predictions import predict
from trainer.errors import ConfigError, DataError, RowError
from trainer.task.multilabel_classification import MultilabelClassification

TEXTS = ["a red apple", "a green pear", "an old saw", "the new hammer and the saw", "red and green", "it"]
LABELS = [["fruit", "red"], ["fruit"], ["tool"], ["tool", "tool"], ["red"], []]
TYPES = Features({"text": Value("string"), "labels": List(Value("string"))})


def dataset(labels: list[list[str]] = LABELS) -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "labels": labels}, features=TYPES)


def task(**changes: Any) -> MultilabelClassification:
    options: dict[str, Any] = {"max_length": 8, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return MultilabelClassification(**(options | {"threshold": 0.5} | changes))


def fitted(**changes: Any) -> MultilabelClassification:
    made = task(**changes)
    made.fit(dataset())
    return made


def encoded(made: MultilabelClassification, labels: list[list[str]] = LABELS) -> Dataset:
    return dataset(labels).map(made.encode, batched=True, batch_size=2, remove_columns=["text"])


def test_info_describes_the_training_split() -> None:
    made = fitted()

    assert made.multilabel_target.classes.labels == ["fruit", "red", "tool"]
    assert made.info().arguments() == {
        **made.texts.info_fields(),
        "num_outputs": 3,
        "class_counts": [2, 2, 2],
        "class_names": ["fruit", "red", "tool"],
        "num_train": 6,
    }


def test_split_may_begin_with_rows_without_labels() -> None:
    rows = encoded(fitted(), [[], [], [], [], ["red"], ["tool", "fruit"]])

    assert list(rows["labels"]) == [[], [], [], [], [1], [0, 2]]


def test_unusable_labels_are_errors() -> None:
    with pytest.raises(RowError, match=r"labels: does not occur in training, got 'tol'\. Did you mean tool") as caught:
        fitted().encode({"text": TEXTS[:2], "labels": [["fruit"], ["red", "tol"]]})
    assert (caught.value.position, caught.value.role) == (1, "labels")
    with pytest.raises(DataError, match="labels: needs at least 2 different labels"):
        task().fit(dataset([["same"]] * 6))


def test_predictions_are_labels_above_the_threshold_by_probability() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0], [-1.0, -2.0, -3.0], [3.0, -1.0, 3.0]])
    some, none, equal = predict(fitted(), logits)

    assert some == {"labels": ["red", "fruit"], "probabilities": {"red": 0.880797, "fruit": 0.622459}}
    assert none == {"labels": [], "probabilities": {"fruit": 0.268941}}
    assert equal["labels"] == ["fruit", "tool"]
    assert predict(fitted(threshold=0.2), logits)[1]["labels"] == ["fruit"]
    assert list(predict(fitted(), logits, top=3)[0]["probabilities"]) == ["red", "fruit", "tool"]


def test_metrics_depend_on_the_threshold() -> None:
    logits, target = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    exact = []
    for threshold in (0.5, 0.2):
        metrics = fitted(threshold=threshold).metrics()
        metrics.update(logits, target)
        exact.append(metrics.compute()["exact_match"].item())

    assert exact == [0.0, 1.0]
    assert task().monitor in fitted().metrics()


def test_label_counts_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = fitted()
    with caplog.at_level(logging.INFO):
        made.check({"train": encoded(made)})

    assert caplog.messages[0] == "train: 3 labels, 1.00 per text, 16.7% of texts without a label"


def test_threshold_outside_0_to_1_is_an_error() -> None:
    for threshold in (0.0, 1.0, float("nan")):
        with pytest.raises(ConfigError, match=r"^threshold: must be"):
            task(threshold=threshold)


def test_targets_are_multi_hot_and_stored_in_the_artifact() -> None:
    made = fitted()
    target = made.multilabel_target.to_tensor(encoded(made).with_format("numpy")["labels"][:])

    assert target.dtype == torch.float32
    assert target.tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0], [0, 0, 0]]
    files = made.artifact_files()
    assert json.loads(files["labels.json"]) == ["fruit", "red", "tool"]
    assert json.loads(files["threshold.json"]) == 0.5
