import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset

from tests.support.predictions import answers
from trainer.data.batches import Batches, BatchIndices
from trainer.errors import DataError, RowError
from trainer.model.linear import Linear
from trainer.protocols import Batch, Batching
from trainer.task.regression import Regression

TEXTS = ["a red apple", "a green pear", "an old saw", "the new hammer and the saw", "red and green", "saw"]
VALUES = [[1.0], [2.0], [4.0], [9.0], [2.0], [6.0]]


def dataset(values: list[list[float]] = VALUES) -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "value": values, "row": list(range(len(TEXTS)))})


def task(**changes: Any) -> Regression:
    options: dict[str, Any] = {"max_length": 8, "vocab_size": 150, "tokenizer": None, "lowercase": True}
    return Regression(**(options | changes))


def fitted() -> Regression:
    made = task()
    made.fit(dataset())
    return made


def batch(made: Regression, batching: Batching) -> Batch:
    rows = dataset().map(made.encode, batched=True, batch_size=4, remove_columns=["text", "value", "row"])
    return Batches(rows, made, batching, seed=0)[BatchIndices(0, tuple(range(6)))]


def test_facts_are_those_of_the_texts_and_of_the_values() -> None:
    made = fitted()

    assert made.info().arguments() == {**made.texts.info_fields(), "num_outputs": 1, "num_train": 6}
    assert made.regression_target.mean == [4.0]


@pytest.mark.parametrize("batching", ["packed", "bucketed", "fixed"])
def test_every_layout_gives_the_same_outputs_and_targets(batching: Batching) -> None:
    made = fitted()
    torch.manual_seed(0)
    model = Linear(1, vocab_size=made.info().vocab_size)
    padded, other = batch(made, "padded"), batch(made, batching)

    assert padded.target is not None
    assert other.target is not None
    assert torch.equal(padded.target, other.target)
    assert padded.target.mean().item() == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(model(**padded.inputs), model(**other.inputs), rtol=0, atol=1e-5)


def test_metrics_and_answers_are_in_the_users_units() -> None:
    made = fitted()
    target = made.regression_target.to_tensor(made.regression_target.encode(VALUES))
    metrics = made.metrics()
    metrics.update(target + 1.0, target)

    assert metrics.compute()["mae"].item() == pytest.approx(np.std(VALUES), rel=1e-6)
    assert [row["value"] for row in answers(made, target)] == pytest.approx([row[0] for row in VALUES], rel=1e-6)


def test_values_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match=r"value: is the same in every row of training, got 3\.0"):
        task().fit(dataset([[3.0]] * 6))
    with pytest.raises(RowError, match=r"value: must be finite, .* got inf") as caught:
        fitted().encode({"text": TEXTS[:2], "value": [[1.0], [float("inf")]]})
    assert (caught.value.position, caught.value.role) == (1, "value")


def test_the_state_is_json_and_gives_the_same_task() -> None:
    made, copy = fitted(), task()
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))

    assert copy.info() == made.info()
    assert copy.state_dict() == made.state_dict() == pickle.loads(pickle.dumps(made)).state_dict()
    assert made.artifact_files().keys() == {"values.json", "tokenizer.json"}


def test_the_fingerprint_follows_what_encoding_depends_on() -> None:
    prints = {made.fingerprint() for made in (task(), task(max_length=9), task(vocab_size=151), task(lowercase=False))}

    assert len(prints) == 4
    assert task().fingerprint() == fitted().fingerprint()
