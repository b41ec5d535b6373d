import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from tests.support.predictions import predict
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import DataError, RowError
from trainer.export.cases import forward_of, proof_cases
from trainer.model.linear import Linear
from trainer.task.tabular_regression import TabularRegression

FEATURES = [{"size": 1.0, "color": "red"}, {"size": 2.0, "color": None}, {"size": 9.0, "color": "red"}]
VALUES = [[1.0, 10.0], [2.0, 30.0], [6.0, 20.0]]


def dataset(values: list[list[float]] = VALUES) -> Dataset:
    return Dataset.from_dict({"features": FEATURES, "value": values, "row": list(range(len(values)))})


def fitted() -> TabularRegression:
    made = TabularRegression(max_categories=10)
    made.fit(dataset())
    return made


def test_info_and_batches() -> None:
    made = fitted()
    rows = dataset().map(made.encode, batched=True, batch_size=2, remove_columns=["features", "value", "row"])
    batch = Batches(rows, made, "packed", seed=0)[BatchIndices(0, (2, 0))]

    assert made.info().arguments() == {"num_features": 4, "num_outputs": 2, "num_train": 3}
    assert made.lengths(rows) is None
    assert batch.inputs["features"].shape == (2, 4)
    assert batch.target is not None
    np.testing.assert_array_equal(batch.target.numpy(), np.stack(made.regression_target.encode([VALUES[2], VALUES[0]])))


def test_least_squares_on_its_batches_equals_scikit_learn() -> None:
    table, values = load_diabetes(return_X_y=True, scaled=False)
    rows = Dataset.from_dict(
        {
            "features": [{str(name): value for name, value in enumerate(row)} for row in table.tolist()],
            "value": values[:, None].tolist(),
        }
    )
    made = TabularRegression(max_categories=10)
    made.fit(rows)
    encoded = rows.map(made.encode, batched=True, remove_columns=rows.column_names)
    batch = Batches(encoded, made, "packed", seed=0)[BatchIndices(0, tuple(range(len(rows))))]
    assert batch.target is not None
    features = torch.cat([batch.inputs["features"], torch.ones(len(rows), 1)], dim=1).double()
    solution = torch.linalg.lstsq(features, batch.target.double()).solution
    output = features @ solution
    metrics = made.metrics()
    metrics.update(output, batch.target)
    predicted = LinearRegression().fit(table, values).predict(table)

    assert [row["value"] for row in predict(made, output)] == pytest.approx(predicted.tolist(), rel=1e-5)
    assert metrics.compute()["r2"].item() == pytest.approx(r2_score(values, predicted), abs=1e-6)
    assert metrics.compute()["mae"].item() == pytest.approx(np.abs(values - predicted).mean(), rel=1e-5)


def test_unusable_rows_are_errors() -> None:
    with pytest.raises(DataError, match="value: is the same in every row of training"):
        TabularRegression(max_categories=10).fit(dataset([[1.0], [1.0], [1.0]]))
    with pytest.raises(RowError, match="value: must be finite"):
        fitted().encode({"features": FEATURES[:1], "value": [[float("nan"), 1.0]]})


def test_export_cases_vary_only_the_batch_size() -> None:
    made = fitted()
    model = Linear(made.info().num_outputs, num_features=made.info().num_features)
    with torch.no_grad():
        cases = proof_cases(made, forward_of(model))

    assert [tuple(case.expected.shape) for case in cases] == [(1, 2), (3, 2), (8, 2)]
    assert made.artifact_files().keys() == {"values.json", "table.json"}
