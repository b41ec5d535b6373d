import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.errors import ConfigError
from trainer.loss.classification import class_weights


@given(counts=st.lists(st.integers(0, 100_000), min_size=1, max_size=50))
def test_auto_weights_have_mean_one_over_the_training_targets(counts):
    weights = class_weights("weight", "auto", counts, largest=math.inf)
    assert weights.dtype == torch.float32
    assert torch.isfinite(weights).all()
    total = sum(count * weight for count, weight in zip(counts, weights.tolist(), strict=True))
    assert math.isclose(total, sum(counts), rel_tol=1e-6)


def test_auto_is_the_inverse_frequency():
    assert class_weights("weight", "auto", [6, 2, 4], largest=1.0).tolist() == pytest.approx([2 / 3, 2, 1])


def test_auto_gives_a_class_that_never_occurs_the_weight_one():
    assert class_weights("weight", "auto", [6, 0, 2], largest=1.0).tolist() == pytest.approx([2 / 3, 1, 2])


def test_none_is_no_weights():
    assert class_weights("weight", None, [1, 2], largest=1.0) is None


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0, 1.0], []])
def test_one_weight_a_class(weights):
    with pytest.raises(ConfigError, match=r"^alpha: needs one value for each of the 2 classes, got \["):
        class_weights("alpha", weights, [1, 2], largest=1.0)


@pytest.mark.parametrize("weights", ["auto", [1.0, 1.0]])
def test_weights_need_counted_classes(weights):
    with pytest.raises(
        ConfigError, match=r"^alpha: class weights need a task whose classes are counted, got .*\. Use "
    ):
        class_weights("alpha", weights, None, largest=1.0)
