from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.export.conftest import Published
from tests.support.export_models import ToyModel, ToyTask
from trainer.errors import ConfigError, DataError, Interrupted, ProofError, TrainerError
from trainer.export.cases import Case
from trainer.export.isolation import silence
from trainer.export.onnx import OUTPUT, open_session
from trainer.export.proof import (
    difference,
    prove_cases,
    prove_inputs,
    prove_metric,
    prove_output,
    turned_into_proof_error,
)
from trainer.export.subject import Subject
from trainer.export.torchscript import Positional, open_trace, save_trace

AXES = ToyTask().axes()
LIMITS = ToyTask().axis_limits()
NAMES = tuple(AXES)


with torch.no_grad():
    SUBJECT = Subject(ToyModel(), ToyTask())


@pytest.fixture
def cases() -> list[Case]:
    return SUBJECT.cases


def trace(wrapper: nn.Module, path: Path) -> Path:
    """TorchScript of any module, as careless code would write it."""
    with silence():
        torch.jit.trace(wrapper, tuple(SUBJECT.traced.values()), check_trace=False).save(str(path))
    return path


def compare(where: str, expected: Any, got: Any, tolerance: float) -> float:
    return difference(
        "model.onnx", where, {"x": torch.zeros(2, 3)}, torch.tensor(expected), torch.tensor(got), tolerance
    )


def test_difference_is_the_largest() -> None:
    assert compare("here", [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.5], [2.75, 4.0]], 0.5) == 0.5


def test_difference_past_the_tolerance_names_artifact_input_shape_and_values() -> None:
    with pytest.raises(ProofError) as caught:
        compare("at batch=2", [[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.0, 4.75]], 0.5)
    assert caught.value.messages == (
        "model.onnx: output[1, 1] at batch=2 (x (2, 3)) must be PyTorch's 4 within 0.5, got 4.75. "
        "The file is removed; export.tolerance is the largest difference allowed.",
    )
    assert caught.value.exit_code == 4


def test_difference_of_equal_infinities_is_zero() -> None:
    assert compare("here", [-torch.inf, 1.0], [-torch.inf, 1.0], 0.0) == 0.0


@pytest.mark.parametrize(
    ("expected", "got"), [(1.0, torch.nan), (torch.nan, 1.0), (torch.nan, torch.nan), (torch.inf, 1.0)]
)
def test_nan_and_one_sided_infinity_are_never_near(expected: float, got: float) -> None:
    with pytest.raises(ProofError):
        compare("here", [expected], [got], 1e30)


def test_difference_of_shapes() -> None:
    with pytest.raises(ProofError, match=r"must have the shape \(2,\), got \(2, 1\)"):
        compare("here", [1.0, 2.0], [[1.0], [2.0]], 1.0)


def test_wrapper_left_in_training_mode(tmp_path: Path, cases: list[Case]) -> None:
    path = trace(Positional(ToyModel(), NAMES), tmp_path / "model.pt")
    with torch.no_grad(), pytest.raises(ProofError, match=r"must be PyTorch's"):
        prove_cases("model.pt", open_trace(path, NAMES), cases, 1e-4)


