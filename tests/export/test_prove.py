import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from tests.support.export_models import ToyModel, ToyTask, batches
from trainer.export import artifacts
from trainer.export.cases import Forward
from trainer.export.compare import Limits
from trainer.export.formats.catalog import FORMATS, Format, Variant
from trainer.export.model import ExportModel
from trainer.export.prove import ProofResult, prove_formats


@pytest.fixture(scope="module")
def subject() -> ExportModel:
    with torch.no_grad():
        return ExportModel(ToyModel(), ToyTask(), evaluation=batches)


def shifted(by: float) -> Callable[[Path, ExportModel], dict[str, Any]]:
    """A way of writing a format whose first class is more, or less, likely than PyTorch has it."""

    def write(path: Path, subject: ExportModel) -> dict[str, Any]:
        path.write_text(str(by))
        return {"by": by}

    return write


def load(path: Path, subject: ExportModel) -> tuple[Forward, dict[str, Any]]:
    by = float(path.read_text())

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        return subject.eager_forward(inputs) + torch.tensor([by, 0.0, 0.0])

    return forward, {}


def made(name: str, *shifts: float, exact: bool = False) -> Format:
    variants = tuple(Variant(f"by {by:g}", shifted(by)) for by in shifts)
    return Format(name, f"model.{name}", load, variants, exact=exact)


def judged(formats: list[Format], folder: Path, subject: ExportModel, **limits: float) -> ProofResult:
    with torch.no_grad():
        return prove_formats(formats, folder, subject, Limits(**{"tolerance": 1e-4, "metric_budget": 0.05, **limits}))


def test_first_variant_inside_the_budget_is_taken(tmp_path: Path, subject: ExportModel) -> None:
    verdict = judged([made("one", 100.0, 0.001, 0.0), made("two", 0.002)], tmp_path, subject)
    assert [candidate.variant.name for candidate in verdict.proved] == ["by 0.001", "by 0.002"]
    assert verdict.failures == []
    assert [candidate.details for candidate in verdict.proved] == [{"by": 0.001}, {"by": 0.002}]
    assert (tmp_path / "model.one").read_text() == "0.001"


def test_pytorch_runs_once_over_the_split_for_all_variants(tmp_path: Path, subject: ExportModel) -> None:
    calls = []
    watched = subject.module.register_forward_hook(lambda *_: calls.append(None))
    verdict = judged([made("one", 100.0, 50.0, 0.001)], tmp_path, subject)
    watched.remove()
    assert [candidate.variant.name for candidate in verdict.proved] == ["by 0.001"]
    num_batches = len([*batches()])
    # These artifacts run the model too: each of the three at every case and on every batch.
    assert len(calls) == 3 * (len(subject.cases) + num_batches) + num_batches


def test_difference_of_an_inexact_format_is_recorded_and_not_refused(tmp_path: Path, subject: ExportModel) -> None:
    (candidate,) = judged([made("one", 0.001)], tmp_path, subject).proved
    assert candidate.largest_difference == pytest.approx(0.001, rel=1e-3)
    assert candidate.comparison.agreement.decision_agreement is not None
    verdict = judged([made("one", 0.001, exact=True)], tmp_path, subject)
    assert verdict.proved == []
    assert str(verdict.failures[0]).startswith("model.one: output[0, 0] at batch=1, sequence=1, without padding")


