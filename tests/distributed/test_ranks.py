"""The exchanges of two and three processes, compared with a single process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from tests.support.ranks import call_ranks
from tests.test_loop import CPU, make_batch, make_run
from trainer.builders.distributed import check_statistic
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError
from trainer.evaluate import check_shareable, evaluate
from trainer.loop import update_weights
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.info_nce import InfoNce
from trainer.loss.mse_correlation import MseCorrelation
from trainer.precision import Precision
from trainer.protocols import Batch, Loss
from trainer.targets import compute_shared_loss
from trainer.task.classification_metrics import (
    ClassCounts,
    EntityScore,
    decide_labels,
    f1_of_tags,
    language_metrics,
    multilabel_metrics,
)
from trainer.task.embedding_metrics import retrieval_metrics, score_metrics, uniformity_metric
from trainer.task.named_metrics import FITS, Prepare, build_named_metric, prepare_classes, prepare_labels
from trainer.task.regression_metrics import regression_metrics


class ScaledInfoNce(InfoNce):
    """A statistic of the batch with a weight of its own."""

    def __init__(self) -> None:
        super().__init__(temperature=0.1, symmetric=True)
        self.factor = nn.Parameter(torch.tensor([0.7], dtype=torch.float64))

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return super().forward(output, target) * self.factor.square().sum()


class NeedsInputs(InfoNce):
    needs_inputs: ClassVar[bool] = True


def _dice(per: Any) -> Dice:
    return Dice(smooth=1.0, per=per, ignore_index=-100)


LOSSES: dict[str, tuple[Callable[[], Loss], str, int]] = {
    "info_nce": (lambda: InfoNce(temperature=0.1, symmetric=False), "views", 7),
    "info_nce symmetric, fewer samples than devices": (lambda: InfoNce(0.1, True), "views", 1),
    "info_nce with a weight": (ScaledInfoNce, "views", 7),
    "mse_correlation": (lambda: MseCorrelation(correlation=0.5), "values", 7),
    "mse_correlation of two rows": (lambda: MseCorrelation(correlation=0.5), "values", 2),
    "dice batch": (lambda: _dice("batch"), "class", 7),
    "dice class": (lambda: _dice("class"), "class", 7),
    "dice class, labels": (lambda: _dice("class"), "labels", 7),
    "dice batch, tokens": (lambda: _dice("batch"), "tokens", 7),
    "dice class, tokens, fewer samples than devices": (lambda: _dice("class"), "tokens", 1),
}
"""Losses that are a statistic of the batch, each with the type of its targets and the number of samples."""


def _samples(kind: str, rows: int) -> tuple[Tensor, Tensor]:
    """Return inputs (B, ..., 6) and targets of all samples."""
    generator = torch.Generator().manual_seed(rows)
    shape = {"views": (rows, 2, 6), "tokens": (rows, 9, 6)}.get(kind, (rows, 6))
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if kind == "views":
        return x, torch.arange(rows)[:, None].expand(rows, 2).contiguous()
    if kind == "values":
        return x, torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    if kind == "labels":
        return x, torch.randint(2, (rows, 4), generator=generator).double()
    target = torch.randint(4, x.shape[:-1], generator=generator)
    for row in range(rows if kind == "tokens" else 0):
        target[row, 9 - row :] = -100  # padding: samples of different lengths
    return x, target


def _own_slice(rows: int, ranks: Ranks) -> tuple[slice, bool]:
    """Return the samples of a process, as `BatchPlan` divides them, and True if there are none: a filler runs."""
    sizes = [rows // ranks.size + (rank < rows % ranks.size) for rank in range(ranks.size)]
    start = sum(sizes[: ranks.rank])
    return (slice(start, start + sizes[ranks.rank]), False) if sizes[ranks.rank] else (slice(0, 1), True)


def losses_and_gradients(ranks: Ranks) -> dict[str, list[Tensor]]:
    """Return each loss and its gradients with respect to a model's and the loss's own weights."""
    results = {}
    for name, (make, kind, rows) in LOSSES.items():
        x, target = _samples(kind, rows)
        own, is_filler = _own_slice(rows, ranks)
        x, target = x[own], target[own]
        if kind == "tokens":
            longest = int((target != -100).sum(dim=1).max())
            x, target = x[:, :longest], target[:, :longest]
        weight = torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(6, 4).cos().requires_grad_()
        loss = make()
        output = x.flatten(0, 1) @ weight if kind == "views" else x @ weight
        batch = Batch({}, target, 0 if is_filler else len(target), tuple(range(len(target))))
        total, counts = compute_shared_loss(loss, output, batch, ranks)
        total.backward()
        assert isinstance(loss, nn.Module)
        parameters = [weight, *loss.parameters()]
        value = total.detach() if counts else torch.zeros_like(total)
        ranks.sum_gradients(parameters, value)
        results[name] = [value, *(each.grad for each in parameters if each.grad is not None)]
    return results


def test_statistics_of_the_batch_equal_one_process(several: list[dict[str, Any]]) -> None:
    expected = losses_and_gradients(Ranks())
    for results in (each["losses"] for each in several):
        for name, tensors in expected.items():
            assert len(results[name]) == len(tensors), name
            for actual, tensor in zip(results[name], tensors, strict=True):
                torch.testing.assert_close(actual, tensor, rtol=1e-12, atol=1e-12)


METRICS: dict[str, tuple[Callable[[], MetricCollection], str]] = {
    "classes": (
        lambda: MetricCollection([MulticlassAccuracy(4, average="micro"), MulticlassF1Score(4, average="macro")]),
        "class",
    ),
    "labels": (lambda: multilabel_metrics(4, partial(decide_labels, threshold=0.5)), "labels"),
    "values": (lambda: regression_metrics([1.0, 2.0, 0.5, 1.0]), "values"),
    "tokens": (language_metrics, "tokens"),
    "tags": (
        lambda: MetricCollection(
            {"f1": ClassCounts(4, f1_of_tags), "entity": EntityScore(["O", "B-a", "I-a", "B-b"], "f1")}
        ),
        "tokens",
    ),
    "pairs": (lambda: retrieval_metrics(negatives=False), "views"),
    "texts": (uniformity_metric, "views"),
    "similarities": (score_metrics, "similarity"),
    "named, classes": (lambda: _named("class", prepare_classes), "class"),
    "named, labels": (lambda: _named("multi_hot", prepare_labels), "labels"),
    "named, values": (lambda: _named("values", lambda output, target: (output, target)), "values"),
    "named, tags": (lambda: _named("tags", prepare_classes), "tokens"),
}
"""The metrics of every task."""


def _named(kind: str, prepare: Prepare) -> MetricCollection:
    """Return all metrics that a task of a kind may add by name."""
    names = [name.replace("K", "2") for name, kinds in FITS.items() if kind in kinds]
    return MetricCollection({name: build_named_metric(name, kind, 4, prepare) for name in names})


class Measured(nn.Module):
    """A loss that is the sum of the squared outputs."""

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return output.double().square().sum()

    def num_targets(self, target: Tensor) -> Tensor:
        return torch.tensor(len(target))


class Given(nn.Module):
    """A model whose outputs are its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def _metric_batches(kind: str, count: int) -> list[Batch]:
    """Return `count` batches of outputs with many equal numbers; the last batch is smaller."""
    generator = torch.Generator().manual_seed(3)
    batches = []
    for rows in [*[5] * (count - 1), 3]:
        shape = {"views": (2 * rows, 4), "similarity": (2 * rows, 4), "tokens": (rows, 6, 4)}.get(kind, (rows, 4))
        output = torch.randn(shape, generator=generator).mul(2).round()
        target = {
            "views": torch.zeros(rows, 2, dtype=torch.int64),
            "similarity": torch.randint(2, (rows,), generator=generator).float(),
            "values": torch.randint(3, (rows, 4), generator=generator).float(),
            "labels": torch.randint(2, (rows, 4), generator=generator).float(),
        }.get(kind, torch.randint(4, output.shape[:-1], generator=generator))
        batches.append(Batch({"x": output}, target, rows, tuple(range(rows))))
    return batches


