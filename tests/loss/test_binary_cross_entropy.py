import math

import pytest
import torch
from torch.nn import functional as F

from tests.support.loss_sums import check_reference, logits_and_labels
from trainer.errors import ConfigError
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy

COUNTS = [50, 30, 0, 100]
WEIGHTS = [0.5, 2.0, 0.0, 3.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_value_and_gradient_match_torch(dtype):
    logits, target = logits_and_labels(dtype)
    target = target.clamp_min(0).to(dtype)
    for pos_weight in (None, WEIGHTS):
        factors = None if pos_weight is None else torch.tensor(pos_weight, dtype=dtype)
        loss = BinaryCrossEntropy(pos_weight, 0.0, -100)

        def reference(output, target, reduction="sum", factors=factors):
            return F.binary_cross_entropy_with_logits(output, target, pos_weight=factors, reduction=reduction)

        check_reference(loss, reference, logits, target)
        assert loss.num_targets(target).item() == 128
        mean = loss(logits, target) / loss.num_targets(target)
        assert math.isclose(mean, reference(logits, target, "mean"), rel_tol=8 * torch.finfo(dtype).eps)


def test_value_matches_the_definition():
    logits, target = logits_and_labels()
    for pos_weight, label_smoothing in [(None, 0.0), (WEIGHTS, 0.1), (WEIGHTS, 0.9)]:
        expected = 0.0
        for row, answers in zip(logits.tolist(), target.tolist(), strict=True):
            for x, y, w in zip(row, answers, pos_weight or [1.0] * 4, strict=True):
                if y != -100:
                    share = y * (1 - label_smoothing) + label_smoothing / 2
                    expected += w * share * math.log1p(math.exp(-x)) + (1 - share) * math.log1p(math.exp(x))
        value = BinaryCrossEntropy(pos_weight, label_smoothing, -100)(logits, target)
        assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_gradient():
    logits, target = logits_and_labels(rows=8)
    loss = BinaryCrossEntropy(WEIGHTS, 0.1, -100)
    assert torch.autograd.gradcheck(lambda scores: loss(scores, target), logits.requires_grad_())


def test_auto_is_negatives_over_positives():
    loss = BinaryCrossEntropy("auto", 0.0, -100, COUNTS, 4, 100)
    assert loss.pos_weight.dtype == torch.float32
    assert loss.pos_weight.tolist() == pytest.approx([1, 7 / 3, 1, 1])
    assert loss.to("meta").pos_weight.device.type == "meta"


def test_number_of_weights_must_match_the_labels():
    with pytest.raises(ValueError, match="4 values of pos_weight for an output of 3 labels"):
        BinaryCrossEntropy(WEIGHTS, 0.0, -100)(torch.zeros(2, 3), torch.zeros(2, 3))


@pytest.mark.parametrize(("class_counts", "num_train"), [(None, 100), (COUNTS, None)])
def test_auto_needs_counted_labels(class_counts, num_train):
    with pytest.raises(
        ConfigError, match=r"^pos_weight: needs a task that counts.*, got 'auto'\. Use loss\.pos_weight=null"
    ):
        BinaryCrossEntropy("auto", 0.0, -100, class_counts, 4, num_train)


def test_wrong_arguments_are_reported_together():
    with pytest.raises(ConfigError) as error:
        BinaryCrossEntropy([0.0, 0.0], 1.0, 0)
    assert [message.split(":")[0] for message in error.value.messages] == [
        "label_smoothing",
        "pos_weight",
        "ignore_index",
    ]
    for pos_weight in ("even", [1.0], [1.0, 1.0, 1.0, math.nan]):
        with pytest.raises(ConfigError, match=r"^pos_weight: must "):
            BinaryCrossEntropy(pos_weight, 0.0, -100, COUNTS)
