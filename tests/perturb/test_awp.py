import pytest
import torch

from tests.support.perturbed import Words, add_to, awp, mean_loss, run_on, word_batches
from trainer.loop import compute_gradients
from trainer.perturb.moved_weights import select_weights


def test_each_matrix_moves_by_a_share_of_its_own_norm() -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    offset = awp(gamma=0.01)(weight, torch.zeros_like(weight), gradient)

    assert offset.norm() == pytest.approx(0.01 * weight.norm().item(), rel=1e-14)
    assert torch.nn.functional.cosine_similarity(offset.flatten(), gradient.flatten(), dim=0) == pytest.approx(1)


def test_weights_with_one_axis_do_not_move() -> None:
    assert list(select_weights(awp(), Words())) == ["embeddings.weight", "head.weight"]


def test_the_step_adds_the_gradient_at_all_moved_weights() -> None:
    batches = word_batches([4, 3])
    run = run_on(batches, awp(gamma=0.2))
    parameters = dict(run.model.named_parameters())
    own = dict(
        zip(parameters, torch.autograd.grad(mean_loss(run.model, batches), list(parameters.values())), strict=True)
    )
    offsets = {
        name: 0.2 * parameters[name].detach().norm() * own[name] / own[name].norm()
        for name in ("embeddings.weight", "head.weight")
    }
    first, second = offsets.items()
    with add_to(parameters[first[0]], first[1]), add_to(parameters[second[0]], second[1]):
        moved = torch.autograd.grad(mean_loss(run.model, batches), list(parameters.values()))
    compute_gradients(run, 0, batches)

    for (name, parameter), gradient in zip(parameters.items(), moved, strict=True):
        torch.testing.assert_close(parameter.grad, own[name] + gradient, rtol=0, atol=1e-14)
