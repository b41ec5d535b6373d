import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, Metric, MetricCollection

from tests.support.export_models import ToyModel, ToyTask, batches
from trainer.errors import ProofError
from trainer.export import artifacts
from trainer.export.cases import Forward, forward_of
from trainer.export.compare import Limits
from trainer.export.formats.catalog import FORMATS, Format, Variant
from trainer.export.model import ExportModel
from trainer.export.prove import Comparison, Evaluation, ProofResult, prove_formats


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> ExportModel:
    with torch.no_grad():
        return ExportModel(ToyModel(), ToyTask(), evaluation=batches)


def shifted(by: float) -> Callable[[Path, ExportModel], dict[str, Any]]:
    """Return a function that writes a format whose logits of the first class are shifted."""

    def write(path: Path, model: ExportModel) -> dict[str, Any]:
        path.write_text(str(by))
        return {"by": by}

    return write


def load(path: Path, model: ExportModel) -> tuple[Forward, dict[str, Any]]:
    by = float(path.read_text())

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        return model.eager_forward(inputs) + torch.tensor([by, 0.0, 0.0])

    return forward, {}


def make_format(name: str, *shifts: float, exact: bool = False) -> Format:
    variants = tuple(Variant(f"by {by:g}", shifted(by)) for by in shifts)
    return Format(name, f"model.{name}", load, variants, exact=exact)


def prove(formats: list[Format], folder: Path, model: ExportModel, **limits: float) -> ProofResult:
    with torch.no_grad():
        return prove_formats(formats, folder, model, Limits(**{"tolerance": 1e-4, "metric_budget": 0.05, **limits}))


def test_first_variant_within_the_budget_is_taken(tmp_path: Path, model: ExportModel) -> None:
    result = prove([make_format("one", 100.0, 0.001, 0.0), make_format("two", 0.002)], tmp_path, model)
    assert [artifact.variant.name for artifact in result.proved] == ["by 0.001", "by 0.002"]
    assert result.failures == []
    assert [artifact.details for artifact in result.proved] == [{"by": 0.001}, {"by": 0.002}]
    assert (tmp_path / "model.one").read_text() == "0.001"


def test_pytorch_runs_once_over_the_split_for_all_variants(tmp_path: Path, model: ExportModel) -> None:
    calls = []
    watched = model.module.register_forward_hook(lambda *_: calls.append(None))
    result = prove([make_format("one", 100.0, 50.0, 0.001)], tmp_path, model)
    watched.remove()
    assert [artifact.variant.name for artifact in result.proved] == ["by 0.001"]
    num_batches = len([*batches()])
    # These artifacts run the model too: each of the three at every case and on every batch.
    assert len(calls) == 3 * (len(model.cases) + num_batches) + num_batches


def test_difference_of_an_inexact_format_is_recorded(tmp_path: Path, model: ExportModel) -> None:
    (artifact,) = prove([make_format("one", 0.001)], tmp_path, model).proved
    assert artifact.largest_difference == pytest.approx(0.001, rel=1e-3)
    assert artifact.comparison.agreement.decision_agreement is not None
    result = prove([make_format("one", 0.001, exact=True)], tmp_path, model)
    assert result.proved == []
    assert str(result.failures[0]).startswith("model.one: output[0, 0] at batch=1, sequence=1, without padding")


