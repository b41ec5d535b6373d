from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import Tensor

from tests.export.toy import ToyModel, ToyTask, batches
from trainer.export import artifacts
from trainer.export.cases import Forward
from trainer.export.formats import FORMATS, Format, Variant
from trainer.export.gate import Verdict, judge
from trainer.export.proof import Limits
from trainer.export.subject import Subject


@pytest.fixture(scope="module")
def subject() -> Subject:
    with torch.no_grad():
        return Subject(ToyModel(), ToyTask())


def shifted(by: float) -> Callable[[Path, Subject], dict[str, Any]]:
    """A way of writing a format whose first class is more, or less, likely than PyTorch has it."""

    def write(path: Path, subject: Subject) -> dict[str, Any]:
        path.write_text(str(by))
        return {"by": by}

    return write


def load(path: Path, subject: Subject) -> tuple[Forward, dict[str, Any]]:
    by = float(path.read_text())

    def forward(inputs: Mapping[str, Tensor]) -> Tensor:
        return subject.pytorch(inputs) + torch.tensor([by, 0.0, 0.0])

    return forward, {}


def made(name: str, *shifts: float, exact: bool = False) -> Format:
    variants = tuple(Variant(f"by {by:g}", shifted(by)) for by in shifts)
    return Format(name, f"model.{name}", load, variants, exact=exact)


def judged(formats: list[Format], folder: Path, subject: Subject, **limits: float) -> Verdict:
    with torch.no_grad():
        return judge(formats, folder, subject, batches, Limits(**{"tolerance": 1e-4, "metric_budget": 0.05, **limits}))


def test_first_variant_inside_the_budget_is_taken(tmp_path: Path, subject: Subject) -> None:
    verdict = judged([made("one", 100.0, 0.001, 0.0), made("two", 0.002)], tmp_path, subject)
    assert [candidate.variant.name for candidate in verdict.proved] == ["by 0.001", "by 0.002"]
    assert verdict.failures == []
    assert [candidate.details for candidate in verdict.proved] == [{"by": 0.001}, {"by": 0.002}]
    assert (tmp_path / "model.one").read_text() == "0.001"


def test_pytorch_runs_once_over_the_split_for_all_variants(tmp_path: Path, subject: Subject) -> None:
    calls = []
    watched = subject.model.register_forward_hook(lambda *_: calls.append(None))
    verdict = judged([made("one", 100.0, 50.0, 0.001)], tmp_path, subject)
    watched.remove()
    assert [candidate.variant.name for candidate in verdict.proved] == ["by 0.001"]
    num_batches = len([*batches()])
    # These artifacts run the model too: each of the three at every case and on every batch.
    assert len(calls) == 3 * (len(subject.cases) + num_batches) + num_batches


def test_difference_of_an_inexact_format_is_recorded_and_not_refused(tmp_path: Path, subject: Subject) -> None:
    (candidate,) = judged([made("one", 0.001)], tmp_path, subject).proved
    assert candidate.largest_difference == pytest.approx(0.001, rel=1e-3)
    assert candidate.comparison.agreement is not None
    verdict = judged([made("one", 0.001, exact=True)], tmp_path, subject)
    assert verdict.proved == []
    assert str(verdict.failures[0]).startswith("model.one: output[0, 0] at batch=1, sequence=1, without padding")


def test_when_none_fits_each_variant_is_told_and_no_file_is_left(tmp_path: Path, subject: Subject) -> None:
    verdict = judged([made("one", 100.0, 50.0), made("two", 0.0)], tmp_path, subject)
    (failure,) = verdict.failures
    first, *reasons = str(failure).splitlines()
    assert first == "model.one: none of its 2 variants passes. Leave out this format."
    assert [reason.split(": ")[:2] for reason in reasons] == [["  by 100", "model.one"], ["  by 50", "model.one"]]
    assert all("accuracy over the evaluation split must be within 0.05" in reason for reason in reasons)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.two"]
    assert [candidate.format.name for candidate in verdict.proved] == ["two"]


def test_variant_that_cannot_be_written_gives_way_to_the_next(tmp_path: Path, subject: Subject) -> None:
    def fail(path: Path, subject: Subject) -> dict[str, Any]:
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


def test_not_a_number_is_as_far_off_as_can_be(tmp_path: Path, subject: Subject) -> None:
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