def test_when_none_fits_each_variant_is_told_and_no_file_is_left(tmp_path: Path, subject: ExportModel) -> None:
    verdict = judged([made("one", 100.0, 8.0), made("two", 0.0)], tmp_path, subject)
    (failure,) = verdict.failures
    first, *reasons = str(failure).splitlines()
    assert first == "model.one: none of its 2 variants passes. Leave out this format."
    assert [reason.split(": ")[:2] for reason in reasons] == [["  by 100", "model.one"], ["  by 8", "model.one"]]
    assert all("accuracy over the evaluation split must be within 0.05" in reason for reason in reasons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.two"]
    assert [candidate.format.name for candidate in verdict.proved] == ["two"]


def test_variant_that_cannot_be_written_gives_way_to_the_next(tmp_path: Path, subject: ExportModel) -> None:
    def fail(path: Path, subject: ExportModel) -> dict[str, Any]:
        path.write_text("half")
        (path.parent / f"{path.name}.data").write_text("weights")
        raise RuntimeError("no such operator")

    format = Format("one", "model.one", load, (Variant("first", fail), Variant("second", shifted(0.0))))
    (candidate,) = judged([format], tmp_path, subject).proved
    assert candidate.variant.name == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model.one"]
    (failure,) = judged([Format("one", "model.one", load, (Variant("first", fail),))], tmp_path, subject).failures
    assert str(failure).startswith(
        "model.one: cannot be exported (input_ids (2, 12), attention_mask (2, 12)): no such operator."
    )
    assert list(tmp_path.iterdir()) == []


def test_the_same_reason_is_told_once(tmp_path: Path, subject: ExportModel) -> None:
    def fail(path: Path, subject: ExportModel) -> dict[str, Any]:
        raise RuntimeError("no such operator")

    format = Format("one", "model.one", load, (Variant("first", fail), Variant("second", fail)))
    (failure,) = judged([format], tmp_path, subject).failures
    assert str(failure).count("no such operator") == 1
    assert "\n  first; second: model.one: cannot be exported" in str(failure)


@pytest.mark.parametrize("asked", [True, False])
@pytest.mark.parametrize(("shifts", "reason"), [((1.0,), r"output\[0, 0\] at batch=1"), ((), "no such operator")])
def test_what_a_refused_format_is_made_of_is_not_taken_for_another(
    asked: bool, shifts: tuple[float, ...], reason: str, tmp_path: Path, subject: ExportModel, monkeypatch: Any
) -> None:
    def fail(path: Path, subject: ExportModel) -> dict[str, Any]:
        raise RuntimeError("no such operator")

    source = made("source", *shifts, exact=True) if shifts else replace(made("source"), variants=(Variant("-", fail),))
    monkeypatch.setitem(FORMATS, "source", source)
    other = replace(made("other", 0.0, 0.0), made_of="source")
    verdict = judged([other, source] if asked else [other], tmp_path, subject)
    assert verdict.proved == []
    assert str(verdict.failures[0]).startswith("model.other: is made of model.source, which is refused.")
    assert [bool(re.search(reason, str(failure))) for failure in verdict.failures] == (
        [False, True] if asked else [True]
    )
    assert list(tmp_path.iterdir()) == []


def test_what_a_format_is_made_of_is_proved_on_real_data_too(
    tmp_path: Path, subject: ExportModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong_in_batches(path: Path, subject: ExportModel) -> tuple[Forward, dict[str, Any]]:
        return lambda inputs: subject.eager_forward(inputs) + (len(inputs["input_ids"]) == 16), {}

    source = replace(made("source", 0.0, exact=True), load=wrong_in_batches)
    monkeypatch.setitem(FORMATS, "source", source)
    good = replace(made("good", 0.0), made_of="source")
    verdict = judged([good, made("other", 0.0)], tmp_path, subject)
    assert [candidate.format.name for candidate in verdict.proved] == ["other"]
    assert "in batch 0 of the evaluation split (input_ids (16, " in str(verdict.failures[0])
    assert [path.name for path in tmp_path.iterdir()] == ["model.other"]


def test_what_nobody_asked_for_is_not_published(tmp_path: Path, subject: ExportModel, monkeypatch: Any) -> None:
    monkeypatch.setitem(FORMATS, "source", made("source", 0.0, exact=True))
    verdict = judged([replace(made("other", 0.0), made_of="source")], tmp_path, subject)
    assert [candidate.format.name for candidate in verdict.proved] == ["other"]
    assert [path.name for path in tmp_path.iterdir()] == ["model.other"]


class Blind(ToyTask):
    """Its metric is the same whatever comes."""

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
def test_metric_that_sees_nothing_does_not_judge_alone(
    value: float, change: Callable[[Tensor], Tensor], message: str, tmp_path: Path, caplog: Any
) -> None:
    def changed(path: Path, subject: ExportModel) -> tuple[Forward, dict[str, Any]]:
        return lambda inputs: change(subject.eager_forward(inputs)), {}

    with torch.no_grad():
        blind = ExportModel(ToyModel(), Blind(value), evaluation=batches)
    verdict = judged([replace(made("one", 0.0), load=changed)], tmp_path, blind)
    assert [message in str(failure) for failure in verdict.failures] == ([True] if message else [])
    said = [record.getMessage() for record in caplog.records if record.name == "trainer.export.prove"]
    told = ["accuracy is nan over the evaluation split: it cannot judge artifacts"]
    assert said == ([] if value == 0.0 else told)


def test_not_a_number_is_as_far_off_as_can_be(tmp_path: Path, subject: ExportModel) -> None:
    (failure,) = judged([made("one", float("nan"), exact=True)], tmp_path, subject).failures
    assert "got nan" in str(failure)
    (failure,) = judged([made("one", float("nan"))], tmp_path, subject, metric_budget=1.0).failures
    assert "must be finite, got nan" in str(failure)


def test_config_takes_the_formats_that_there_are() -> None:
    (literal,) = get_args(get_type_hints(artifacts.publish)["formats"])
    assert set(get_args(literal)) == set(FORMATS)
    assert all(name == format.name for name, format in FORMATS.items())


def test_no_two_formats_share_a_file() -> None:
    paths = [format.path for format in FORMATS.values()]
    assert len({*paths}) == len(paths)
    # What lies beside an artifact is found by its name: `model.onnx.data` must be no other's.
    assert not [one for one in paths for other in paths if one.startswith(f"{other}.")]
