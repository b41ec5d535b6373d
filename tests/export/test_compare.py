"""Comparisons of artifacts with PyTorch: dimensions, shapes, outputs, metrics, the evaluation split."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.conftest import Published
from tests.support.export_models import ToyModel, ToyTask
from trainer.errors import ConfigError, DataError, Interrupted, ProofError, TrainerError
from trainer.export.cases import Case, Forward
from trainer.export.compare import (
    OutputAgreement,
    check_inputs,
    check_metric,
    check_output,
    compare_cases,
    decisions,
    largest_difference,
    proof_errors,
)
from trainer.export.formats.onnx import OUTPUT, open_session
from trainer.export.formats.torchscript import Positional, load_trace, save_trace
from trainer.export.model import ExportModel, silence
from trainer.protocols import Target

AXES = ToyTask().axes()
LIMITS = ToyTask().axis_limits()
NAMES = tuple(AXES)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model() -> ExportModel:
    return ExportModel(ToyModel(), ToyTask())


@pytest.fixture
def cases(model: ExportModel) -> list[Case]:
    return model.cases


# Outputs


def difference(expected: Any, output: Any, tolerance: float) -> float:
    inputs = {"x": torch.zeros(2, 3)}
    return largest_difference("model.onnx", "here", inputs, torch.tensor(expected), torch.tensor(output), tolerance)


def test_difference_is_the_largest_of_all_elements() -> None:
    assert difference([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.5], [2.75, 4.0]], 0.5) == 0.5
    assert difference([-torch.inf, 1.0], [-torch.inf, 1.0], 0.0) == 0.0


def test_difference_above_the_tolerance_names_artifact_place_shape_and_values() -> None:
    with pytest.raises(ProofError) as caught:
        difference([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.75]], 0.5)
    (message,) = caught.value.messages
    assert message.startswith("model.onnx: output[1, 1] here (x (2, 3)) must be PyTorch's 4 within 0.5, got 4.75. ")
    assert "export.tolerance" in message
    assert caught.value.exit_code == 4


def test_nan_and_one_sided_infinity_are_refused_at_any_tolerance() -> None:
    for expected, output in ((1.0, torch.nan), (torch.nan, 1.0), (torch.nan, torch.nan), (torch.inf, 1.0)):
        with pytest.raises(ProofError):
            difference([expected], [output], 1e30)


def test_different_shapes_are_refused() -> None:
    with pytest.raises(ProofError, match=r"must have the shape \(2,\), got \(2, 1\)"):
        difference([1.0, 2.0], [[1.0], [2.0]], 1.0)


# Shapes


def trace(wrapper: nn.Module, model: ExportModel, path: Path) -> Forward:
    """Trace any module, as careless code would, and load it."""
    with silence():
        torch.jit.trace(wrapper, tuple(model.traced.values()), check_trace=False).save(str(path))
    return load_trace(path, NAMES)


def test_module_traced_in_training_mode_is_refused(tmp_path: Path, model: ExportModel) -> None:
    forward = trace(Positional(ToyModel(), NAMES), model, tmp_path / "model.pt")
    with pytest.raises(ProofError, match=r"must be PyTorch's"):
        compare_cases("model.pt", forward, model.cases, 1e-4)


class WithoutMask(nn.Module):
    """Does not pass the mask on."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ToyModel()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids)


def assert_wrong_only_with_padding(forward: Forward, cases: list[Case]) -> None:
    compare_cases("model", forward, [case for case in cases if not case.padded], 1e-4)
    with pytest.raises(ProofError, match=r", padded \("):
        compare_cases("model", forward, cases, 1e-4)


def test_dropped_mask_in_torchscript_is_refused(tmp_path: Path, model: ExportModel) -> None:
    assert_wrong_only_with_padding(trace(WithoutMask().eval(), model, tmp_path / "model.pt"), model.cases)


def test_correct_torchscript_passes_at_all_cases(tmp_path: Path, model: ExportModel) -> None:
    path = tmp_path / "model.pt"
    save_trace(model.module, model.traced, path)
    shapes = compare_cases("model.pt", load_trace(path, NAMES), model.cases, 1e-6)
    assert [(shape.sizes, shape.padded) for shape in shapes] == [(case.sizes, case.padded) for case in model.cases]


def edit(published: Published, path: Path, change: Any) -> Path:
    graph_model = onnx.load(published.folder / "model.onnx")
    change(graph_model.graph)
    onnx.save(graph_model, path)
    return path


