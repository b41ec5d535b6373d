import json
import logging
import pickle
from typing import Any

import pytest
import torch
from datasets import Dataset, Features, List, Value

from tests.support.predictions import answers
from trainer.data.batches import Batches, BatchIndices
from trainer.errors import ConfigError, DataError, RowError
from trainer.model.linear import Linear
from trainer.protocols import Batch, Batching
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


def batch(made: MultilabelClassification, batching: Batching) -> Batch:
    return Batches(encoded(made), made, batching, seed=0)[BatchIndices(0, (5, 0, 1, 2, 3, 4))]


def test_labels_and_their_positives_come_from_training() -> None:
    made = fitted()

    assert made.multilabel_target.classes.labels == ["fruit", "red", "tool"]
    assert made.info().arguments() == {
        **made.texts.info_fields(),
        "num_outputs": 3,
        "class_counts": [2, 2, 2],
        "num_train": 6,
    }


@pytest.mark.parametrize("batching", ["packed", "bucketed", "fixed"])
def test_every_layout_gives_the_same_outputs_and_targets(batching: Batching) -> None:
    made = fitted()
    torch.manual_seed(0)
    model = Linear(3, vocab_size=made.info().vocab_size)
    padded, other = batch(made, "padded"), batch(made, batching)

    assert padded.target is not None
    assert other.target is not None
    assert padded.target.dtype == torch.float32
    assert padded.target.tolist() == [[0, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 1, 0]]
    assert torch.equal(padded.target, other.target)
    torch.testing.assert_close(model(**padded.inputs), model(**other.inputs), rtol=0, atol=1e-5)


def test_a_split_that_begins_with_rows_without_labels() -> None:
    rows = encoded(fitted(), [[], [], [], [], ["red"], ["tool", "fruit"]])

    assert list(rows["labels"]) == [[], [], [], [], [1], [0, 2]]


def test_labels_that_cannot_be_used() -> None:
    with pytest.raises(RowError, match=r"labels: does not occur in training, got 'tol'\. Did you mean tool") as caught:
        fitted().encode({"text": TEXTS[:2], "labels": [["fruit"], ["red", "tol"]]})
    assert (caught.value.position, caught.value.role) == (1, "labels")
    with pytest.raises(DataError, match="labels: needs at least 2 different labels"):
        task().fit(dataset([["same"]] * 6))


def test_answers_are_the_labels_above_the_threshold_by_probability() -> None:
    logits = torch.tensor([[0.5, 2.0, -1.0], [-1.0, -2.0, -3.0], [3.0, -1.0, 3.0]])
    some, none, equal = answers(fitted(), logits)

    assert some == {"labels": ["red", "fruit"], "probabilities": {"red": 0.880797, "fruit": 0.622459}}
    assert none == {"labels": [], "probabilities": {"fruit": 0.268941}}
    assert equal["labels"] == ["fruit", "tool"]
    assert answers(fitted(threshold=0.2), logits)[1]["labels"] == ["fruit"]
    assert list(answers(fitted(), logits, top=3)[0]["probabilities"]) == ["red", "fruit", "tool"]


def test_metrics_follow_the_threshold() -> None:
    logits, target = torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    exact = []
    for threshold in (0.5, 0.2):
        metrics = fitted(threshold=threshold).metrics()
        metrics.update(logits, target)
        exact.append(metrics.compute()["exact_match"].item())

    assert exact == [0.0, 1.0]
    assert task().monitor in fitted().metrics()


def test_the_log_says_how_many_labels_there_are(caplog: pytest.LogCaptureFixture) -> None:
    made = fitted()
    with caplog.at_level(logging.INFO):
        made.check({"train": encoded(made)})

    assert caplog.messages[0] == "train: 3 labels, 1.00 per text, 16.7 % of texts without a label"


@pytest.mark.parametrize("threshold", [0.0, 1.0, float("nan")])
def test_a_threshold_that_is_no_probability(threshold: float) -> None:
    with pytest.raises(ConfigError, match=r"^threshold: must be"):
        task(threshold=threshold)


def test_the_state_is_json_and_gives_the_same_task() -> None:
    made, copy = fitted(), task()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))

    assert copy.info() == made.info()
    assert copy.state_dict() == made.state_dict() == pickle.loads(pickle.dumps(made)).state_dict()
    files = made.artifact_files()
    assert json.loads(files["labels.json"]) == ["fruit", "red", "tool"]
    assert json.loads(files["threshold.json"]) == 0.5


def test_the_fingerprint_follows_what_encoding_depends_on() -> None:
    assert task().fingerprint() == fitted().fingerprint() == task(threshold=0.3).fingerprint()
    assert task().fingerprint() != task(max_length=9).fingerprint()
