import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.classification import MulticlassF1Score

from trainer.task.classification_metrics import EntityScore, TagF1

TAGS = ["B-X", "I-X", "O"]


def scores(rows: list[list[int]], num_classes: int) -> torch.Tensor:
    return F.one_hot(torch.tensor(rows), num_classes).float()


def test_precision_recall_and_f1_over_batches() -> None:
    batches = [([[0, 1, 2, 0]], [[0, 1, 2, 2]]), ([[2, 2, 0, 1], [2, 0, 2, 2]], [[0, 2, 0, 1], [2, 0, 1, -100]])]
    # Found X 0-1; X 2-3. Predicted besides: X 3; X 1. There besides: X 0; X 1-2.
    wanted = {"precision": 2 / 4, "recall": 2 / 4, "f1": 2 * 2 / (4 + 4)}
    for name, value in wanted.items():
        metric = EntityScore(TAGS, name)  # type: ignore[arg-type]
        for predicted, target in batches:
            metric.update(scores(predicted, 3), torch.tensor(target))
        assert metric.compute().item() == pytest.approx(value)


@pytest.mark.parametrize("score", ["precision", "recall", "f1"])
def test_no_entity_scores_0(score: str) -> None:
    metric = EntityScore(TAGS, score)  # type: ignore[arg-type]
    metric.update(scores([[2, 2]], 3), torch.tensor([[2, 2]]))

    assert metric.compute().item() == 0
    assert metric.higher_is_better


def test_one_found_of_three() -> None:
    predicted, target = scores([[0, 2, 2, 2, 2]], 3), torch.tensor([[0, 2, 0, 2, 0]])
    for score, value in {"precision": 1.0, "recall": 1 / 3, "f1": 0.5}.items():
        metric = EntityScore(TAGS, score)  # type: ignore[arg-type]
        metric.update(predicted, target)
        assert metric.compute().item() == pytest.approx(value)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from([-100, 0, 1, 2, 3])), min_size=2, max_size=40))
def test_the_f1_of_tags_is_the_macro_average(words: list[tuple[int, int]]) -> None:
    kept = [word for word in words if word[1] >= 0]
    if not kept:
        return
    metric, reference = TagF1(5), MulticlassF1Score(5, average="macro")
    half = len(words) // 2
    for part in (words[:half], words[half:]):
        metric.update(scores([[word for word, _ in part]], 5), torch.tensor([[target for _, target in part]]))
    reference.update(torch.tensor([word for word, _ in kept]), torch.tensor([target for _, target in kept]))

    assert metric.compute().item() == pytest.approx(reference.compute().item(), abs=1e-6)


@pytest.mark.slow
def test_nothing_waits_for_the_device() -> None:
    for metric in (EntityScore(TAGS, "f1"), TagF1(3)):
        metric.to("meta")  # without values: whatever would need one on the host raises
        metric.update(torch.zeros(4, 6, 3, device="meta"), torch.zeros(4, 6, dtype=torch.int64, device="meta"))
        assert metric.compute().shape == ()


@pytest.mark.gpu
def test_a_device_gives_the_same_and_is_not_waited_for() -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(16, 50, 3, generator=generator)
    target = torch.randint(-1, 3, (16, 50), generator=generator)
    target[target < 0] = -100
    for metric in (EntityScore(TAGS, "f1"), TagF1(3)):
        metric.update(output, target)
        wanted = metric.compute().item()
        metric.reset()
        metric.to("cuda")
        there = output.cuda(), target.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            metric.update(*there)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert metric.compute().item() == pytest.approx(wanted)
