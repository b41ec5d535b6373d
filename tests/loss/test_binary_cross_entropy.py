import math

import pytest
import torch
from torch.nn import functional as F

from trainer.errors import ConfigError
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy

COUNTS = [50, 30, 0, 100]
WEIGHTS = [0.5, 2.0, 0.0, 3.5]


def logits_and_targets(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(19)
    logits = 4 * torch.randn(32, 4, generator=generator, dtype=torch.float64)
    return logits.to(dtype), torch.randint(2, (32, 4), generator=generator).float()


@pytest.mark.parametrize("pos_weight", [None, WEIGHTS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_are_torchs(dtype, pos_weight):
    logits, target = logits_and_targets(dtype)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    value = BinaryCrossEntropy(pos_weight, 0.0, -100)(ours, target)
    expected = F.binary_cross_entropy_with_logits(
        theirs,
        target.to(dtype),
        pos_weight=None if pos_weight is None else torch.tensor(pos_weight, dtype=dtype),
        reduction="sum",
    )
    value.backward()
    expected.backward()
    assert value.shape == ()
    assert torch.equal(value, expected)
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("pos_weight", [None, WEIGHTS])
def test_value_is_the_formulas(pos_weight, label_smoothing):
    logits, target = logits_and_targets()
    target[::7, 1:3] = -100
    expected = 0.0
    for row, answers in zip(logits.tolist(), target.tolist(), strict=True):
        for x, y, w in zip(row, answers, pos_weight or [1.0] * 4, strict=True):
            if y != -100:
                share = y * (1 - label_smoothing) + label_smoothing / 2
                expected += w * share * math.log1p(math.exp(-x)) + (1 - share) * math.log1p(math.exp(x))
    value = BinaryCrossEntropy(pos_weight, label_smoothing, -100)(logits, target)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_sum_over_number_of_targets_is_torchs_mean():
    logits, target = logits_and_targets()
    loss = BinaryCrossEntropy(None, 0.0, -100)
    expected = F.binary_cross_entropy_with_logits(logits, target.double())
    assert loss.num_targets(target).item() == 128
    assert torch.allclose(loss(logits, target) / loss.num_targets(target), expected, rtol=1e-14, atol=0)


def test_gradient_in_float64():
    logits, target = logits_and_targets()
    target[::7, 1:3] = -100
    loss = BinaryCrossEntropy(WEIGHTS, 0.1, -100)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target[:8]), logits[:8].requires_grad_())


def test_auto_is_negatives_over_positives():
    loss = BinaryCrossEntropy("auto", 0.0, -100, COUNTS, 4, 100)
    assert loss.pos_weight.dtype == torch.float32
    assert loss.pos_weight.tolist() == pytest.approx([1, 7 / 3, 1, 1])
    assert loss.to("meta").pos_weight.device.type == "meta"


def test_weights_of_another_number_of_labels():
    with pytest.raises(ValueError, match="4 values of pos_weight for an output of 3 labels"):
        BinaryCrossEntropy(WEIGHTS, 0.0, -100)(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(("class_counts", "num_train"), [(None, 100), (COUNTS, None), (None, None)])
def test_auto_needs_counted_labels(class_counts, num_train):
    problem = (
        r"^pos_weight: needs a task whose labels and training samples are counted, got 'auto'\. Use pos_weight=null"
    )
    with pytest.raises(ConfigError, match=problem):
        BinaryCrossEntropy("auto", 0.0, -100, class_counts, 4, num_train)


def test_all_faults_come_together():
    with pytest.raises(ConfigError) as error:
        BinaryCrossEntropy([1.0, math.nan], 1.0, 0, COUNTS)
    assert error.value.messages == (
        "pos_weight: needs one value for each of the 4 labels, got [1.0, nan].",
        "pos_weight: every value must be finite and not negative, got [1.0, nan].",
        "label_smoothing: must be at least 0 and below 1, got 1.0.",
        "ignore_index: would leave out every such label, got 0. Use a value that no label has, -100 for one.",
    )


def test_an_unknown_rule():
    with pytest.raises(ConfigError, match=r"^pos_weight: must be one value for each label, auto or null, got 'even'\."):
        BinaryCrossEntropy("even", 0.0, -100)
