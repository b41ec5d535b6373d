import json
from math import inf, nan

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import StandardScaler

from trainer.errors import DataError, RowError
from trainer.task.numeric import Moments, RegressionTarget

finite = st.floats(-1e6, 1e6)
tables = arrays(np.float64, st.tuples(st.integers(1, 30), st.just(3)), elements=finite | st.just(np.nan))


def moments_of(values: np.ndarray, size: int) -> Moments:
    moments = Moments(values.shape[1])
    for start in range(0, len(values), size):
        moments.add(values[start : start + size])
    return moments


@settings(max_examples=30)
@given(tables, st.integers(1, 7))
def test_moments_equal_scikit_learn_for_any_batch_size(values: np.ndarray, size: int) -> None:
    values[0] = 1.0
    moments = moments_of(values, size)
    reference = StandardScaler().fit(values)

    assert moments.count.tolist() == (~np.isnan(values)).sum(0).tolist()
    np.testing.assert_allclose(moments.mean, reference.mean_, rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(moments.std, np.nanstd(values, axis=0), rtol=1e-7, atol=1e-6)
    assert moments.low.tolist() == np.nanmin(values, axis=0).tolist()
    assert moments.high.tolist() == np.nanmax(values, axis=0).tolist()


def test_small_spread_around_a_large_mean_keeps_its_digits() -> None:
    values = 1e9 + np.arange(1000.0)[:, None] % 7
    moments = moments_of(values, 64)

    assert moments.std == pytest.approx(np.std(values - 1e9, axis=0), rel=1e-9)


def test_constant_column_has_exactly_zero_std() -> None:
    moments = moments_of(np.full((10_001, 1), 0.1), 1000)

    assert moments.std.tolist() == [0.0]


def test_infinite_and_missing_entries_are_skipped() -> None:
    moments = moments_of(np.array([[1.0, np.nan], [np.inf, np.nan], [3.0, -np.inf]]), 2)

    assert moments.count.tolist() == [2, 0]
    assert moments.mean.tolist() == [2.0, 0.0]
    assert moments.std.tolist() == [1.0, 0.0]


def test_overflow_gives_an_infinite_std_without_a_warning() -> None:
    assert not np.isfinite(moments_of(np.array([[1e300], [-1e300]]), 1).std).any()


ROWS = [[1.0, 1000.0], [2.0, 3000.0], [6.0, -500.0]]


def fit_values(rows: list[list[float]] = ROWS) -> RegressionTarget:
    values = RegressionTarget()
    values.fit(Dataset.from_dict({"value": rows}))
    return values


def test_targets_are_standardized_and_predictions_are_not() -> None:
    values = fit_values()
    target = values.to_tensor(values.encode(ROWS))

    np.testing.assert_allclose(target.numpy(), StandardScaler().fit_transform(ROWS), rtol=1e-6)
    assert target.dtype == torch.float32
    assert [row["value"] for row in values.predictions(target, 1)] == [pytest.approx(row, rel=1e-6) for row in ROWS]
    assert values.info_fields() == {"num_outputs": 2, "num_train": 3}


def test_single_value_is_predicted_as_a_number() -> None:
    values = fit_values([[2.0], [4.0]])

    assert values.predictions(torch.tensor([[0.0], [-1.0]]), 1) == [{"value": 3.0}, {"value": 2.0}]


def test_metrics_are_in_the_users_units() -> None:
    values = fit_values([[0.0], [20.0]])
    metrics = values.metrics()
    metrics.update(torch.tensor([[0.0], [0.5]]), values.to_tensor(values.encode([[10.0], [20.0]])))

    assert metrics.compute()["mae"].item() == pytest.approx(2.5)
    assert metrics.compute()["rmse"].item() == pytest.approx(12.5**0.5)


def test_unusable_row_is_a_row_error() -> None:
    cases: list[tuple[list[float], str]] = [
        ([1.0, nan], "value: must be finite, .* got nan"),
        ([1.0, -inf], "value: must be finite, .* got -inf"),
        ([1e300, 1.0], r"value: must be finite, .* got 1e\+300"),
        ([1.0], r"value: must be 2 numbers, as in the first row of training, got \[1\.0\]"),
    ]
    for row, message in cases:
        with pytest.raises(RowError, match=message) as caught:
            fit_values().encode([ROWS[0], row])

        assert (caught.value.position, caught.value.role) == (1, "value")


def test_rows_that_encoding_rejects_do_not_change_the_means() -> None:
    values = fit_values([*ROWS, [nan, inf], [7.0]])

    assert (values.mean, values.std) == (fit_values().mean, fit_values().std)


def test_unusable_training_values_are_data_errors() -> None:
    cases: list[tuple[list[list[float]], list[str]]] = [
        ([[3.0], [3.0]], ["value: is the same in every row of training, got 3.0."]),
        (
            [[3.0, 1e300], [3.0, -1e300]],
            [
                "value, number 1 of 2: is the same in every row of training, got 3.0.",
                "value, number 2 of 2: is too large to be standardized, got 1e+300.",
            ],
        ),
        ([[], []], ["value: must be at least one number, got []."]),
    ]
    for rows, messages in cases:
        with pytest.raises(DataError) as caught:
            fit_values(rows)

        assert list(caught.value.messages) == messages


def test_state_and_file_convert_outputs_back() -> None:
    values, copy = fit_values(), RegressionTarget()
    copy.load_state_dict(json.loads(json.dumps(values.state_dict())))
    assert copy.state_dict() == values.state_dict()

    scale = json.loads(values.artifact_files()["values.json"])
    output = torch.tensor([[0.5, -2.0]])
    by_hand = output.double().numpy() * scale["std"] + scale["mean"]
    assert values.predictions(output, 1)[0]["value"] == by_hand[0].tolist()