def evaluations(ranks: Ranks) -> dict[str, dict[str, float]]:
    """Return all metrics of seven batches, and of a single batch, which only the first process has."""
    results = {}
    for name, (make, kind) in METRICS.items():
        for count in (7, 1):
            batches = _metric_batches(kind, count)
            bounds = [-(-count * rank // ranks.size) for rank in range(ranks.size + 1)]
            own = batches[bounds[ranks.rank] : bounds[ranks.rank + 1]]
            results[f"{name} {count}"] = evaluate(
                Given(), Measured(), own, make(), precision=Precision("fp32", CPU), device=CPU, ranks=ranks
            )
    return results


def test_every_metric_equals_one_process(several: list[dict[str, Any]]) -> None:
    expected = evaluations(Ranks())
    for results in (each["metrics"] for each in several):
        assert results.keys() == expected.keys()
        for name, values in expected.items():
            for metric, value in values.items():
                # The loss and the perplexity add up; all other metrics count or keep rows.
                tolerance = {"loss": 1e-12, "perplexity": 1e-6}.get(metric, 0.0)
                assert results[name][metric] == pytest.approx(value, rel=tolerance, abs=0, nan_ok=True), (name, metric)


class Averaged(Metric):
    """A user's metric; `reduction` is how its state is shared."""

    full_state_update = False

    def __init__(self, default: Any, reduction: Any) -> None:
        super().__init__()
        self.add_state("state", default, dist_reduce_fx=reduction)

    def update(self, output: Tensor, target: Tensor) -> None: ...

    def compute(self) -> Tensor:
        return torch.zeros(())


@pytest.mark.parametrize(("default", "reduction"), [(torch.zeros(()), None), (torch.zeros(()), "mean"), ([], None)])
def test_a_metric_that_cannot_be_shared_is_refused_by_name(default: Any, reduction: Any) -> None:
    with pytest.raises(ConfigError, match="devices: several devices cannot share the metric own"):
        check_shareable(MetricCollection({"own": Averaged(default, reduction)}))


def test_the_metrics_of_every_task_can_be_shared() -> None:
    for make, _ in METRICS.values():
        check_shareable(make())
    check_shareable(MetricCollection({"own": Averaged(torch.zeros(()), "sum")}))


def test_a_statistic_that_needs_the_inputs_is_refused() -> None:
    check_statistic(NeedsInputs(0.1, True), Ranks(), 1)
    check_statistic(ScaledInfoNce(), Ranks(0, 2), 1, tokens=64)
    with pytest.raises(ConfigError, match=r"cannot merge the micro-batches of loader\.tokens"):
        check_statistic(NeedsInputs(0.1, True), Ranks(), 1, tokens=64)
    with pytest.raises(ConfigError, match="loss: "):
        check_statistic(NeedsInputs(0.1, True), Ranks(0, 2), 1)
    with pytest.raises(ConfigError, match="loss: "):
        check_statistic(ScaledInfoNce(), Ranks(0, 2), 2)


def exchanged(ranks: Ranks) -> dict[str, Any]:
    """Return the results of all exchanges: sums of gradients of which some processes have none, a flag and others."""
    everywhere, some, nowhere, half = (nn.Parameter(torch.zeros(2)) for _ in range(4))
    half.data = half.data.bfloat16()
    everywhere.grad, half.grad = torch.full((2,), ranks.rank + 1.0), torch.ones(2, dtype=torch.bfloat16)
    some.grad = torch.full((2,), 7.0) if ranks.rank == 1 else None
    loss = torch.tensor(0.5)
    should_stop = ranks.share_flag(lambda: ranks.rank == 1)
    stops = [should_stop()]
    count = ranks.start_sum(ranks.rank + 0.25)
    ranks.sum_gradients([everywhere, some, nowhere, half], loss)
    stops.append(should_stop())
    model = nn.Sequential(nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval())
    for layer in model:
        layer.running_mean.fill_(float(ranks.rank))  # type: ignore[union-attr, operator]
        layer.num_batches_tracked.fill_(ranks.rank)  # type: ignore[union-attr, operator]
    # Two samples on the first process, one on the second, none on others.
    ranks.average_batch_norm(model, max(0, 2 - ranks.rank))
    return {
        "gradients": [None if each.grad is None else each.grad.tolist() for each in (everywhere, some, nowhere, half)],
        "loss": loss.item(),
        "count": count(),
        "stops": stops,
        "means": [layer.running_mean.item() for layer in model],  # type: ignore[union-attr, operator]
        "tracked": [layer.num_batches_tracked.item() for layer in model],  # type: ignore[union-attr, operator]
        "rows": ranks.gather_rows(torch.full((ranks.rank, 2), float(ranks.rank))).tolist(),
    }


def test_exchanges(several: list[dict[str, Any]]) -> None:
    size = len(several)
    for rank, results in enumerate(several):
        total = size * (size + 1) / 2
        assert results["exchanges"] == {
            "gradients": [[total, total], [7.0, 7.0], None, [size, size]],
            "loss": 0.5 * size,
            "count": total - 0.75 * size,
            "stops": [False, True],
            "means": [pytest.approx(1 / 3), rank],
            "tracked": [size - 1, rank],
            "rows": [[float(owner)] * 2 for owner in range(size) for _ in range(owner)],
        }


def results(ranks: Ranks) -> dict[str, Any]:
    """Return what the tests compare: one start of the processes serves all of them."""
    return {"losses": losses_and_gradients(ranks), "metrics": evaluations(ranks), "exchanges": exchanged(ranks)}


@pytest.fixture(scope="module", params=[2, 3])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of each of two and of three processes."""
    return call_ranks(results, request.param, tmp_path_factory.mktemp("results"))


def overflowing_step(ranks: Ranks) -> tuple[list[Tensor], float]:
    """Update weights in float16 from two micro-batches, of which the second overflows at the first loss scale."""
    torch.manual_seed(0)
    batches = [make_batch(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]), first) for first in (0, 4)]
    assert batches[1].inputs["x"].mul_(100).abs().max() < 1000
    own = batches if ranks.size == 1 else [batches[ranks.rank]]
    loss = CrossEntropy(weight=None, label_smoothing=0.1, ignore_index=-100)
    run = make_run(ranks=ranks, precision=Precision("fp16", CPU), loss=loss)
    update_weights(run, 0, own)
    return [parameter.detach() for parameter in run.model.parameters()], run.precision.scale


def test_an_overflow_on_one_device_is_repeated_on_all(tmp_path: Path) -> None:
    weights, scale = overflowing_step(Ranks())
    assert scale < 2.0**14
    for actual, scale_of_rank in call_ranks(overflowing_step, 2, tmp_path):
        assert scale_of_rank == scale
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(actual, weights, strict=True))
