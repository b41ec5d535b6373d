import pytest
import torch
from torch import nn

from trainer.ema import Ema
from trainer.loss.cross_entropy import CrossEntropy


def weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_average_equals_the_closed_form() -> None:
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


def test_the_model_is_not_changed() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
    before = weights(model)
    ema = Ema(model, decay=0.5)
    ema.update(model)

    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())
    assert not any(module.training for module in ema.module.modules())


def test_buffers_of_any_dtype_are_copied() -> None:
    model = nn.BatchNorm1d(2)
    ema = Ema(model, decay=0.999)
    for _ in range(3):
        model(torch.randn(8, 2))
        ema.update(model)

    assert ema.module.num_batches_tracked.item() == 3
    assert torch.equal(ema.module.running_mean, model.running_mean)


def test_average_resumes_from_its_state() -> None:
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
def test_decay_warmup_starts_at_a_tenth(decay: float) -> None:
    model = nn.Linear(1, 1)
    ema = Ema(model, decay)
    model.weight.data.fill_(7.0)
    ema.module.weight.data.fill_(1.0)
    ema.update(model)

    # The first update's decay is min(decay, 1 / 10).
    assert ema.module.weight.item() == pytest.approx(7.0 - 6.0 * min(decay, 0.1))


class Owning(nn.Module):
    """A loss with a weight of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (output * self.scale).sum()

    def num_targets(self, target: torch.Tensor) -> torch.Tensor:
        return torch.tensor(target.numel())


def test_weights_of_a_loss_are_averaged_too() -> None:
    model, loss = nn.Linear(2, 2).double(), Owning()
    ema = Ema(model, 0.9, loss)
    expected = 1.0
    for step in range(20):
        with torch.no_grad():
            loss.scale += 1
            loss.seen += 1
        ema.update(model, loss)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * loss.scale.item()

    assert isinstance(ema.loss, Owning)
    assert ema.loss is not loss
    assert ema.loss.scale.item() == pytest.approx(expected, rel=1e-14)
    assert ema.loss.seen.item() == 20
    assert not ema.loss.scale.requires_grad


def test_a_loss_without_weights_is_not_copied() -> None:
    model, loss = nn.Linear(2, 2), CrossEntropy(None, 0.0, -100)
    ema = Ema(model, 0.9, loss)
    ema.update(model, loss)

    assert ema.loss is loss
