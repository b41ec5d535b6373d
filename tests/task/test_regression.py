from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from tests.support.predictions import predict
from trainer.errors import DataError, RowError
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


def test_info_describes_the_training_split() -> None:
    made = fitted()

    assert made.info().arguments() == {**made.texts.info_fields(), "num_outputs": 1, "num_train": 6}
    assert made.regression_target.mean == [4.0]


def test_metrics_and_predictions_are_in_the_users_units() -> None:
    made = fitted()
    target = made.regression_target.to_tensor(made.regression_target.encode(VALUES))
    metrics = made.metrics()
    metrics.update(target + 1.0, target)

    assert metrics.compute()["mae"].item() == pytest.approx(np.std(VALUES), rel=1e-6)
    assert [row["value"] for row in predict(made, target)] == pytest.approx([row[0] for row in VALUES], rel=1e-6)


def test_unusable_values_are_errors() -> None:
    with pytest.raises(DataError, match=r"value: is the same in every row of training, got 3\.0"):
        task().fit(dataset([[3.0]] * 6))
    with pytest.raises(RowError, match=r"value: must be finite, .* got inf") as caught:
        fitted().encode({"text": TEXTS[:2], "value": [[1.0], [float("inf")]]})
    assert (caught.value.position, caught.value.role) == (1, "value")