def test_dropped_mask_in_onnx_is_refused(tmp_path: Path, published: Published, cases: list[Case]) -> None:
    def drop(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["ones" if name == "attention_mask" else name for name in node.input]
        graph.node.insert(0, onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["all"]))
        graph.node.insert(1, onnx.helper.make_node("Cast", ["all"], ["ones"], to=onnx.TensorProto.INT64))

    forward, *_ = open_session(edit(published, tmp_path / "model.onnx", drop))
    assert_wrong_only_with_padding(forward, cases)


def test_graph_that_runs_only_at_one_shape_is_refused(tmp_path: Path, published: Published, cases: list[Case]) -> None:
    def freeze(graph: onnx.GraphProto) -> None:
        for each in graph.input:
            each.type.tensor_type.shape.dim[0].dim_value = 2

    forward, *_ = open_session(edit(published, tmp_path / "model.onnx", freeze))
    with pytest.raises(ProofError, match=r"^model\.onnx: fails at batch=1, sequence=1, without padding: .*invalid dim"):
        compare_cases("model.onnx", forward, cases, 1e-4)


# Declared dimensions


@pytest.mark.parametrize(
    ("place", "size", "message"),
    [
        (0, 2, r"dimension 0 of input_ids must be symbolic \(batch\), got 2"),
        (1, 12, r"dimension 1 of input_ids must be symbolic \(sequence\), got 12"),
        (1, "batch", r"dimension 1 of input_ids must be symbolic \(sequence\) and .* axis batch, got 'batch'"),
    ],
)
def test_frozen_and_tied_dimensions_are_refused(
    tmp_path: Path, published: Published, place: int, size: int | str, message: str
) -> None:
    def freeze(graph: onnx.GraphProto) -> None:
        for each in graph.input:
            dimension = each.type.tensor_type.shape.dim[place]
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size

    _, inputs, _ = open_session(edit(published, tmp_path / "model.onnx", freeze))
    with pytest.raises(ProofError, match=message):
        check_inputs("model.onnx", inputs, AXES, LIMITS)


def test_correct_graph_passes(published: Published, cases: list[Case]) -> None:
    forward, inputs, outputs = open_session(published.folder / "model.onnx")
    check_inputs("model.onnx", inputs, AXES, LIMITS)
    check_output("model.onnx", outputs[OUTPUT], cases)
    compare_cases("model.onnx", forward, cases, 1e-5)


def test_missing_and_additional_inputs_are_refused() -> None:
    for names in (["input_ids"], ["input_ids", "attention_mask", "token_type_ids"]):
        with pytest.raises(ProofError, match="must have the inputs input_ids, attention_mask, got"):
            check_inputs("model.onnx", {name: ["batch", "sequence"] for name in names}, AXES, LIMITS)


def test_axis_of_one_size_may_be_constant() -> None:
    check_inputs("model.onnx", {name: ["batch", 8] for name in NAMES}, AXES, {"sequence": (8, 8)})


def test_output_that_is_frozen_or_has_another_rank_is_refused(cases: list[Case]) -> None:
    for dimensions in ([2, 3], ["batch"], ["batch", 3, 1]):
        with pytest.raises(ProofError, match="output must"):
            check_output("model.onnx", dimensions, cases)


# Metrics


@pytest.mark.parametrize(
    ("expected", "value", "higher_is_better", "budget", "passes"),
    [
        (0.80, 0.79, True, 0.0, False),
        (0.80, 0.79, True, 0.02, True),
        (0.80, 0.99, True, 0.0, True),
        (0.80, 0.81, False, 0.0, False),
        (0.80, 0.81, False, 0.02, True),
        (0.80, 0.10, False, 0.0, True),
        (0.80, 0.81, None, 0.0, False),
        (0.80, 0.79, None, 0.0, False),
        (0.80, 0.80000001, False, 0.0, True),
        (80.0, 81.0, False, 0.02, True),
        (80.0, 82.0, False, 0.02, False),
        (math.nan, math.nan, True, 0.0, True),
        (0.80, math.nan, True, 0.5, False),
        (math.nan, 0.80, True, 0.5, False),
    ],
)
def test_metric_may_lose_the_budget(
    expected: float, value: float, higher_is_better: bool | None, budget: float, passes: bool
) -> None:
    def check() -> None:
        check_metric("model.onnx", "score", expected, value, higher_is_better=higher_is_better, budget=budget)

    if passes:
        check()
    else:
        with pytest.raises(ProofError, match=r"^model\.onnx: score over the evaluation split must be within"):
            check()


# Errors of libraries


def test_any_error_of_a_library_becomes_one_line() -> None:
    with pytest.raises(ProofError) as caught, proof_errors("model.onnx", "cannot be loaded", "Try again"):
        raise RuntimeError("indirectly") from ValueError("\x1b[96mfirst line\x1b[0m\n  second line" + " x" * 1000)
    (message,) = caught.value.messages
    assert message.startswith("model.onnx: cannot be loaded: first line second line x x x")
    assert "\n" not in message
    assert len(message) < 500


