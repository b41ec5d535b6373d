import pytest
import torch

from tests.support.perturbed import add_to, fgm, mean_loss, run_on, word_batches
from trainer.errors import ConfigError
from trainer.loop import compute_gradients
from trainer.perturb.fgm import Fgm

ZERO = torch.zeros(7, 4, dtype=torch.float64)


def test_the_offset_has_the_direction_of_the_gradient_and_the_norm_epsilon() -> None:
    gradient = torch.tensor([[3.0, 0.0], [0.0, 4.0]], dtype=torch.float64)
    offset = fgm(epsilon=2.5)(torch.ones(2, 2), torch.zeros(2, 2), gradient)

    torch.testing.assert_close(offset, gradient / 2, rtol=1e-15, atol=0)


def test_no_gradient_or_an_infinite_one_moves_nothing() -> None:
    for gradient in (ZERO, torch.full_like(ZERO, float("inf")), torch.full_like(ZERO, float("nan"))):
        assert torch.equal(fgm()(ZERO, ZERO, gradient), ZERO)


def test_the_loss_grows_by_epsilon_times_the_norm_and_more_than_in_any_other_direction() -> None:
    batches = word_batches([6])
    model = run_on(batches, None).model
    weight = model.get_parameter("embeddings.weight")
    before = mean_loss(model, batches)
    (gradient,) = torch.autograd.grad(before, weight)
    torch.manual_seed(0)
    directions = [fgm(epsilon=1e-5)(weight, ZERO, each) for each in (gradient, *torch.randn(20, 7, 4).double())]
    growths = []
    for offset in directions:
        with add_to(weight, offset), torch.no_grad():
            growths.append((mean_loss(model, batches) - before).item())

    assert growths[0] == pytest.approx(1e-5 * gradient.norm().item(), rel=1e-4)
    assert growths[0] > max(growths[1:])


def test_the_step_adds_the_gradient_at_the_moved_embeddings() -> None:
    batches = word_batches([4, 3])
    run = run_on(batches, fgm(epsilon=0.4, weight=2.0))
    parameters = dict(run.model.named_parameters())
    own = torch.autograd.grad(mean_loss(run.model, batches), list(parameters.values()))
    gradient = own[list(parameters).index("embeddings.weight")]
    with add_to(parameters["embeddings.weight"], 0.4 * gradient / gradient.norm()):
        moved = torch.autograd.grad(mean_loss(run.model, batches), list(parameters.values()))
    loss, _ = compute_gradients(run, 0, batches).tolist()

    # The loss that is logged is the one at the weights themselves.
    assert loss == pytest.approx(mean_loss(run.model, batches).item(), abs=1e-7)
    for parameter, first, second in zip(parameters.values(), own, moved, strict=True):
        torch.testing.assert_close(parameter.grad, first + 2 * second, rtol=0, atol=1e-14)


def test_values_out_of_range_are_rejected() -> None:
    for key in ("epsilon", "weight"):
        with pytest.raises(ConfigError, match=f"{key}: must be greater than 0"):
            fgm(**{key: 0.0})
    with pytest.raises(ConfigError) as caught:
        Fgm(epsilon=1.0, weight=1.0, start_steps=-1, targets=[])
    assert [message.partition(":")[0] for message in caught.value.messages] == ["start_steps", "targets"]
