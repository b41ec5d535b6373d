import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.text import Perplexity as ReferencePerplexity

from trainer.task.classification_metrics import (
    ClassCounts,
    EntityScore,
    MacroF1,
    Perplexity,
    RankingScore,
    TokenAccuracy,
    average_precisions,
    decide_labels,
    f1_of_tags,
    multilabel_metrics,
)


def token_batches(vocab_size: int, *shapes: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        target = torch.randint(vocab_size, shape, generator=generator)
        target[torch.rand(shape, generator=generator) < 0.3] = -100
        made.append((4 * torch.randn(*shape, vocab_size, generator=generator), target))
    return made


def test_perplexity_and_accuracy_equal_torchmetrics() -> None:
    given_batches = token_batches(11, (3, 7), (2, 4), (5, 1))
    perplexity, reference, accuracy = Perplexity(), ReferencePerplexity(ignore_index=-100), TokenAccuracy()
    share = MulticlassAccuracy(11, average="micro", ignore_index=-100)
    for output, target in given_batches:
        for metric in (perplexity, reference, accuracy):
            metric.update(output, target)
        share.update(output.flatten(0, -2), target.flatten())

    assert perplexity.compute().item() == pytest.approx(reference.compute().item(), rel=1e-5)
    assert accuracy.compute().item() == pytest.approx(share.compute().item(), rel=1e-6)
    assert (perplexity.higher_is_better, accuracy.higher_is_better) == (False, True)


def test_perplexity_of_a_large_vocabulary() -> None:
    ((output, target),) = token_batches(2**20, (3, 3))
    metric = Perplexity()
    metric.update(output, target)

    mean = F.cross_entropy(output.flatten(0, 1), target.flatten()).item()
    assert math.log(metric.compute().item()) == pytest.approx(mean, rel=1e-6)


def test_perplexity_of_a_large_split_keeps_its_digits() -> None:
    metric = Perplexity()
    output = torch.tensor([[0.0, 1.0, 3.0]]).repeat(4000, 1)
    target = torch.arange(4000) % 3
    for _ in range(300):
        metric.update(output, target)

    exact = F.cross_entropy(output.double(), target).exp().item()
    assert metric.compute().item() == pytest.approx(exact, rel=5e-6)


def test_perplexity_of_a_confident_mistake_is_finite() -> None:
    metric = Perplexity()
    output = torch.tensor([[0.0, 200.0], *[[300.0, 0.0]] * 9])
    metric.update(output, torch.zeros(10, dtype=torch.int64))

    assert metric.compute().item() == pytest.approx(math.exp(20), rel=1e-5)


def test_perplexity_sums_half_precision_in_float32() -> None:
    ((output, target),) = token_batches(50, (40, 9))
    half, single = Perplexity(), Perplexity()
    half.update(output.half(), target)
    single.update(output.half().float(), target)

    assert torch.equal(half.compute(), single.compute())


def test_batches_without_a_target_are_ignored() -> None:
    for metric, value in ((Perplexity(), 1 + 4 / math.e), (TokenAccuracy(), 1.0)):
        metric.update(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64))
        metric.update(torch.zeros(2, 3, 5), torch.full((2, 3), -100))
        metric.update(torch.eye(5), torch.arange(5))
        assert metric.compute().item() == pytest.approx(value)


@pytest.mark.gpu
def test_no_second_tensor_of_the_size_of_the_logits() -> None:
    output = torch.zeros(4096, 32000, device="cuda")
    target = torch.zeros(4096, dtype=torch.int64, device="cuda")
    for metric in (Perplexity(), TokenAccuracy()):
        metric.to("cuda")
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        metric.update(output, target)
        assert torch.cuda.max_memory_allocated() - before < output.nbytes / 8


TAGS = ["B-X", "I-X", "O"]


def scores(rows: list[list[int]], num_classes: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(rows), num_classes).float()


