import json
import logging
from math import inf, nan
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from sklearn.preprocessing import StandardScaler

from trainer.errors import DataError, RowError
from trainer.task.table import Table

ROWS: list[dict[str, Any]] = [
    {"age": 20.0, "income": 1.0, "city": "Ulm", "planet": "Earth", "sick": None},
    {"age": 40.0, "income": None, "city": "Bonn", "planet": "Earth", "sick": "no"},
    {"age": 60.0, "income": 2.0, "city": "Ulm", "planet": "Earth", "sick": "yes"},
    {"age": 40.0, "income": 6.0, "city": "Trier", "planet": "Earth", "sick": "no"},
]
TYPES = {"age": "float64", "income": "float64", "city": "string", "planet": "string", "sick": "string"}


def dataset(rows: list[dict[str, Any]], types: dict[str, str]) -> Dataset:
    features = Features({"features": {name: Value(dtype) for name, dtype in types.items()}})
    return Dataset.from_dict({"features": rows}, features=features)


def fit_table(rows: list[dict[str, Any]] = ROWS, types: dict[str, str] = TYPES, max_categories: int = 100) -> Table:
    table = Table(max_categories)
    table.fit(dataset(rows, types), ("features",))
    return table


def encoded(table: Table, **changes: Any) -> dict[str, float]:
    (row,) = table.encode([ROWS[0] | changes])["features"]
    return dict(zip(table.features, row.tolist(), strict=True))


def test_features_equal_hand_computed_values() -> None:
    table = fit_table()
    columns = table.encode(ROWS)

    assert table.features == [
        "age",
        "income",
        "income is missing",
        "city=Bonn",
        "city=Trier",
        "city=Ulm",
        "city is other",
        "sick=no",
        "sick=yes",
        "sick is missing",
        "sick is other",
    ]
    matrix = np.stack(columns["features"])
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(
        matrix[:, :2],
        np.nan_to_num(StandardScaler().fit_transform([[row["age"], row["income"] or nan] for row in ROWS])),
        rtol=1e-6,
        atol=1e-7,
    )
    assert matrix[:, 2:].tolist() == [
        [0, 0, 0, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 1, 0, 0, 0],
    ]
    assert columns["missing"] == [1, 1, 0, 0]
    assert columns["unknown"] == [0, 0, 0, 0]


def test_values_that_training_lacks() -> None:
    table = fit_table()
    features = encoded(table, age=None, income=nan, city="Köln", planet="Mars", sick="no")

    assert features == dict.fromkeys(table.features, 0.0) | {"income is missing": 1, "city is other": 1, "sick=no": 1}
    assert encoded(table, city=None)["city is other"] == 1
    columns = table.encode([ROWS[0] | {"city": "Köln", "planet": "Mars"}, ROWS[0] | {"city": None, "sick": "no"}])
    assert columns["unknown"] == [2, 0]
    assert columns["missing"] == [1, 1]


def test_rare_categories_share_a_feature() -> None:
    table = fit_table(max_categories=1)

    # Bonn and Trier are equally frequent in training, less than Ulm.
    assert [name for name in table.features if name.startswith("city")] == ["city=Ulm", "city is other"]
    assert encoded(table, city="Bonn")["city is other"] == 1


def test_constant_column_is_a_feature_only_if_partly_missing() -> None:
    rows = [{"a": 0.1, "b": 7.0, "c": None, "d": "x", "e": 1.0}] * 3 + [{"a": 0.1, "b": None, "c": None, "e": 2.0}]
    table = fit_table(rows, {"a": "float64", "b": "float64", "c": "string", "d": "string", "e": "float64"})

    assert table.features == ["b is missing", "d=x", "d is missing", "d is other", "e"]
    assert table.encode([{"a": 99.0, "b": 8.0, "c": "new", "d": "x", "e": 1.5}])["features"][0].shape == (5,)