def test_every_refused_variant_is_reported_and_no_file_is_left(tmp_path: Path, model: ExportModel) -> None:
    result = prove([make_format("one", 100.0, 8.0), make_format("two", 0.0)], tmp_path, model)
    (failure,) = result.failures
    first, *reasons = str(failure).splitlines()
    assert first == "model.one: none of its 2 variants passes. Leave out this format."
    assert [reason.split(": ")[:2] for reason in reasons] == [["  by 100", "model.one"], ["  by 8", "model.one"]]
    assert all("accuracy over the evaluation split must be within 0.05" in reason for reason in reasons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.two"]
    assert [artifact.format.name for artifact in result.proved] == ["two"]


def test_next_variant_is_tried_if_one_cannot_be_written(tmp_path: Path, model: ExportModel) -> None:
    def fail(path: Path, model: ExportModel) -> dict[str, Any]:
        path.write_text("half")
        (path.parent / f"{path.name}.data").write_text("weights")
        raise RuntimeError("no such operator")

    format = Format("one", "model.one", load, (Variant("first", fail), Variant("second", shifted(0.0))))
    (artifact,) = prove([format], tmp_path, model).proved
    assert artifact.variant.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model.one"]
    (failure,) = prove([Format("one", "model.one", load, (Variant("first", fail),))], tmp_path, model).failures
    assert str(failure).startswith(
        "model.one: cannot be exported (input_ids (2, 12), attention_mask (2, 12)): no such operator."
    )
    assert list(tmp_path.iterdir()) == []


def test_equal_reasons_share_a_line(tmp_path: Path, model: ExportModel) -> None:
    def fail(path: Path, model: ExportModel) -> dict[str, Any]:
        raise RuntimeError("no such operator")

    format = Format("one", "model.one", load, (Variant("first", fail), Variant("second", fail)))
    (failure,) = prove([format], tmp_path, model).failures
    assert str(failure).count("no such operator") == 1
    assert "\n  first; second: model.one: cannot be exported" in str(failure)


@pytest.mark.parametrize("requested", [True, False])
@pytest.mark.parametrize(("shifts", "reason"), [((1.0,), r"output\[0, 0\] at batch=1"), ((), "no such operator")])
def test_format_made_of_a_refused_format_is_refused(
    requested: bool, shifts: tuple[float, ...], reason: str, tmp_path: Path, model: ExportModel, monkeypatch: Any
) -> None:
    def fail(path: Path, model: ExportModel) -> dict[str, Any]:
        raise RuntimeError("no such operator")

    source = (
        make_format("source", *shifts, exact=True)
        if shifts
        else replace(make_format("source"), variants=(Variant("-", fail),))
    )
    monkeypatch.setitem(FORMATS, "source", source)
    other = replace(make_format("other", 0.0, 0.0), made_of="source")
    result = prove([other, source] if requested else [other], tmp_path, model)
    assert result.proved == []
    assert str(result.failures[0]).startswith("model.other: is made of model.source, which is refused.")
    assert [bool(re.search(reason, str(failure))) for failure in result.failures] == (
        [False, True] if requested else [True]
    )
    assert list(tmp_path.iterdir()) == []


def test_source_format_is_proved_on_real_data(
    tmp_path: Path, model: ExportModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_in_batches(path: Path, model: ExportModel) -> tuple[Forward, dict[str, Any]]:
        return lambda inputs: model.eager_forward(inputs) + (len(inputs["input_ids"]) == 16), {}

    source = replace(make_format("source", 0.0, exact=True), load=wrong_in_batches)
    monkeypatch.setitem(FORMATS, "source", source)
    good = replace(make_format("good", 0.0), made_of="source")
    result = prove([good, make_format("other", 0.0)], tmp_path, model)
    assert [artifact.format.name for artifact in result.proved] == ["other"]
    assert "in batch 0 of the evaluation split (input_ids (16, " in str(result.failures[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model.other"]


def test_source_format_is_published_only_if_requested(tmp_path: Path, model: ExportModel, monkeypatch: Any) -> None:
    monkeypatch.setitem(FORMATS, "source", make_format("source", 0.0, exact=True))
    result = prove([replace(make_format("other", 0.0), made_of="source")], tmp_path, model)
    assert [artifact.format.name for artifact in result.proved] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.other"]


class Blind(ToyTask):
    """Has a metric with a constant value."""

    def __init__(self, value: float) -> None:
        self.value = value

    def metrics(self) -> MetricCollection:
        return MetricCollection({"accuracy": BlindMetric(self.value)})


class BlindMetric(Metric):
    higher_is_better = True

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def update(self, output: Tensor, target: Tensor) -> None:
        self._update_count += 1

    def compute(self) -> Tensor:
        return torch.tensor(self.value)


@pytest.mark.parametrize("value", [0.0, float("nan")])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda output: output.roll(1, -1), "decisions over the evaluation split must agree with PyTorch's in 0.75"),
        (lambda output: output * 100.0, "outputs over the evaluation split must be within 0.5 of the spread"),
        (lambda output: output * 1.2, ""),
    ],
)
def test_outputs_are_compared_if_the_metric_is_blind(
    value: float, change: Callable[[Tensor], Tensor], message: str, tmp_path: Path, caplog: Any
) -> None:
    def changed(path: Path, model: ExportModel) -> tuple[Forward, dict[str, Any]]:
        return lambda inputs: change(model.eager_forward(inputs)), {}

    with torch.no_grad():
        blind = ExportModel(ToyModel(), Blind(value), evaluation=batches)
    result = prove([replace(make_format("one", 0.0), load=changed)], tmp_path, blind)
    assert [message in str(failure) for failure in result.failures] == ([True] if message else [])
    messages = [record.getMessage() for record in caplog.records if record.name == "trainer.export.prove"]
    warning = ["accuracy is nan over the evaluation split: it cannot judge artifacts"]
    assert messages == ([] if value == 0.0 else warning)


def test_nan_is_refused(tmp_path: Path, model: ExportModel) -> None:
    (failure,) = prove([make_format("one", float("nan"), exact=True)], tmp_path, model).failures
    assert "got nan" in str(failure)
    (failure,) = prove([make_format("one", float("nan"))], tmp_path, model, metric_budget=1.0).failures
    assert "must be finite, got nan" in str(failure)


def test_formats_of_publish_are_the_catalog() -> None:
    (literal,) = get_args(get_type_hints(artifacts.publish)["formats"])
    assert set(get_args(literal)) == set(FORMATS)
    assert all(name == format.name for name, format in FORMATS.items())


def test_no_two_formats_share_a_file() -> None:
    paths = [format.path for format in FORMATS.values()]
    assert len({*paths}) == len(paths)
    # Further files of an artifact are found by its name: `model.onnx.data` must not belong to another one.
    assert not [one for one in paths for other in paths if one.startswith(f"{other}.")]


# The evaluation split


def toy() -> ToyModel:
    return ToyModel().eval()


def comparison(forward: Forward, tolerance: float = 1e-4) -> Comparison:
    return Comparison("model.onnx", forward, ToyTask().metrics(), tolerance, "class")


def evaluate(*comparisons: Comparison) -> dict[str, float]:
    """Run the comparisons and return PyTorch's metrics."""
    evaluation = Evaluation(batches, forward_of(toy()), ToyTask().metrics(), cache_size=0)
    evaluation.run(comparisons)
    return evaluation.metrics


def test_equal_artifact_has_equal_metrics() -> None:
    equal = comparison(forward_of(toy()), tolerance=0.0)
    assert evaluate(equal) == equal.metrics()
    assert equal.agreement.decision_agreement == 1.0
    assert equal.largest_difference == 0.0
    assert equal.failure is None


def test_decisions_and_metrics_are_the_artifacts() -> None:
    def rotated(inputs: Mapping[str, Tensor]) -> Tensor:
        output = toy()(**inputs)
        output[::4] = output[::4].roll(1, dims=-1)  # changes every fourth decision
        return output

    other = comparison(rotated, tolerance=torch.inf)
    evaluate(other)
    expected = ToyTask().metrics()
    for batch in batches():
        expected.update(rotated(batch.inputs), batch.target)
    assert other.agreement.decision_agreement == 0.75
    assert other.metrics() == {name: value.item() for name, value in expected.compute().items()}


def test_failure_on_real_data_names_the_batch_and_ends_only_its_own_comparison() -> None:
    calls = []

    def wrong(inputs: Mapping[str, Tensor]) -> Tensor:
        calls.append(len(calls))
        return toy()(**inputs) + (0.01 if len(calls) == 3 else 0.0)

    def failing(inputs: Mapping[str, Tensor]) -> Tensor:
        raise RuntimeError("no")

    differs, fails, good = comparison(wrong), comparison(failing), comparison(forward_of(toy()))
    evaluate(differs, fails, good)
    assert isinstance(differs.failure, ProofError)
    assert "in batch 2 of the evaluation split (input_ids (16, " in str(differs.failure)
    assert len(calls) == 3
    assert str(fails.failure).startswith("model.onnx: fails in batch 0 of the evaluation split: no.")
    assert good.failure is None
    assert good.agreement.decision_agreement == 1.0


@pytest.mark.parametrize(("cache_size", "runs"), [(64 * 3, 4), (64 * 3 - 1, 5), (0, 8)])
def test_pytorch_runs_again_only_on_batches_outside_the_cache(cache_size: int, runs: int) -> None:
    calls = []

    def eager(inputs: Mapping[str, Tensor]) -> Tensor:
        calls.append(inputs)
        return toy()(**inputs)

    def shifted(inputs: Mapping[str, Tensor]) -> Tensor:
        return toy()(**inputs) + 0.25

    evaluation = Evaluation(batches, eager, ToyTask().metrics(), cache_size=cache_size)
    first, second = comparison(shifted, torch.inf), comparison(shifted, torch.inf)
    evaluation.run([first])
    metrics = evaluation.metrics
    evaluation.run([second])
    assert len(calls) == runs
    assert evaluation.metrics == metrics == first.metrics()
    assert second.largest_difference == first.largest_difference == pytest.approx(0.25, abs=1e-6)
    assert second.agreement.decision_agreement == first.agreement.decision_agreement


def test_single_output_is_no_decision() -> None:
    def first_column(inputs: Mapping[str, Tensor]) -> Tensor:
        return toy()(**inputs)[:, :1]

    metrics = MetricCollection({"mse": MeanSquaredError()})
    single = Comparison("model.onnx", first_column, metrics.clone(), 1e-4, "values")
    with_floats = [replace(batch, target=batch.target[:, None].float()) for batch in batches()]
    Evaluation(lambda: with_floats, first_column, metrics, cache_size=0).run([single])
    assert single.agreement.decision_agreement is None