def test_entity_scores_over_batches() -> None:
    batches = [([[0, 1, 2, 0]], [[0, 1, 2, 2]]), ([[2, 2, 0, 1], [2, 0, 2, 2]], [[0, 2, 0, 1], [2, 0, 1, -100]])]
    # Found X 0-1; X 2-3. Predicted besides: X 3; X 1. There besides: X 0; X 1-2.
    expected = {"precision": 2 / 4, "recall": 2 / 4, "f1": 2 * 2 / (4 + 4)}
    for name, value in expected.items():
        metric = EntityScore(TAGS, name)  # type: ignore[arg-type]
        for predicted, target in batches:
            metric.update(scores(predicted, 3), torch.tensor(target))
        assert metric.compute().item() == pytest.approx(value)


def test_entity_scores_of_one_match_in_three() -> None:
    predicted, target = scores([[0, 2, 2, 2, 2]], 3), torch.tensor([[0, 2, 0, 2, 0]])
    for score, value in {"precision": 1.0, "recall": 1 / 3, "f1": 0.5}.items():
        metric = EntityScore(TAGS, score)  # type: ignore[arg-type]
        metric.update(predicted, target)
        assert metric.compute().item() == pytest.approx(value)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-100, 0, 1, 2, 3])), min_size=2, max_size=40))
def test_tag_f1_equals_the_macro_average(words: list[tuple[int, int]]) -> None:
    kept = [word for word in words if word[1] >= 0]
    if not kept:
        return
    metric, reference = ClassCounts(5, f1_of_tags), MulticlassF1Score(5, average="macro")
    half = len(words) // 2
    for part in (words[:half], words[half:]):
        metric.update(scores([[word for word, _ in part]], 5), torch.tensor([[target for _, target in part]]))
    reference.update(torch.tensor([word for word, _ in kept]), torch.tensor([target for _, target in kept]))

    assert metric.compute().item() == pytest.approx(reference.compute().item(), abs=1e-6)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=40))
def test_macro_f1_has_the_bits_and_the_states_of_the_reference(rows: list[tuple[int, int]]) -> None:
    metric, reference = MacroF1(6), MulticlassF1Score(6, average="macro")
    half = len(rows) // 2
    for part in (rows[:half], rows[half:]):
        output, target = scores([[row for row, _ in part]], 6)[0], torch.tensor([target for _, target in part])
        metric.update(output, target)
        reference.update(output, target)

    assert torch.equal(metric.compute(), reference.compute())
    for state in ("tp", "fp", "tn", "fn"):
        assert torch.equal(getattr(metric, state), getattr(reference, state))


def test_macro_f1_of_many_classes_needs_no_table_of_pairs() -> None:
    metric = MacroF1(1_000_000)  # 8 TB of pairs
    metric.update(torch.nn.functional.one_hot(torch.tensor([3, 999_999]), 1_000_000), torch.tensor([3, 5]))

    assert metric.compute().item() == pytest.approx(1 / 3)


