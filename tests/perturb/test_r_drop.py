from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.perturbed import CPU, mean_loss, run_on, word_batches
from trainer.errors import ConfigError
from trainer.loop import compute_gradients
from trainer.perturb.r_drop import RDrop
from trainer.step_rng import StepRng


def r_drop(**keys: Any) -> RDrop:
    return RDrop(**{"alpha": 1.0, "start_steps": 0, "target": "class"} | keys)


def divergences(first: Tensor, second: Tensor) -> Tensor:
    """Return the mean of both divergences for rows of logarithms of probabilities, by torch's own function."""
    pairs = ((first, second), (second, first))
    return torch.stack([F.kl_div(q, p, log_target=True, reduction="none").sum(dim=-1) for p, q in pairs]).mean(dim=0)


def scores(*shape: int, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(sum(shape))
    first, second = scale * torch.randn(2, *shape, dtype=torch.float64)
    return first, second


def test_classes_have_the_divergence_of_the_softmax_and_ignored_targets_none() -> None:
    first, second = scores(2, 5, 4)
    target = torch.tensor([[0, 1, -100, 3, 2], [-100, -100, 0, 1, 1]])
    rows = divergences(first.log_softmax(dim=-1), second.log_softmax(dim=-1))
    value = r_drop(alpha=0.5)(first, second, target, -100)

    assert value.item() == pytest.approx(0.5 * rows[target != -100].sum().item(), rel=1e-12)
    assert r_drop(target="shares")(first, second, torch.rand(2, 5, 4), -100).item() == pytest.approx(rows.sum().item())


def test_labels_have_the_divergence_of_their_yes_and_no() -> None:
    first, second = scores(6, 3)
    both = [torch.stack([F.logsigmoid(each), F.logsigmoid(-each)], dim=-1) for each in (first, second)]
    target = torch.randint(2, (6, 3)).double()
    target[0, 1] = -1
    expected = divergences(*both)[target != -1].sum().item()

    assert r_drop(target="multi_hot")(first, second, target, -1).item() == pytest.approx(expected, rel=1e-12)


def test_equal_outputs_have_no_divergence_and_the_order_does_not_matter() -> None:
    first, second = scores(6, 3, scale=40.0)
    target = torch.zeros(6, dtype=torch.int64)

    assert r_drop()(first, first + 7.0, target, None).item() == pytest.approx(0.0, abs=1e-12)
    assert r_drop()(first, second, target, None) == r_drop()(second, first, target, None) > 0
    assert r_drop()(first.bfloat16(), second.bfloat16(), target, None).dtype == torch.float32


@pytest.mark.parametrize("target", ["class", "multi_hot"])
def test_gradients_are_finite_differences(target: str) -> None:
    first, second = scores(4, 3)
    wanted = torch.tensor([0, 2, -1, 1]) if target == "class" else torch.randint(2, (4, 3)).double()
    method = r_drop(alpha=1.5, target=target)

    assert torch.autograd.gradcheck(
        lambda *pair: method(*pair, wanted, -1), (first.requires_grad_(), second.requires_grad_())
    )


def test_the_step_has_the_mean_loss_of_two_dropout_masks_and_their_divergence() -> None:
    (batch,) = batches = word_batches([6])
    assert batch.target is not None
    run = replace(run_on(batches, None, dropout=0.5), consistency=r_drop(alpha=2.0))
    run.model.train()
    run.model.get_submodule("norm").eval()  # its statistics would change between the passes
    loss, _ = compute_gradients(run, 3, batches).tolist()
    actual = {
        name: parameter.grad.clone() for name, parameter in run.model.named_parameters() if parameter.grad is not None
    }
    outputs = []
    for stream in (0, 1):
        StepRng(0, CPU).start(3, 0, stream)
        outputs.append(run.model(batch.inputs["x"]))
    assert not torch.equal(*outputs)
    terms = divergences(*(output.log_softmax(dim=-1) for output in outputs))
    losses = [F.cross_entropy(output, batch.target, label_smoothing=0.1) for output in outputs]
    expected = sum(losses) / 2 + 2.0 * terms.mean()

    assert loss == pytest.approx(expected.item(), abs=1e-7)
    run.model.zero_grad()
    expected.backward()
    for name, parameter in run.model.named_parameters():
        torch.testing.assert_close(actual[name], parameter.grad, rtol=0, atol=1e-14)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=5))
def test_micro_batches_have_the_gradient_of_the_sum_over_their_targets(sizes: list[int]) -> None:
    batches = word_batches(sizes)
    run = replace(run_on(batches, None, dropout=0.5), consistency=r_drop())
    run.model.train()
    run.model.get_submodule("norm").eval()
    compute_gradients(run, 0, batches)
    together = [parameter.grad.clone() for parameter in run.model.parameters() if parameter.grad is not None]
    shares = [torch.zeros_like(each) for each in together]
    for batch in batches:
        compute_gradients(run, 0, [batch])
        for share, parameter in zip(shares, run.model.parameters(), strict=True):
            assert parameter.grad is not None
            share += parameter.grad * batch.num_samples / sum(sizes)

    for actual, expected in zip(together, shares, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-14)


def test_it_starts_late() -> None:
    batches = word_batches([6])
    run = replace(run_on(batches, None), consistency=r_drop(start_steps=2))
    loss, _ = compute_gradients(run, 1, batches).tolist()

    assert loss == pytest.approx(mean_loss(run.model, batches).item(), abs=1e-7)


def test_values_out_of_range_are_rejected() -> None:
    with pytest.raises(ConfigError, match="alpha: must be greater than 0"):
        r_drop(alpha=0.0)
