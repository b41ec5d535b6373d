import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from tests.support.loss_sums import check_reference, logits_and_classes
from trainer.errors import ConfigError, RowError
from trainer.loss.cross_entropy import CrossEntropy

COUNTS = [50, 30, 0, 15, 5]
WEIGHTS = [0.5, 2.0, 1.0, 0.0, 3.5]
SETTINGS = [(None, 0.0), (None, 0.1), (WEIGHTS, 0.0), (WEIGHTS, 0.9)]


def random_shares(rows: int = 64) -> torch.Tensor:
    """Return shares of two classes in each row (rows, 5); some rows have only one class."""
    generator = torch.Generator().manual_seed(11)
    first, second = torch.randint(5, (2, rows), generator=generator)
    share = torch.rand(rows, generator=generator, dtype=torch.float64).masked_fill(torch.arange(rows) % 5 == 0, 1.0)
    zeros = torch.zeros(rows, 5, dtype=torch.float64)
    return zeros.scatter_add(1, first[:, None], share[:, None]).scatter_add(1, second[:, None], 1 - share[:, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_match_torch(dtype):
    logits, target = logits_and_classes(dtype=dtype)
    shares = random_shares().to(dtype)
    for weight, label_smoothing in SETTINGS:
        loss = CrossEntropy(weight, label_smoothing, -100, COUNTS)
        factors = None if weight is None else torch.tensor(weight, dtype=dtype)
        torchs = partial(F.cross_entropy, weight=factors, label_smoothing=label_smoothing)
        check_reference(loss, partial(torchs, reduction="sum"), logits, target)
        check_reference(loss, partial(torchs, reduction="sum"), logits, shares)
        mean = loss(logits, shares) / loss.num_targets(shares)
        assert math.isclose(mean, torchs(logits, shares), rel_tol=8 * torch.finfo(dtype).eps)


def test_divisor_counts_targets():
    logits, target = logits_and_classes(dtype=torch.float32)
    loss = CrossEntropy(None, 0.1, -100)
    expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert torch.allclose(loss(logits, target) / loss.num_targets(target), expected, rtol=1e-6, atol=0)
    count = CrossEntropy(None, 0.0, 7).num_targets(torch.tensor([7, 0, 1, 7, -100]))
    assert (count.shape, count.dtype, count.item()) == ((), torch.int64, 3)


def test_a_known_value():
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    assert CrossEntropy(None, 0.0, -100)(logits, torch.tensor([1, 0])).item() == pytest.approx(math.log(8 / 3))


def test_gradient():
    logits, target = logits_and_classes(rows=9)
    loss = CrossEntropy("auto", 0.1, -100, COUNTS)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())
    assert loss.to("meta").weight.device.type == "meta"


def test_shares_are_counted_by_rows_and_checked():
    loss = CrossEntropy(None, 0.0, -100, [3, 4])
    assert loss.num_targets(torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0]])).item() == 3
    loss.check(torch.tensor([[0.3, 0.7]]))
    for wrong in ([[0.5, 0.6]], [[1.5, -0.5]], [[math.nan, 1.0]], [[0.5, 0.25, 0.25]]):
        with pytest.raises(RowError, match=r"^target: "):
            loss.check(torch.tensor(wrong))
    with pytest.raises(ValueError, match=r"an output \(1, 3\) and shares \(1, 2\) do not fit"):
        loss(torch.zeros(1, 3), torch.tensor([[0.5, 0.5]]))


def test_wrong_arguments_raise():
    for change, key in [
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": math.nan}, "label_smoothing"),
        ({"weight": [1.0, -0.5]}, "weight"),
        ({"weight": [1.0, math.inf]}, "weight"),
        ({"weight": [0.0, 0.0]}, "weight"),
        ({"weight": [1.0, 1.0, 1.0]}, "weight"),
        ({"weight": "inverse"}, "weight"),
        ({"weight": "auto", "class_counts": None}, "weight"),
        ({"ignore_index": 0}, "ignore_index"),
    ]:
        arguments = {"weight": None, "label_smoothing": 0.0, "ignore_index": -100, "class_counts": [3, 4]}
        with pytest.raises(ConfigError, match=rf"^{key}: "):
            CrossEntropy(**arguments | change)


def test_all_wrong_arguments_are_reported_together():
    with pytest.raises(ConfigError) as error:
        CrossEntropy([1.0, -1.0], 2.0, -100, [3, 4])
    assert [message.split(":")[0] for message in error.value.messages] == ["weight", "label_smoothing"]
