import numpy as np
from datasets import concatenate_datasets
from sklearn.datasets import load_diabetes

from trainer.data.diabetes import Diabetes


def test_features_and_values_equal_scikit_learn() -> None:
    source, known = Diabetes(), load_diabetes(scaled=False)

    splits = source.load(("features", "value"))

    assert {split: len(rows) for split, rows in splits.items()} == {"train": 352, "validation": 46, "test": 44}
    for sample in concatenate_datasets(list(splits.values())):
        number = int(source.describe_row("train", sample["row"]).removeprefix("diabetes, row ")) - 1
        assert np.array_equal(list(sample["features"].values()), known.data[number])
        assert sample["value"] == [known.target[number]]
    assert list(splits["train"][0]["features"]) == ["age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"]
    assert source.describe_role("value") == "the column value of data=diabetes"
    assert source.fingerprint == Diabetes().fingerprint
