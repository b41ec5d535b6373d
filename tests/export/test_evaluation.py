from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.export_models import ToyModel, ToyTask, batches
from trainer.errors import ProofError
from trainer.export.cases import forward_of
from trainer.export.evaluation import Comparison, Evaluation


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def toy() -> ToyModel:
    return ToyModel().eval()


def comparison(forward: object, tolerance: float = 1e-4) -> Comparison:
    return Comparison("model.onnx", forward, ToyTask().metrics(), tolerance, "class")


def evaluated(*comparisons: Comparison) -> dict[str, float]:
    """PyTorch's metrics, beside which the artifacts were run."""
    evaluation = Evaluation(batches, forward_of(toy()), ToyTask().metrics(), remembered=0)
    evaluation.run(comparisons)
    return evaluation.metrics


def test_equal_artifact() -> None:
    same = comparison(forward_of(toy()), tolerance=0.0)
    metrics = evaluated(same)
    assert same.values() == metrics
    assert same.likeness.agreement == 1.0
    assert same.largest_difference == 0.0
    assert same.failure is None


def test_decisions_and_metrics_are_those_of_the_artifact() -> None:
    def rotated(inputs: Mapping[str, Tensor]) -> Tensor:
        output = toy()(**inputs)
        output[::4] = output[::4].roll(1, dims=-1)  # every fourth decision is another one
        return output

    other = comparison(rotated, tolerance=torch.inf)
    evaluated(other)
    expected = ToyTask().metrics()
    for batch in batches():
        expected.update(rotated(batch.inputs), batch.target)
    assert other.likeness.agreement == 0.75
    assert other.values() == {name: value.item() for name, value in expected.compute().items()}


def test_failure_on_real_data_names_the_batch_and_ends_only_its_own_run() -> None:
    calls = []

    def broken(inputs: Mapping[str, Tensor]) -> Tensor:
        calls.append(len(calls))
        return toy()(**inputs) + (0.01 if len(calls) == 3 else 0.0)

    bad, good = comparison(broken), comparison(forward_of(toy()))
    evaluated(bad, good)
    assert isinstance(bad.failure, ProofError)
    assert "in batch 2 of the evaluation split (input_ids (16, " in str(bad.failure)
    assert len(calls) == 3
    assert good.failure is None
    assert good.likeness.agreement == 1.0


def test_artifact_that_cannot_run_a_batch() -> None:
    def broken(inputs: Mapping[str, Tensor]) -> Tensor:
        raise RuntimeError("no")

    bad = comparison(broken)
    evaluated(bad)
    assert str(bad.failure).startswith("model.onnx: fails in batch 0 of the evaluation split: no.")


@pytest.mark.parametrize(("remembered", "runs"), [(64 * 3, 4), (64 * 3 - 1, 5), (0, 8)])
def test_pytorch_is_run_again_only_on_batches_whose_outputs_are_not_kept(remembered: int, runs: int) -> None:
    seen = []

    def pytorch(inputs: Mapping[str, Tensor]) -> Tensor:
        seen.append(inputs)
        return toy()(**inputs)

    def shifted(inputs: Mapping[str, Tensor]) -> Tensor:
        return toy()(**inputs) + 0.25

    evaluation = Evaluation(batches, pytorch, ToyTask().metrics(), remembered=remembered)
    first, second = comparison(shifted, torch.inf), comparison(shifted, torch.inf)
    evaluation.run([first])
    metrics = evaluation.metrics
    evaluation.run([second])
    assert len(seen) == runs
    assert evaluation.metrics == metrics == first.values()
    assert (second.largest_difference, second.likeness.agreement) == (
        first.largest_difference,
        first.likeness.agreement,
    )
    assert second.largest_difference == pytest.approx(0.25, abs=1e-6)


def test_one_output_decides_nothing() -> None:
    def first_column(inputs: Mapping[str, Tensor]) -> Tensor:
        return toy()(**inputs)[:, :1]

    from torchmetrics import MeanSquaredError, MetricCollection

    metrics = MetricCollection({"mse": MeanSquaredError()})
    single = Comparison("model.onnx", first_column, metrics.clone(), 1e-4, "values")
    floats = [replace(batch, target=batch.target[:, None].float()) for batch in batches()]
    Evaluation(lambda: floats, first_column, metrics, remembered=0).run([single])
    assert single.likeness.agreement is None