class MaskDropped(nn.Module):
    """Forgets to hand the mask on."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ToyModel()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids)


def test_dropped_mask_in_torchscript(tmp_path: Path, cases: list[Case]) -> None:
    path = trace(MaskDropped().eval(), tmp_path / "model.pt")
    forward = open_trace(path, NAMES)
    with torch.no_grad():
        prove_cases("model.pt", forward, [case for case in cases if not case.padded], 1e-4)
        with pytest.raises(ProofError, match=r", padded \("):
            prove_cases("model.pt", forward, cases, 1e-4)


def test_unbroken_torchscript_is_proved(tmp_path: Path, cases: list[Case]) -> None:
    path = tmp_path / "model.pt"
    save_trace(SUBJECT.model, SUBJECT.traced, path)
    with torch.no_grad():
        tried = prove_cases("model.pt", open_trace(path, NAMES), cases, 1e-6)
    assert [(row.sizes, row.padded) for row in tried] == [(case.sizes, case.padded) for case in cases]


def edited(published: Published, path: Path, edit: Any) -> Path:
    model = onnx.load(published.folder / "model.onnx")
    edit(model.graph)
    onnx.save(model, path)
    return path


def test_dropped_mask_in_onnx(tmp_path: Path, published: Published, cases: list[Case]) -> None:
    def drop(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.input[:] = ["ones" if name == "attention_mask" else name for name in node.input]
        graph.node.insert(0, onnx.helper.make_node("Equal", ["attention_mask", "attention_mask"], ["all"]))
        graph.node.insert(1, onnx.helper.make_node("Cast", ["all"], ["ones"], to=onnx.TensorProto.INT64))

    forward, *_ = open_session(edited(published, tmp_path / "model.onnx", drop))
    prove_cases("model.onnx", forward, [case for case in cases if not case.padded], 1e-4)
    with pytest.raises(ProofError, match=r", padded \("):
        prove_cases("model.onnx", forward, cases, 1e-4)


@pytest.mark.parametrize(
    ("place", "size", "message"),
    [
        (0, 2, r"dimension 0 of input_ids must be symbolic \(batch\), got 2"),
        (1, 12, r"dimension 1 of input_ids must be symbolic \(sequence\), got 12"),
        (1, "batch", r"dimension 1 of input_ids must be symbolic \(sequence\) and free of the axis batch, got 'batch'"),
    ],
)
def test_frozen_and_tied_dimensions_in_onnx(
    tmp_path: Path, published: Published, place: int, size: int | str, message: str
) -> None:
    def freeze(graph: onnx.GraphProto) -> None:
        for each in graph.input:
            dimension = each.type.tensor_type.shape.dim[place]
            if isinstance(size, int):
                dimension.dim_value = size
            else:
                dimension.dim_param = size

    _, inputs, _ = open_session(edited(published, tmp_path / "model.onnx", freeze))
    with pytest.raises(ProofError, match=message):
        prove_inputs("model.onnx", inputs, AXES, LIMITS)


def test_graph_that_runs_at_one_shape_alone(tmp_path: Path, published: Published, cases: list[Case]) -> None:
    def freeze(graph: onnx.GraphProto) -> None:
        for each in graph.input:
            each.type.tensor_type.shape.dim[0].dim_value = 2

    forward, *_ = open_session(edited(published, tmp_path / "model.onnx", freeze))
    with pytest.raises(ProofError, match=r"^model\.onnx: fails at batch=1, sequence=1, without padding: .*invalid dim"):
        prove_cases("model.onnx", forward, cases, 1e-4)


def test_whole_graph_is_proved(published: Published, cases: list[Case]) -> None:
    forward, inputs, outputs = open_session(published.folder / "model.onnx")
    prove_inputs("model.onnx", inputs, AXES, LIMITS)
    prove_output("model.onnx", outputs[OUTPUT], cases)
    prove_cases("model.onnx", forward, cases, 1e-5)


@pytest.mark.parametrize("names", [["input_ids"], ["input_ids", "attention_mask", "token_type_ids"]])
def test_inputs_are_those_of_the_task(names: list[str]) -> None:
    with pytest.raises(ProofError, match="must have the inputs input_ids, attention_mask, got"):
        prove_inputs("model.onnx", {name: ["batch", "sequence"] for name in names}, AXES, LIMITS)


def test_axis_of_one_size_may_be_frozen() -> None:
    prove_inputs("model.onnx", {name: ["batch", 8] for name in NAMES}, AXES, {"sequence": (8, 8)})


@pytest.mark.parametrize("dimensions", [[2, 3], ["batch"], ["batch", 3, 1]])
def test_output_that_is_frozen_or_has_another_rank(dimensions: list[int | str], cases: list[Case]) -> None:
    with pytest.raises(ProofError, match="output must"):
        prove_output("model.onnx", dimensions, cases)


@pytest.mark.parametrize(
    ("expected", "got", "higher_is_better", "budget", "holds"),
    [
        (0.80, 0.80, True, 0.0, True),
        (0.80, 0.79, True, 0.0, False),
        (0.80, 0.79, True, 0.02, True),
        (0.80, 0.99, True, 0.0, True),
        (0.80, 0.81, False, 0.0, False),
        (0.80, 0.81, False, 0.02, True),
        (0.80, 0.10, False, 0.0, True),
        (0.80, 0.81, None, 0.0, False),
        (0.80, 0.79, None, 0.0, False),
        (0.80, 0.80000001, False, 0.0, True),
        (float("nan"), float("nan"), True, 0.0, True),
        (0.80, float("nan"), True, 0.5, False),
        (float("nan"), 0.80, True, 0.5, False),
    ],
)
def test_budget(expected: float, got: float, higher_is_better: bool | None, budget: float, holds: bool) -> None:
    def prove() -> None:
        prove_metric("model.onnx", "score", expected, got, higher_is_better=higher_is_better, budget=budget)

    if holds:
        prove()
    else:
        with pytest.raises(ProofError, match=r"^model\.onnx: score over the evaluation split must be within"):
            prove()


def test_any_error_of_a_library_becomes_one_line() -> None:
    with (
        pytest.raises(ProofError) as caught,
        turned_into_proof_error("model.onnx", "cannot be loaded", "Try again"),
    ):
        raise RuntimeError("a long way round") from ValueError("\x1b[96mfirst line\x1b[0m\n  second line" + " x" * 1000)
    (message,) = caught.value.messages
    assert message.startswith("model.onnx: cannot be loaded: first line second line x x x")
    assert "\n" not in message
    assert len(message) < 500


def test_case_names_its_shape(cases: list[Case]) -> None:
    sizes: Mapping[str, int] = {"batch": 3, "sequence": 24}
    (case,) = (each for each in cases if each.sizes == sizes and each.padded)
    assert str(case) == "batch=3, sequence=24, padded"


def test_signal_that_a_library_took_for_its_own_fault() -> None:
    with pytest.raises(Interrupted), turned_into_proof_error("model.onnx", "cannot be exported", "Try again"):
        raise RuntimeError("the exporter failed") from Interrupted("stopped by SIGTERM")


@pytest.mark.parametrize(("raised", "code"), [(Interrupted, 75), (DataError, 6), (ConfigError, 4), (OSError, 4)])
def test_signals_and_bad_data_are_no_fault_of_the_artifact(raised: type[Exception], code: int) -> None:
    with pytest.raises(TrainerError) as caught, turned_into_proof_error("model.onnx", "cannot be loaded", "Try again"):
        raise raised("what happened")
    assert caught.value.exit_code == code