def computed(logits: torch.Tensor, target: torch.Tensor, threshold: float, size: int = 7) -> dict[str, float]:
    metrics = multilabel_metrics(logits.shape[1], partial(decide_labels, threshold=threshold))
    for start in range(0, len(logits), size):
        metrics.update(logits[start : start + size], target[start : start + size])
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("threshold", [0.5, 0.2])
@pytest.mark.parametrize("spread", [3.0, 0.1])
def test_multilabel_metrics_equal_scikit_learn(threshold: float, spread: float) -> None:
    generator = torch.Generator().manual_seed(0)
    # With the small spread whole batches lie in [0, 1], where logits could be taken for probabilities.
    logits = torch.randn(50, 4, generator=generator) * spread + 0.5
    target = (torch.rand(50, 4, generator=generator) < torch.tensor([0.5, 0.3, 0.1, 0.8])).float()
    predicted = (1 / (1 + np.exp(-logits.double().numpy())) > threshold).astype(int)

    assert computed(logits, target, threshold) == pytest.approx(
        {
            "micro_f1": reference.f1_score(target, predicted, average="micro"),
            "macro_f1": reference.f1_score(target, predicted, average="macro"),
            "mean_average_precision": reference.average_precision_score(target, logits, average="macro"),
            "exact_match": reference.accuracy_score(target, predicted),
        },
        abs=1e-6,
    )


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(-2, 2), st.booleans()), min_size=1, max_size=30))
def test_average_precision_with_ties_equals_scikit_learn(rows: list[tuple[int, bool]]) -> None:
    scores = torch.tensor([[float(score)] for score, _ in rows])
    target = torch.tensor([[positive] for _, positive in rows])
    precisions = average_precisions(scores, target)

    if not target.any():
        assert precisions.isnan().all()
        return
    assert precisions.item() == pytest.approx(reference.average_precision_score(target[:, 0], scores[:, 0]), abs=1e-12)


def test_labels_without_a_positive_are_left_out_of_the_mean() -> None:
    metric = RankingScore(average_precisions)
    metric.update(torch.tensor([[1.0, 0.0, 5.0], [0.0, 1.0, 6.0]]), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    assert metric.compute().item() == 1.0

    metric.reset()
    metric.update(torch.zeros(2, 3), torch.zeros(2, 3))
    assert metric.compute().isnan()


def test_average_precision_of_many_labels() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(20, 600, generator=generator), torch.rand(20, 600, generator=generator) < 0.4
    target[0] = True
    metric = RankingScore(average_precisions)
    metric.update(logits, target.float())

    assert metric.compute().item() == pytest.approx(reference.average_precision_score(target, logits), abs=1e-12)


def test_multilabel_metrics_have_a_direction_and_reset() -> None:
    metrics = multilabel_metrics(2, partial(decide_labels, threshold=0.5))
    metrics.update(torch.ones(2, 2), torch.zeros(2, 2))
    metrics.reset()
    metrics.update(torch.ones(2, 2), torch.ones(2, 2))

    assert all(metric.higher_is_better for metric in metrics.values())
    assert {name: value.item() for name, value in metrics.compute().items()} == dict.fromkeys(metrics, 1.0)


def test_probability_at_the_threshold_is_not_a_decision() -> None:
    assert decide_labels(torch.tensor([[0.0, 1e-3, -1e-3]]), 0.5).tolist() == [[False, True, False]]


def test_no_entity_scores_0() -> None:
    for score in ("precision", "recall", "f1"):
        metric = EntityScore(TAGS, score)  # type: ignore[arg-type]
        metric.update(scores([[2, 2]], 3), torch.tensor([[2, 2]]))
        assert metric.compute().item() == 0
        assert metric.higher_is_better


@pytest.mark.slow
def test_updates_do_not_wait_for_the_device() -> None:
    for metric in (EntityScore(TAGS, "f1"), ClassCounts(3, f1_of_tags), Perplexity(), TokenAccuracy()):
        metric.to("meta")  # tensors without values: an operation that needs a value on the host raises
        metric.update(torch.zeros(4, 6, 3, device="meta"), torch.zeros(4, 6, dtype=torch.int64, device="meta"))
        assert metric.compute().shape == ()


@pytest.mark.gpu
def test_device_gives_the_same_values_without_a_sync() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(16, 50, 3, generator=generator)
    target = torch.randint(-1, 3, (16, 50), generator=generator)
    target[target < 0] = -100
    for metric in (EntityScore(TAGS, "f1"), ClassCounts(3, f1_of_tags), Perplexity(), TokenAccuracy()):
        metric.update(output, target)
        expected = metric.compute().item()
        metric.reset()
        metric.to("cuda")
        on_device = output.cuda(), target.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            metric.update(*on_device)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert metric.compute().item() == pytest.approx(expected, rel=1e-5)
