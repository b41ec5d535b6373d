import torch

from tests.support.perturbed import add_to, fgm, gradients_of, mean_loss, pgd, run_on, word_batches
from trainer.loop import compute_gradients


def test_an_offset_outside_of_the_ball_is_projected_onto_it() -> None:
    gradient = torch.tensor([0.0, 2.0], dtype=torch.float64)
    method = pgd(epsilon=1.0, alpha=0.75, moves=2)
    inside = method(torch.ones(2), torch.zeros(2), gradient)
    outside = method(torch.ones(2), torch.tensor([1.0, 0.0], dtype=torch.float64), gradient)

    assert inside.tolist() == [0.0, 0.75]
    torch.testing.assert_close(outside, torch.tensor([0.8, 0.6], dtype=torch.float64), rtol=1e-15, atol=0)
    assert method(torch.ones(2), torch.zeros(2), torch.zeros(2)).tolist() == [0.0, 0.0]


def test_the_step_adds_only_the_gradient_after_the_last_move() -> None:
    batches = word_batches([4, 3])
    run = run_on(batches, pgd(epsilon=0.5, alpha=0.2, moves=4))
    parameters = dict(run.model.named_parameters())
    embeddings = parameters["embeddings.weight"]
    offset = torch.zeros_like(embeddings)
    gradients = []
    for _ in range(5):
        with add_to(embeddings, offset):
            gradients.append(torch.autograd.grad(mean_loss(run.model, batches), list(parameters.values())))
        step = gradients[-1][list(parameters).index("embeddings.weight")]
        offset = offset + 0.2 * step / step.norm()
        offset = offset if offset.norm() <= 0.5 else 0.5 * offset / offset.norm()
    compute_gradients(run, 0, batches)

    for parameter, first, last in zip(parameters.values(), gradients[0], gradients[-1], strict=True):
        torch.testing.assert_close(parameter.grad, first + last, rtol=0, atol=1e-13)


def test_one_full_move_is_the_fast_gradient_method() -> None:
    batches = word_batches([5])
    runs = [run_on(batches, method) for method in (pgd(epsilon=0.4, alpha=0.9, moves=1), fgm(epsilon=0.4))]
    for run in runs:
        compute_gradients(run, 0, batches)

    for ours, theirs in zip(*(run.model.parameters() for run in runs), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-14)


def test_more_moves_find_a_larger_loss() -> None:
    batches = word_batches([6])
    model = run_on(batches, None).model
    weight = model.get_parameter("embeddings.weight")
    losses = []
    for moves in (1, 8):
        method, offset = pgd(epsilon=2.0, alpha=2.0 / moves, moves=moves), torch.zeros_like(weight)
        for _ in range(moves):
            with add_to(weight, offset):
                (gradient,) = torch.autograd.grad(mean_loss(model, batches), weight)
            offset = method(weight.detach(), offset, gradient)
        with add_to(weight, offset):
            losses.append(mean_loss(model, batches).item())

    assert losses[1] > losses[0]
    assert gradients_of(batches, "pgd").keys() == dict(model.named_parameters()).keys()
