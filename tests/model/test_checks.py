import math

import pytest

from trainer.model.checks import dropout_faults, image_faults, size_faults, width_faults


def test_in_range() -> None:
    assert size_faults(dim=1, depth=7) == []
    assert width_faults(hidden=[1], channels=(6, 16)) == []
    assert dropout_faults(0) == dropout_faults(0.999) == []
    assert image_faults((4, 9), 4) == []


def test_out_of_range() -> None:
    assert size_faults(dim=0, depth=1, heads=-2) == [
        "dim: must be at least 1, got 0.",
        "heads: must be at least 1, got -2.",
    ]
    assert width_faults(hidden=[]) == ["hidden: must be one or more sizes of at least 1, got []."]
    assert width_faults(hidden=[8, 0]) == ["hidden: must be one or more sizes of at least 1, got [8, 0]."]
    assert image_faults((9, 3), 4, "Enlarge them") == [
        "image_size: the images must have 4 x 4 pixels at least, got [9, 3]. Enlarge them."
    ]


@pytest.mark.parametrize("dropout", [-0.1, 1, 1.5, math.nan, math.inf])
def test_no_dropout(dropout: float) -> None:
    assert dropout_faults(dropout) == [f"dropout: must be in [0, 1), got {dropout!r}."]
