import pytest
import torch
from torch import nn

from trainer.ema import Ema


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_the_average_is_the_closed_form() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2).double()
    ema = Ema(model, decay=0.9)
    expected = weights(model)
    for step in range(30):
        nn.init.normal_(model.weight)
        ema.update(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = {name: decay * expected[name] + (1 - decay) * value for name, value in model.state_dict().items()}

    for name, value in ema.module.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-14, atol=1e-14)
    assert ema.state_dict() == {"updates": 30}


def test_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    before = weights(model)
    ema = Ema(model, decay=0.5)
    ema.update(model)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in ema.module.modules())


def test_buffers_are_copied_whatever_their_type() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.999)
    for _ in range(3):
        model(torch.randn(8, 2))
        ema.update(model)

    assert ema.module.num_batches_tracked.item() == 3
    assert torch.equal(ema.module.running_mean, model.running_mean)


def test_it_goes_on_where_it_stopped() -> None:
    torch.manual_seed(0)
    values = [torch.randn(2, 3) for _ in range(16)]
    model = nn.Linear(3, 2)
    start = weights(model)

    def run(ema: Ema, part: list[torch.Tensor]) -> Ema:
        for value in part:
            model.weight.data.copy_(value)
            ema.update(model)
        return ema

    whole = run(Ema(model, 0.99), values)
    model.load_state_dict(start)
    half = run(Ema(model, 0.99), values[:8])
    resumed = Ema(nn.Linear(3, 2), 0.99)
    resumed.module.load_state_dict(half.module.state_dict())
    resumed.load_state_dict(half.state_dict())
    run(resumed, values[8:])

    assert torch.equal(resumed.module.weight, whole.module.weight)
    assert resumed.updates == whole.updates == 16


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_small_decays(decay: float) -> None:
    model = nn.Linear(1, 1)
    ema = Ema(model, decay)
    model.weight.data.fill_(7.0)
    ema.module.weight.data.fill_(1.0)
    ema.update(model)

    # The first update's decay is min(decay, 1 / 10).
    assert ema.module.weight.item() == pytest.approx(7.0 - 6.0 * min(decay, 0.1))
