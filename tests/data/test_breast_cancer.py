import numpy as np
from datasets import concatenate_datasets
from sklearn.datasets import load_breast_cancer

from trainer.data.breast_cancer import BreastCancer


def test_features_and_labels_equal_scikit_learn() -> None:
    source, known = BreastCancer(), load_breast_cancer()

    splits = source.load(("features", "label"))

    assert {split: len(rows) for split, rows in splits.items()} == {"train": 459, "validation": 53, "test": 57}
    for sample in concatenate_datasets(list(splits.values())):
        number = int(source.describe_row("train", sample["row"]).removeprefix("breast_cancer, row ")) - 1
        assert list(sample["features"]) == list(known.feature_names)
        assert np.array_equal(list(sample["features"].values()), known.data[number])
        assert sample["label"] == ["malignant", "benign"][known.target[number]]
    assert source.describe_role("label") == "the column label of data=breast_cancer"
    assert source.fingerprint == BreastCancer().fingerprint
