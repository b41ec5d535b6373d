import math

import pytest
import torch

from tests.support.loss_sums import outputs_and_values
from trainer.errors import ConfigError
from trainer.loss.huber import Huber


def test_value_matches_the_definition():
    output, target = outputs_and_values(dtype=torch.float64)
    for delta in (0.1, 1.0, 5.0):
        expected = 0.0
        for error in (output - target).abs().flatten().tolist():
            expected += error**2 / 2 if error <= delta else delta * (error - delta / 2)
        assert math.isclose(Huber(delta)(output, target).item(), expected, rel_tol=1e-12)


@pytest.mark.parametrize("delta", [0.0, math.nan, math.inf])
def test_delta_out_of_range_raises(delta):
    with pytest.raises(ConfigError, match=r"^delta: must be "):
        Huber(delta)