def test_signal_that_a_library_caught_is_raised_again() -> None:
    with pytest.raises(Interrupted), proof_errors("model.onnx", "cannot be exported", "Try again"):
        raise RuntimeError("the exporter failed") from Interrupted("stopped by SIGTERM")


@pytest.mark.parametrize(("raised", "code"), [(Interrupted, 75), (DataError, 6), (ConfigError, 4), (OSError, 4)])
def test_signals_and_bad_data_are_not_blamed_on_the_artifact(raised: type[Exception], code: int) -> None:
    with pytest.raises(TrainerError) as caught, proof_errors("model.onnx", "cannot be loaded", "Try again"):
        raise raised("reason")
    assert caught.value.exit_code == code


def test_lack_of_memory_is_not_blamed_on_the_artifact() -> None:
    with (
        pytest.raises(RuntimeError, match="from a library"),
        proof_errors("model.onnx", "cannot be loaded", "Try again"),
    ):
        raise RuntimeError("from a library") from MemoryError()


def test_case_is_named_by_its_shape(cases: list[Case]) -> None:
    sizes: Mapping[str, int] = {"batch": 3, "sequence": 24}
    (case,) = (each for each in cases if each.sizes == sizes and each.padded)
    assert str(case) == "batch=3, sequence=24, padded"


# Agreement


def agree(
    expected: Tensor, output: Tensor, targets: Tensor | None = None, target: Target = "values"
) -> OutputAgreement:
    """Compare in two batches, which have different means."""
    agreement = OutputAgreement(target)
    targets = torch.zeros(len(expected)) if targets is None else targets
    for half in (slice(None, 3), slice(3, None)):
        agreement.update(expected[half], output[half], targets[half])
    return agreement


def test_relative_difference_is_divided_by_the_spread_around_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(20, 3, generator=generator) + torch.tensor([0.5, -0.5, 0.0])
    output = expected + 0.1 * torch.randn(20, 3, generator=generator)
    spread = (expected - expected.mean(0)).norm()
    relative = float((output - expected).norm() / spread)
    assert agree(expected, output).relative_difference == pytest.approx(relative, rel=1e-5)
    assert agree(expected, expected.mean(0).expand(20, 3)).relative_difference == pytest.approx(1.0)
    assert agree(expected, expected).relative_difference == 0.0


def test_outputs_that_hardly_differ_are_measured_by_their_size() -> None:
    expected = 3.0 + 1e-6 * torch.arange(8.0)[:, None]
    assert agree(expected, expected * 1.01).relative_difference == pytest.approx(0.05, rel=1e-3)
    zeros = torch.zeros(8, 1)
    assert agree(zeros, zeros).relative_difference == 0.0
    assert agree(zeros, zeros + 1e-9).relative_difference == math.inf


def test_positions_without_a_target_do_not_count() -> None:
    expected = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(6, 4, dtype=torch.int64)
    targets[:, 2:] = -100
    output = expected.clone()
    output[:, 2:] = output[:, 2:].roll(1, -1)
    agreement = agree(expected, output, targets, "class")
    assert (agreement.decision_agreement, agreement.relative_difference) == (1.0, 0.0)
    assert agree(expected, output, targets.abs(), "class").decision_agreement == 0.5


def test_equal_infinities_are_no_difference() -> None:
    expected = torch.tensor([[0.0, -torch.inf], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])
    assert agree(expected, expected.clone()).relative_difference == 0.0


def test_at_most_a_quarter_of_the_decisions_may_differ() -> None:
    for flips in (2, 3):
        expected = torch.tensor([[0.0, 0.1, 9.0]] * 4 + [[9.0, 0.1, 0.0]] * 4)
        expected[:flips] = torch.tensor([0.0, 0.1, 0.11])
        output = expected.clone()
        output[:flips] = torch.tensor([0.0, 0.11, 0.1])
        agreement = agree(expected, output, torch.zeros(8, dtype=torch.int64), "class")
        if flips == 2:
            agreement.check("model.onnx")
        else:
            with pytest.raises(ProofError, match=r"^model\.onnx: decisions .* 0\.75 .*, got 0\.625"):
                agreement.check("model.onnx")


def test_decisions_depend_on_the_target() -> None:
    output = torch.tensor([[-1.0, 2.0], [3.0, 1.0]])

    assert torch.equal(decisions(output, "class"), torch.tensor([1, 0]))
    assert torch.equal(decisions(output, "multi_hot"), torch.tensor([[False, True], [True, True]]))
    assert decisions(output, "values") is None
    assert decisions(output[:, :1], "class") is None
