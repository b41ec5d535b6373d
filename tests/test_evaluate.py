from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from trainer.evaluate import directions, evaluate, score
from trainer.loss.cross_entropy import CrossEntropy
from trainer.precision import Precision
from trainer.protocols import Batch

CPU = torch.device("cpu")


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.layers(x)
        return output


def loss() -> CrossEntropy:
    return CrossEntropy(weight=None, label_smoothing=0.0, ignore_index=-100)


def metrics() -> MetricCollection:
    return MetricCollection({"accuracy": MulticlassAccuracy(3, average="micro")})


def batches(sizes: list[int]) -> list[Batch]:
    torch.manual_seed(1)
    x, y = torch.randn(sum(sizes), 4), torch.randint(3, (sum(sizes),))
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return [Batch({"x": a}, b, len(b), tuple(range(len(b)))) for a, b in parts]


def measure(model: nn.Module, sizes: list[int]) -> dict[str, float]:
    return evaluate(model, loss(), batches(sizes), metrics(), precision=Precision("fp32", CPU), device=CPU)


def test_equals_the_whole_split_at_once_however_it_is_cut() -> None:
    torch.manual_seed(0)
    model = Classifier()
    whole = batches([20])[0]
    model.eval()
    with torch.no_grad():
        output = model(**whole.inputs)
    assert whole.target is not None
    expected = {
        "loss": nn.functional.cross_entropy(output, whole.target).item(),
        "accuracy": (output.argmax(1) == whole.target).float().mean().item(),
    }

    for sizes in ([20], [7, 7, 6], [1] * 20):
        assert measure(model, sizes) == pytest.approx(expected, abs=1e-6)


def test_leaves_modes_weights_buffers_and_generators_as_they_were() -> None:
    model = Classifier().train()
    model.layers[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    generator = torch.get_rng_state()
    measure(model, [5, 5])

    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    # `batches` seeds the generator, so it is read after them.
    torch.manual_seed(1)
    torch.randn(10, 4)
    torch.randint(3, (10,))
    expected = torch.get_rng_state()
    torch.set_rng_state(generator)
    measure(model, [5, 5])
    assert torch.equal(torch.get_rng_state(), expected)


def test_modes_come_back_after_an_error() -> None:
    model = Classifier().train()
    bad = Batch({"x": torch.ones(2, 9)}, torch.zeros(2, dtype=torch.long), 2, (0, 1))

    with pytest.raises(RuntimeError):
        evaluate(model, loss(), [bad], metrics(), precision=Precision("fp32", CPU), device=CPU)
    assert model.training


@pytest.mark.parametrize(
    ("values", "higher", "winner"),
    [
        ({"raw": 0.5, "ema": 0.6}, True, "ema"),
        ({"raw": 0.5, "ema": 0.6}, False, "raw"),
        ({"raw": 1, "ema": 1}, True, "raw"),
    ],
)
def test_the_better_weights_score_and_all_are_logged(values: dict[str, float], higher: bool, winner: str) -> None:
    models = {name: (nn.Identity(), loss()) for name in values}
    of = {id(model): values[name] for name, (model, _) in models.items()}
    logged: list[dict[str, Any]] = []
    found = score(models, "m", higher, lambda model, _: {"m": of[id(model)]}, logged.append)

    assert (found.weights, found.value, found.higher_is_better) == (winner, values[winner], higher)
    assert [entry["weights"] for entry in logged] == ["raw", "ema"]


def test_a_metric_tells_its_direction() -> None:
    assert directions(metrics()) == {"loss": False, "accuracy": True}
