import pytest
import torch
from torch.nn.utils import prune

from tests.support.prune_reference import assert_equal, layers, masks_of, weights_of
from trainer.errors import ConfigError
from trainer.prune.ln import ln


@pytest.mark.parametrize("n", [1, 2, 3.5, float("inf")])
@pytest.mark.parametrize("dim", [0, 1, -1])
@pytest.mark.parametrize("amount", [0.0, 0.3, 0.6, 1])
def test_the_masks_are_torchs(amount: float, n: float, dim: int) -> None:
    found = ln(weights_of(layers()), amount=amount, n=n, dim=dim)

    assert_equal(found, masks_of(prune.ln_structured, amount=amount, n=n, dim=dim))


def test_whole_slices_of_the_smallest_norm_go() -> None:
    weight = torch.tensor([[3.0, 3.0], [4.0, 0.0], [1.0, 1.0]])

    assert ln({"w": weight}, amount=1, n=2, dim=0)["w"].tolist() == [[True, True], [True, True], [False, False]]
    # By their largest element the second row is above the first one, by their sum it is below.
    assert ln({"w": weight[:2]}, amount=1, n=1, dim=0)["w"].tolist() == [[True, True], [False, False]]
    assert ln({"w": weight[:2]}, amount=1, n=float("inf"), dim=0)["w"].tolist() == [[False, False], [True, True]]
    assert ln({"w": weight}, amount=0.5, n=2, dim=1)["w"].tolist() == [[True, False]] * 3


def test_values_out_of_range() -> None:
    with pytest.raises(ConfigError, match="n: must be above 0, got 0"):
        ln(weights_of(layers()), amount=0.3, n=0, dim=0)
    with pytest.raises(ConfigError, match=r"dim: there is no such axis in linear\.weight \(8, 6\), got 2"):
        ln(weights_of(layers()), amount=0.3, n=2, dim=2)
    with pytest.raises(ConfigError, match=r"leaves nothing of stack\.0\.weight, which has 3 slices, got 0\.9"):
        ln(weights_of(layers()), amount=0.9, n=2, dim=1)