def test_integers_booleans_and_empty_columns_are_numeric() -> None:
    types = {"count": "int64", "flag": "bool", "empty": "null"}
    rows = [{"count": 1, "flag": True, "empty": None}, {"count": 3, "flag": False, "empty": None}]
    table = fit_table(rows, types)

    assert table.features == ["count", "flag"]
    assert np.stack(table.encode(rows)["features"]).tolist() == [[-1, 1], [1, -1]]


def test_cell_of_the_wrong_type_or_range_is_a_row_error() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"age": "old"}, "age: must be a number, as in training, got 'old'"),
        ({"age": inf}, "age: must be finite, .* got inf"),
        ({"age": 1e300}, r"age: must be finite, .* got 1e\+300"),
        ({"city": 7.0}, r"city: must be a text, as in training, got 7\.0"),
    ]
    for change, message in cases:
        with pytest.raises(RowError, match=message) as caught:
            fit_table().encode([ROWS[1], ROWS[2] | change, ROWS[3]])

        assert (caught.value.position, caught.value.role) == (1, "features")


def test_missing_column_is_an_error_and_new_column_is_ignored() -> None:
    table = fit_table()
    with pytest.raises(RowError, match=r"features: lack columns of the training split, got \['city'\]"):
        table.encode([{name: value for name, value in ROWS[0].items() if name != "city"}])
    assert encoded(table, shoe_size=43.0) == encoded(table)


def test_unusable_columns_are_data_errors() -> None:
    cases: list[tuple[list[dict[str, Any]], dict[str, str], str]] = [
        ([{"a": 1.0}] * 3, {"a": "float64"}, r"features: every column is the same in all rows .* got \['a'\]"),
        ([{"a": -1e300}, {"a": 1e300}], {"a": "float64"}, "features: column 'a' is too large to be standardized"),
        ([{"a": b"x"}], {"a": "binary"}, "features: column 'a' must contain numbers or texts, got 'binary'"),
    ]
    for rows, types, message in cases:
        with pytest.raises(DataError, match=message):
            fit_table(rows, types)


def test_infinite_numbers_do_not_change_the_mean() -> None:
    table = fit_table([*ROWS, ROWS[0] | {"age": inf}])

    assert encoded(table, age=40.0)["age"] == 0.0


def test_missing_cells_and_unknown_categories_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    table = fit_table()
    splits = {
        "train": Dataset.from_dict(table.encode(ROWS)),
        "test": Dataset.from_dict(table.encode([ROWS[0] | {"city": "Köln"}, ROWS[1]])),
    }
    with caplog.at_level(logging.INFO):
        (test,) = table.check(splits)

    constant, train = caplog.messages
    assert constant == "features: ignored because they are constant in training: planet"
    assert train == ("train: 4 rows, 5 columns as 11 features, 10.0% of cells missing, 0.0% of categories unknown")
    assert "20.0% of cells missing, 16.7% of categories unknown. Leave out columns whose" in test


def test_state_is_json_and_names_every_feature() -> None:
    table, copy = fit_table(), Table(100)
    copy.load_state_dict(json.loads(json.dumps(table.state_dict())))

    assert copy.columns == table.columns
    assert json.loads(table.artifact_files()["table.json"]) == {**table.state_dict(), "features": table.features}


def test_inputs_and_examples_have_one_column_per_feature() -> None:
    table = fit_table()
    inputs = table.model_inputs(table.encode(ROWS), "padded")
    example = table.example({"batch": 3}, np.random.default_rng(0))

    assert inputs["features"].shape == (4, 11)
    assert example["features"].shape == (3, 11)
    assert example["features"].dtype == inputs["features"].dtype
    assert table.info_fields() == {"num_features": 11}


def test_a_boolean_is_one_category_in_every_spelling() -> None:
    rows = [{"x": value} for value in ("True", "False")]
    table = fit_table(rows, {"x": "string"})

    columns = table.encode([{"x": "1"}, {"x": "false"}, {"x": "maybe"}])
    assert [row.tolist() for row in columns["features"]] == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert columns["unknown"] == [0, 0, 1]
