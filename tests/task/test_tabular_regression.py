import json
import pickle

import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score

from tests.support.predictions import answers
from trainer.data.batches import Batches, BatchIndices
from trainer.errors import DataError, RowError
from trainer.export.cases import forward_of, proof_cases
from trainer.model.linear import Linear
from trainer.task.tabular_regression import TabularRegression

FEATURES = [{"size": 1.0, "colour": "red"}, {"size": 2.0, "colour": None}, {"size": 9.0, "colour": "red"}]
VALUES = [[1.0, 10.0], [2.0, 30.0], [6.0, 20.0]]


def dataset(values: list[list[float]] = VALUES) -> Dataset:
    return Dataset.from_dict({"features": FEATURES, "value": values, "row": list(range(len(values)))})


def fitted() -> TabularRegression:
    made = TabularRegression(max_categories=10)
    made.fit(dataset())
    return made


def test_facts_and_batches() -> None:
    made = fitted()
    rows = dataset().map(made.encode, batched=True, batch_size=2, remove_columns=["features", "value", "row"])
    batch = Batches(rows, made, "packed", seed=0)[BatchIndices(0, (2, 0))]

    assert made.info().arguments() == {"num_features": 4, "num_outputs": 2, "num_train": 3}
    assert made.lengths(rows) is None
    assert batch.inputs["features"].shape == (2, 4)
    assert batch.target is not None
    np.testing.assert_array_equal(batch.target.numpy(), np.stack(made.regression_target.encode([VALUES[2], VALUES[0]])))


def test_a_linear_model_solved_on_its_batches_is_scikit_learns() -> None:
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
    found = LinearRegression().fit(table, values).predict(table)

    assert [row["value"] for row in answers(made, output)] == pytest.approx(found.tolist(), rel=1e-5)
    assert metrics.compute()["r2"].item() == pytest.approx(r2_score(values, found), abs=1e-6)
    assert metrics.compute()["mae"].item() == pytest.approx(np.abs(values - found).mean(), rel=1e-5)


def test_rows_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="value: is the same in every row of training"):
        TabularRegression(max_categories=10).fit(dataset([[1.0], [1.0], [1.0]]))
    with pytest.raises(RowError, match="value: must be finite"):
        fitted().encode({"features": FEATURES[:1], "value": [[float("nan"), 1.0]]})


def test_an_export_is_proved_at_several_batch_sizes() -> None:
    made = fitted()
    model = Linear(made.info().num_outputs, num_features=made.info().num_features)
    with torch.no_grad():
        cases = proof_cases(made, forward_of(model))

    assert [tuple(case.expected.shape) for case in cases] == [(1, 2), (3, 2), (8, 2)]
    assert made.artifact_files().keys() == {"values.json", "table.json"}


def test_the_state_is_json_and_gives_the_same_task() -> None:
    made, copy = fitted(), TabularRegression(max_categories=10)
    copy.load_state_dict(json.loads(json.dumps(made.state_dict())))

    assert copy.info() == made.info()
    assert copy.state_dict() == made.state_dict() == pickle.loads(pickle.dumps(made)).state_dict()
    assert answers(copy, torch.ones(1, 2)) == answers(made, torch.ones(1, 2))
    assert copy.fingerprint() == made.fingerprint() != TabularRegression(max_categories=9).fingerprint()
