"""The second part of a step: the gradient at moved weights is added, and nothing else ever sees these weights."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.perturbed import (
    CPU,
    METHODS,
    Words,
    add_to,
    fgm,
    gradients_of,
    mean_loss,
    pgd,
    run_on,
    word_batches,
)
from tests.support.ranks import call_ranks
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import gather_shards
from trainer.errors import ConfigError
from trainer.loop import compute_gradients, update_weights
from trainer.perturb.moved_weights import MovedWeights, select_weights, unit
from trainer.precision import Precision
from trainer.protocols import Batch
from trainer.prune.masks import Masks
from trainer.run import Run


def weights_of(run: Run) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def test_the_gradient_is_a_finite_difference_of_both_losses() -> None:
    batches = word_batches([5])
    run = run_on(batches, fgm(epsilon=0.3, weight=0.5))
    embeddings = run.model.get_parameter("embeddings.weight")
    (own,) = torch.autograd.grad(mean_loss(run.model, batches), embeddings)
    offset = 0.3 * unit(own)
    compute_gradients(run, 0, batches)

    # The offset is a constant of the step, so it is held while a weight changes.
    def objective() -> float:
        at_weights = mean_loss(run.model, batches).item()
        with add_to(embeddings, offset):
            return at_weights + 0.5 * mean_loss(run.model, batches).item()

    for parameter in run.model.parameters():
        assert parameter.grad is not None
        for position in range(0, parameter.numel(), 3):
            change = torch.zeros_like(parameter).flatten()
            change[position] = 1e-6
            with add_to(parameter, change.view_as(parameter)):
                above = objective()
            with add_to(parameter, -change.view_as(parameter)):
                below = objective()
            assert (above - below) / 2e-6 == pytest.approx(parameter.grad.flatten()[position].item(), abs=1e-8)


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.sampled_from(["fgm", "pgd", "awp"]))
def test_micro_batches_have_the_gradient_of_one_large_batch(sizes: list[int], name: str) -> None:
    batches = word_batches(sizes)
    whole = Batch(
        {"x": torch.cat([batch.inputs["x"] for batch in batches])},
        torch.cat([batch.target for batch in batches if batch.target is not None]),
        sum(sizes),
        tuple(range(sum(sizes))),
    )
    accumulated, at_once = gradients_of(batches, name), gradients_of([whole], name)

    for key, gradient in at_once.items():
        torch.testing.assert_close(accumulated[key], gradient, rtol=0, atol=1e-13)


def gradients_in_shards(ranks: Ranks) -> dict[str, dict[str, Tensor]]:
    """Return the gradients of a step by each method; a process has one micro-batch and some rows of each weight."""
    gradients = {}
    for name, method in METHODS.items():
        batches = word_batches([5, 2])[ranks.rank :][:1]
        run = run_on(batches, method, ranks=ranks)
        before = {key: gather_shards(weight.detach()).clone() for key, weight in run.model.named_parameters()}
        compute_gradients(run, 0, batches)
        assert all(torch.equal(gather_shards(run.model.get_parameter(key)), each) for key, each in before.items())
        parameters = run.model.named_parameters()
        gradients[name] = {key: gather_shards(each.grad) for key, each in parameters if each.grad is not None}
    return gradients


def test_weights_in_shards_move_by_the_norms_of_complete_weights(tmp_path: Path) -> None:
    for gradients in call_ranks(gradients_in_shards, 2, tmp_path):
        for name in METHODS:
            for key, expected in gradients_of(word_batches([5, 2]), name).items():
                torch.testing.assert_close(gradients[name][key], expected, rtol=0, atol=1e-14)


def test_the_moved_pass_has_the_dropout_of_the_first_one() -> None:
    batches = word_batches([6, 3])
    run = run_on(batches, fgm(epsilon=1e-12), dropout=0.5)
    plain = run_on(batches, None, dropout=0.5)
    for each in (run, plain):
        each.model.train()
        compute_gradients(each, 3, batches)

    for moved, own in zip(run.model.parameters(), plain.model.parameters(), strict=True):
        assert own.grad is not None
        assert own.grad.abs().max() > 1e-3
        torch.testing.assert_close(moved.grad, 2 * own.grad, rtol=1e-9, atol=1e-12)


class FailsLater(Words):
    """A model that runs out of memory in its n-th forward pass."""

    left = 0

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise MemoryError
        return super().forward(x)


@pytest.mark.parametrize("failing", [0, 2, 3])
def test_weights_and_statistics_are_restored_to_the_bit_also_after_an_error(failing: int) -> None:
    batches = word_batches([5])
    run = run_on(batches, pgd(epsilon=0.7, alpha=0.3, moves=2), dtype=torch.float32, model_type=FailsLater)
    plain = run_on(batches, None, dtype=torch.float32)
    for each in (run, plain):
        each.model.train()
    before = weights_of(run)
    compute_gradients(plain, 0, batches)
    assert isinstance(run.model, FailsLater)
    run.model.left = failing
    if failing:
        with pytest.raises(MemoryError):
            compute_gradients(run, 0, batches)
    else:
        compute_gradients(run, 0, batches)

    expected = weights_of(plain)
    assert not torch.equal(expected["norm.running_mean"], before["norm.running_mean"])
    for name, tensor in weights_of(run).items():
        assert torch.equal(tensor, expected[name]), name


def with_scale(run: Run, scale: float) -> Run:
    """Return a run in float16 with this loss scale."""
    precision = Precision("fp16", CPU)
    precision.load_state_dict({**precision.state_dict(), "scale": scale})
    return replace(run, precision=precision)


def test_a_float16_overflow_moves_nothing_and_the_step_is_repeated() -> None:
    batches = word_batches([4])
    run = run_on(batches, fgm(epsilon=0.5), dtype=torch.float32)
    before = weights_of(run)
    compute_gradients(with_scale(run, 2.0**40), 0, batches)
    gradient = run.model.get_parameter("head.weight").grad
    assert gradient is not None
    assert not gradient.isfinite().all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(run).items())

    run = with_scale(run, 2.0**40)
    update_weights(run, 0, batches)
    assert run.precision.scale < 2.0**40
    after = weights_of(run)
    assert all(tensor.isfinite().all() for tensor in after.values())
    assert not torch.equal(after["head.weight"], before["head.weight"])


def test_a_float16_step_moves_along_the_unscaled_gradient() -> None:
    batches = word_batches([6])
    seen: list[Tensor] = []

    class Recording:
        perturbs, targets, moves, weight, start_steps = "embeddings", None, 1, 1.0, 0

        def __call__(self, weight: Tensor, offset: Tensor, gradient: Tensor) -> Tensor:
            seen.append(gradient.clone())  # it is unscaled in place afterwards
            return offset

    run = run_on(batches, Recording(), dtype=torch.float32)
    compute_gradients(run, 0, batches)
    compute_gradients(with_scale(run, 2.0**10), 0, batches)
    torch.testing.assert_close(seen[1], seen[0], rtol=2e-2, atol=1e-4)


def test_moves_start_late_and_a_frozen_weight_does_not_move() -> None:
    batches = word_batches([4])
    own = gradients_of(batches, None)
    for change in ({"start_steps": 1}, {"frozen": True}):
        run = run_on(batches, fgm(epsilon=1.0, start_steps=change.get("start_steps", 0)))
        if "frozen" in change:
            run.model.get_parameter("embeddings.weight").requires_grad_(False)
        compute_gradients(run, 0, batches)
        for name, parameter in run.model.named_parameters():
            if parameter.grad is not None:
                assert torch.equal(parameter.grad, own[name])
    assert not torch.equal(gradients_of(batches, "fgm")["head.weight"], own["head.weight"])


def test_pruned_elements_do_not_move() -> None:
    batches = word_batches([4])
    kept = torch.rand(7, 4) > 0.5
    seen: list[Tensor] = []
    run = run_on(batches, fgm(epsilon=1.0))
    run = replace(run, masks=Masks(run.model, {"embeddings.weight": kept}))
    embeddings = run.model.get_parameter("embeddings.weight")
    run.model.register_forward_hook(lambda *call: seen.append(embeddings.detach().clone()))
    compute_gradients(run, 0, batches)

    assert not torch.equal(seen[0], seen[1])
    assert all((weight[~kept] == 0).all() for weight in seen)


def test_patterns_choose_the_weights() -> None:
    model = Words()
    chosen: dict[str, Any] = {
        "embeddings": (None, ["embeddings.weight"]),
        "by pattern": (["head", "*norm*"], ["head.weight", "head.bias", "norm.weight", "norm.bias"]),
    }
    for targets, names in chosen.values():
        assert list(select_weights(fgm(targets=targets), model)) == names
    for targets, message in (
        (["nothing"], "targets: matches no parameter, got 'nothing'. The model has embeddings, norm, head"),
        (["head.*"], "targets: the weights to move are frozen: head.weight, head.bias. Leave them out of model.freeze"),
    ):
        model.head.requires_grad_(False)
        with pytest.raises(ConfigError) as caught:
            select_weights(fgm(targets=targets), model)
        assert caught.value.messages[0].startswith(message)
    with pytest.raises(ConfigError, match="Linear does not say which of its weights are embeddings"):
        select_weights(fgm(), nn.Linear(2, 2))


def test_the_number_of_passes() -> None:
    model = Words()
    for method, passes in ((fgm(), 2), (pgd(epsilon=1.0, alpha=0.3, moves=3), 4)):
        assert MovedWeights(method, model, select_weights(method, model)).passes == passes
