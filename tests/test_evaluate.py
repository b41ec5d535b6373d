import weakref
from typing import Any

import pytest
import torch
from torch import nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from trainer import deferred_logits
from trainer.evaluate import evaluate, metric_directions
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


def loss(loss_class: type[CrossEntropy] = CrossEntropy) -> CrossEntropy:
    return loss_class(weight=None, label_smoothing=0.0, ignore_index=-100)


def metrics() -> MetricCollection:
    return MetricCollection({"accuracy": MulticlassAccuracy(3, average="micro")})


def batches(sizes: list[int]) -> list[Batch]:
    torch.manual_seed(1)
    x, y = torch.randn(sum(sizes), 4), torch.randint(3, (sum(sizes),))
    parts = zip(x.split(sizes), y.split(sizes), strict=True)
    return [Batch({"x": a}, b, len(b), tuple(range(len(b)))) for a, b in parts]


def measure(model: nn.Module, sizes: list[int]) -> dict[str, float]:
    return evaluate(model, loss(), batches(sizes), metrics(), precision=Precision("fp32", CPU), device=CPU)


def test_result_does_not_depend_on_how_the_split_is_batched() -> None:
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


def test_modes_weights_buffers_and_rng_are_unchanged() -> None:
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


def test_modes_are_restored_after_an_error() -> None:
    model = Classifier().train()
    bad = Batch({"x": torch.ones(2, 9)}, torch.zeros(2, dtype=torch.long), 2, (0, 1))

    with pytest.raises(RuntimeError):
        evaluate(model, loss(), [bad], metrics(), precision=Precision("fp32", CPU), device=CPU)
    assert model.training


class Halving(list[Batch]):
    """Batches that can be loaded again in halves; counts how often."""

    num_halved = 0

    def halves(self, batch: Batch) -> list[Batch]:
        self.num_halved += 1
        middle, target = batch.num_samples // 2, batch.target
        assert target is not None
        parts = (slice(None, middle), slice(middle, None))
        return [Batch({"x": batch.inputs["x"][p]}, target[p], len(target[p]), batch.ids[p]) for p in parts]


@pytest.mark.parametrize("limit", [1, 3, 4, 9])
@pytest.mark.parametrize("place", ["model", "loss"])
def test_a_batch_for_which_memory_runs_out_runs_in_halves(
    limit: int, place: str, caplog: pytest.LogCaptureFixture
) -> None:
    num_failed = 0

    def limited(where: str, samples: torch.Tensor) -> None:
        nonlocal num_failed
        if where == place and len(samples) > limit:
            num_failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    class Limited(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            limited("model", x)
            return super().forward(x)

    class LimitedLoss(CrossEntropy):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            limited("loss", output)
            return super().forward(output, target)

    torch.manual_seed(0)
    model, plain, parts = Limited(), Classifier(), Halving(batches([9, 4, 9]))
    plain.load_state_dict(model.state_dict())

    values = evaluate(model, loss(LimitedLoss), parts, metrics(), precision=Precision("fp32", CPU), device=CPU)

    assert values == pytest.approx(measure(plain, [9, 4, 9]), abs=1e-6)
    assert parts.num_halved == {1: 2 * 8 + 3, 3: 2 * 3 + 1, 4: 2 * 2, 9: 0}[limit]
    # Each size is tried and reported once, however many batches have it.
    assert num_failed == len(caplog.messages) == {1: 3, 3: 2, 4: 2, 9: 0}[limit]


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_a_batch_whose_deferred_logits_do_not_fit_runs_in_halves(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_logits, "CHUNK_ELEMENTS", 1)
    monkeypatch.setattr(deferred_logits, "MIN_ROWS", 3)
    computed: list[weakref.ref[torch.Tensor]] = []

    class Limited(CrossEntropy):
        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            assert not any(logits() is not None for logits in computed), "the logits of two chunks are in memory"
            if len(output) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            computed.append(weakref.ref(output))
            return super().forward(output, target)

    class Deferring(Classifier):
        def forward(self, x: torch.Tensor) -> Any:
            last = self.layers[-1]
            assert isinstance(last, nn.Linear)
            return deferred_logits.defer_logits(self.layers[:-1](x), last.weight, last.bias)

    torch.manual_seed(0)
    model, plain, parts = Deferring(), Classifier(), Halving(batches([8, 4, 8]))
    plain.load_state_dict(model.state_dict())

    values = evaluate(model, loss(Limited), parts, metrics(), precision=Precision("fp32", CPU), device=CPU)

    assert values == pytest.approx(measure(plain, [8, 4, 8]), abs=1e-6)
    assert parts.num_halved == {1: 7 + 3 + 7, 2: 3 + 1 + 3, 3: 0}[limit]
    assert len(computed) == {1: 20, 2: 10, 3: 3 + 2 + 3}[limit]


def test_only_a_lack_of_memory_halves_a_batch(caplog: pytest.LogCaptureFixture) -> None:
    class Nothing(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return None  # type: ignore[return-value]

    class Full(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise MemoryError

    options = {"precision": Precision("fp32", CPU), "device": CPU}
    for model, parts in ((Nothing(), Halving(batches([4]))), (Full(), Halving(batches([1]))), (Full(), batches([4]))):
        with pytest.raises((MemoryError, AttributeError, TypeError)):
            evaluate(model, loss(), parts, metrics(), **options)  # type: ignore[arg-type]
    assert not caplog.messages


def test_directions_of_the_loss_and_the_metrics() -> None:
    assert metric_directions(metrics()) == {"loss": False, "accuracy": True}
