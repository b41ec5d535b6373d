import json
from math import inf, nan

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.preprocessing import StandardScaler

from trainer.errors import DataError, RowError
from trainer.task.numeric import RegressionTarget

ROWS = [[1.0, 1000.0], [2.0, 3000.0], [6.0, -500.0]]


def learnt(rows: list[list[float]] = ROWS) -> RegressionTarget:
    values = RegressionTarget()
    values.fit(Dataset.from_dict({"value": rows}))
    return values


def test_targets_are_standardized_as_scikit_learn_does_and_answers_are_not() -> None:
    values = learnt()
    target = values.to_tensor(values.encode(ROWS))

    np.testing.assert_allclose(target.numpy(), StandardScaler().fit_transform(ROWS), rtol=1e-6)
    assert target.dtype == torch.float32
    assert [row["value"] for row in values.predictions(target, 1)] == [pytest.approx(row, rel=1e-6) for row in ROWS]
    assert values.info_fields() == {"num_outputs": 2, "num_train": 3}


def test_one_value_is_predicted_as_a_number() -> None:
    values = learnt([[2.0], [4.0]])

    assert values.predictions(torch.tensor([[0.0], [-1.0]]), 1) == [{"value": 3.0}, {"value": 2.0}]


def test_metrics_are_in_the_users_units() -> None:
    values = learnt([[0.0], [20.0]])
    metrics = values.metrics()
    metrics.update(torch.tensor([[0.0], [0.5]]), values.to_tensor(values.encode([[10.0], [20.0]])))

    assert metrics.compute()["mae"].item() == pytest.approx(2.5)
    assert metrics.compute()["rmse"].item() == pytest.approx(12.5**0.5)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([1.0, nan], "value: must be finite, .* got nan"),
        ([1.0, -inf], "value: must be finite, .* got -inf"),
        ([1e300, 1.0], r"value: must be finite, .* got 1e\+300"),
        ([1.0], r"value: must be 2 numbers, as in the first row of training, got \[1\.0\]"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(row: list[float], message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        learnt().encode([ROWS[0], row])

    assert (caught.value.position, caught.value.role) == (1, "value")


def test_what_encoding_refuses_does_not_move_the_means() -> None:
    values = learnt([*ROWS, [nan, inf], [7.0]])

    assert (values.mean, values.std) == (learnt().mean, learnt().std)


@pytest.mark.parametrize(
    ("rows", "messages"),
    [
        ([[3.0], [3.0]], ["value: is the same in every row of training, got 3.0."]),
        (
            [[3.0, 1e300], [3.0, -1e300]],
            [
                "value, number 1 of 2: is the same in every row of training, got 3.0.",
                "value, number 2 of 2: is too large to be standardized, got 1e+300.",
            ],
        ),
        ([[], []], ["value: must be at least one number, got []."]),
    ],
)
def test_values_that_nothing_can_be_learnt_from(rows: list[list[float]], messages: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        learnt(rows)

    assert list(caught.value.messages) == messages


def test_the_state_is_json_and_the_file_says_the_way_back() -> None:
    values, copy = learnt(), RegressionTarget()
    copy.load_state_dict(json.loads(json.dumps(values.state_dict())))
    assert copy.state_dict() == values.state_dict()

    scale = json.loads(values.artifact_files()["values.json"])
    output = torch.tensor([[0.5, -2.0]])
    by_hand = output.double().numpy() * scale["std"] + scale["mean"]
    assert values.predictions(output, 1)[0]["value"] == by_hand[0].tolist()
