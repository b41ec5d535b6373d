import math

import torch

from tests.support.loss_sums import outputs_and_values
from trainer.loss.mse import Mse


def test_value_matches_the_definition():
    output, target = outputs_and_values(dtype=torch.float64)
    expected = math.fsum(error**2 for error in (output - target).flatten().tolist())
    assert math.isclose(Mse()(output, target).item(), expected, rel_tol=1e-13)
