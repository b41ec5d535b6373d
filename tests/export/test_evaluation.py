from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.export.toy import ToyModel, ToyTask, batches
from trainer.errors import ProofError
from trainer.export.cases import forward_of
from trainer.export.evaluation import Comparison, decisions, evaluate


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def toy() -> ToyModel:
    return ToyModel().eval()


def comparison(forward: object, tolerance: float = 1e-4) -> Comparison:
    return Comparison("model.onnx", forward, ToyTask().metrics(), tolerance, "class")


def test_equal_artifact() -> None:
    same = comparison(forward_of(toy()), tolerance=0.0)
    values, first = evaluate(batches(), forward_of(toy()), ToyTask().metrics(), [same])
    assert same.values() == values
    assert same.agreement == 1.0
    assert same.largest_difference == 0.0
    assert same.failure is None
    assert first.ids == tuple(range(16))


def test_decisions_and_metrics_are_those_of_the_artifact() -> None:
    def rotated(inputs: Mapping[str, Tensor]) -> Tensor:
        output = toy()(**inputs)
        output[::4] = output[::4].roll(1, dims=-1)  # every fourth decision is another one
        return output

    other = comparison(rotated, tolerance=torch.inf)
    evaluate(batches(), forward_of(toy()), ToyTask().metrics(), [other])
    expected = ToyTask().metrics()
    for batch in batches():
        expected.update(rotated(batch.inputs), batch.target)
    assert other.agreement == 0.75
    assert other.values() == {name: value.item() for name, value in expected.compute().items()}


def test_failure_on_real_data_names_the_batch_and_ends_only_its_own_run() -> None:
    calls = []

    def broken(inputs: Mapping[str, Tensor]) -> Tensor:
        calls.append(len(calls))
        return toy()(**inputs) + (0.01 if len(calls) == 3 else 0.0)

    bad, good = comparison(broken), comparison(forward_of(toy()))
    evaluate(batches(), forward_of(toy()), ToyTask().metrics(), [bad, good])
    assert isinstance(bad.failure, ProofError)
    assert "in batch 2 of the evaluation split (input_ids (16, " in str(bad.failure)
    assert len(calls) == 3
    assert good.failure is None
    assert good.agreement == 1.0


def test_artifact_that_cannot_run_a_batch() -> None:
    def broken(inputs: Mapping[str, Tensor]) -> Tensor:
        raise RuntimeError("no")

    bad = comparison(broken)
    evaluate(batches(), forward_of(toy()), ToyTask().metrics(), [bad])
    assert str(bad.failure).startswith("model.onnx: fails in batch 0 of the evaluation split: no.")


def test_one_output_decides_nothing() -> None:
    def first_column(inputs: Mapping[str, Tensor]) -> Tensor:
        return toy()(**inputs)[:, :1]

    from torchmetrics import MeanSquaredError, MetricCollection

    metrics = MetricCollection({"mse": MeanSquaredError()})
    single = Comparison("model.onnx", first_column, metrics.clone(), 1e-4, "values")
    floats = (replace(batch, target=batch.target[:, None].float()) for batch in batches())
    evaluate(floats, first_column, metrics, [single])
    assert single.agreement is None


def test_what_an_output_decides() -> None:
    output = torch.tensor([[-1.0, 2.0], [3.0, 1.0]])

    assert torch.equal(decisions(output, "class"), torch.tensor([1, 0]))
    assert torch.equal(decisions(output, "multi_hot"), torch.tensor([[False, True], [True, True]]))
    assert decisions(output, "values") is None
    assert decisions(output[:, :1], "class") is None
