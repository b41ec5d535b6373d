import math

import pytest
import torch
import torch.nn.functional as F
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import Perplexity as ReferencePerplexity

from trainer.task.classification_metrics import Perplexity, TokenAccuracy


def batches(vocab_size: int, *shapes: tuple[int, ...]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for shape in shapes:
        target = torch.randint(vocab_size, shape, generator=generator)
        target[torch.rand(shape, generator=generator) < 0.3] = -100
        made.append((4 * torch.randn(*shape, vocab_size, generator=generator), target))
    return made


def test_perplexity_and_accuracy_over_batches_of_any_shape() -> None:
    given = batches(11, (3, 7), (2, 4), (5, 1))
    perplexity, reference, accuracy = Perplexity(), ReferencePerplexity(ignore_index=-100), TokenAccuracy()
    share = MulticlassAccuracy(11, average="micro", ignore_index=-100)
    for output, target in given:
        for metric in (perplexity, reference, accuracy):
            metric.update(output, target)
        share.update(output.flatten(0, -2), target.flatten())

    assert perplexity.compute().item() == pytest.approx(reference.compute().item(), rel=1e-5)
    assert accuracy.compute().item() == pytest.approx(share.compute().item(), rel=1e-6)
    assert (perplexity.higher_is_better, accuracy.higher_is_better) == (False, True)


def test_large_vocabularies_go_through_in_pieces() -> None:
    ((output, target),) = batches(2**20, (3, 3))
    metric = Perplexity()
    metric.update(output, target)

    mean = F.cross_entropy(output.flatten(0, 1), target.flatten()).item()
    assert math.log(metric.compute().item()) == pytest.approx(mean, rel=1e-6)


def test_a_large_split_keeps_its_digits() -> None:
    metric = Perplexity()
    output = torch.tensor([[0.0, 1.0, 3.0]]).repeat(4000, 1)
    target = torch.arange(4000) % 3
    for _ in range(300):
        metric.update(output, target)

    exact = F.cross_entropy(output.double(), target).exp().item()
    assert metric.compute().item() == pytest.approx(exact, rel=5e-6)


def test_a_sure_mistake_is_not_infinite() -> None:
    metric = Perplexity()
    output = torch.tensor([[0.0, 200.0], *[[300.0, 0.0]] * 9])
    metric.update(output, torch.zeros(10, dtype=torch.int64))

    assert metric.compute().item() == pytest.approx(math.exp(20), rel=1e-5)


def test_half_precision_is_summed_in_single() -> None:
    ((output, target),) = batches(50, (40, 9))
    half, single = Perplexity(), Perplexity()
    half.update(output.half(), target)
    single.update(output.half().float(), target)

    assert torch.equal(half.compute(), single.compute())


def test_batches_without_a_target() -> None:
    for metric, value in ((Perplexity(), 1 + 4 / math.e), (TokenAccuracy(), 1.0)):
        metric.update(torch.zeros(2, 0, 5), torch.zeros(2, 0, dtype=torch.int64))
        metric.update(torch.zeros(2, 3, 5), torch.full((2, 3), -100))
        metric.update(torch.eye(5), torch.arange(5))
        assert metric.compute().item() == pytest.approx(value)


@pytest.mark.slow
def test_nothing_waits_for_the_device() -> None:
    for metric in (Perplexity(), TokenAccuracy()):
        metric.to("meta")  # without values: whatever would need one on the host raises
        metric.update(torch.zeros(4, 6, 3, device="meta"), torch.zeros(4, 6, dtype=torch.int64, device="meta"))
        assert metric.compute().shape == ()


@pytest.mark.gpu
def test_a_device_gives_the_same_and_is_not_waited_for() -> None:
    ((output, target),) = batches(3000, (64, 50))
    for metric in (Perplexity(), TokenAccuracy()):
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
        assert metric.compute().item() == pytest.approx(wanted, rel=1e-5)


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
