from io import BytesIO

import numpy as np
from datasets import concatenate_datasets
from PIL import Image
from sklearn.datasets import load_digits

from trainer.data.digits import Digits


def test_images_features_and_labels_equal_scikit_learn() -> None:
    source, known = Digits(), load_digits()

    splits = source.load(("image", "features", "label"))

    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1456, "validation": 157, "test": 184}
    samples = concatenate_datasets(list(splits.values()))
    for sample in samples.select(range(0, len(samples), 10)):
        number = int(source.describe_row("train", sample["row"]).removeprefix("digits, row ")) - 1
        with Image.open(BytesIO(sample["image"]["bytes"])) as image:
            assert np.array_equal(np.asarray(image), np.round(known.images[number] * 255 / 16))
        assert list(sample["features"]) == list(known.feature_names)
        assert np.array_equal(list(sample["features"].values()), known.data[number])
        assert sample["label"] == str(known.target[number])


def test_requested_roles_do_not_change_the_splits() -> None:
    source = Digits()

    splits = source.load(("label",))

    assert [len(rows) for rows in splits.values()] == [1456, 157, 184]
    assert splits["train"].column_names == ["label", "row"]
    assert source.fingerprint == Digits().fingerprint
    assert source.describe_role("image") == "the column image of data=digits"
