from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import trainer.export.formats.fp16
import trainer.export.formats.onnx
from tests.support.export_models import LABELS, WORDS, ToyModel, ToyTask
from trainer.export.compare import compare_cases
from trainer.export.formats.fp16 import write_fp16
from trainer.export.formats.onnx import load_onnx, shared_graph, write_onnx
from trainer.export.model import ExportModel


class OutOfRange(nn.Module):
    """What is right in float32 and not in float16, in the ways that transformers and heads are written."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Embedding(len(WORDS), 8)
        self.head = nn.Linear(8, len(LABELS))
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        self.tokens.weight.data[0] = 0.0

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) to logits (B, C)."""
        hidden = self.tokens(input_ids)
        hidden = hidden * 300.0 * 3000.0 / 9e5
        hidden = hidden / hidden.norm(dim=-1, keepdim=True).clamp(min=1e-12)
        mask = (1.0 - attention_mask[:, None, :].float()) * torch.finfo(torch.float32).min
        attended = (hidden @ hidden.transpose(1, 2) + mask).softmax(-1) @ hidden
        return self.head(attended.sum(1) / 1e5 * 1e5)


def wide_toy() -> ToyModel:
    """A model of which weights are most of the file, and the outputs a few units."""
    model = ToyModel(dim=128)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.2)
    return model


@pytest.fixture(scope="module")
def model() -> ExportModel:
    with torch.no_grad():
        return ExportModel(wide_toy(), ToyTask())


@pytest.fixture(scope="module")
def extreme() -> ExportModel:
    with torch.no_grad():
        return ExportModel(OutOfRange(), ToyTask())


def weights_of(path: Path) -> dict[str, TensorProto]:
    return {each.name: each for each in onnx.load(path).graph.initializer}


def in_true_half(path: Path, model: ExportModel) -> list[tuple[np.ndarray, np.ndarray]]:
    """Outputs of a graph computed by onnx in the types that it declares, and PyTorch's, of every case."""
    evaluator = ReferenceEvaluator(str(path))
    with np.errstate(all="ignore"):
        outputs = [evaluator.run(None, {k: v.numpy() for k, v in case.inputs.items()})[0] for case in model.cases]
    return [(got, case.expected.numpy()) for got, case in zip(outputs, model.cases, strict=True)]


def test_graph_has_half_the_size_and_is_close_at_untraced_shapes(model: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    details = write_fp16(path, model)
    onnx.checker.check_model(path, full_check=True)
    assert path.stat().st_size < 0.55 * shared_graph(model).stat().st_size
    assert details["float16_operators"] > details["float32_operators"] > 0
    forward, declared = load_onnx(path, model)
    assert declared["output"] == {"name": "output", "shape": ["batch", 3]}
    shapes = compare_cases(path.name, forward, model.cases, 1e-2)
    assert len(shapes) == len(model.cases) > 6
    assert all(forward(case.inputs).dtype == torch.float32 for case in model.cases)
    matrices = [each for each in weights_of(path).values() if len(each.dims) > 1]
    assert len(matrices) == 4
    assert {each.data_type for each in matrices} == {TensorProto.FLOAT16}


def test_inputs_and_outputs_keep_their_types(model: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    write_fp16(path, model)
    types = [
        {each.name: each.type.tensor_type.elem_type for each in [*graph.input, *graph.output]}
        for graph in (onnx.load(path).graph, onnx.load(shared_graph(model)).graph)
    ]
    assert types[0] == types[1]


def test_values_out_of_range_stay_in_float32(extreme: ExportModel, tmp_path: Path) -> None:
    path = tmp_path / "model.fp16.onnx"
    write_fp16(path, extreme)
    onnx.checker.check_model(path, full_check=True)
    for got, expected in in_true_half(path, extreme):
        np.testing.assert_allclose(got, expected, atol=2e-2, rtol=0)
    assert TensorProto.FLOAT16 in {each.data_type for each in weights_of(path).values()}


@pytest.mark.parametrize("ignored", ["_find_large_values", "_leaves_range", "_needs_fp32"])
def test_each_reason_to_stay_in_float32_is_needed(
    extreme: ExportModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ignored: str
) -> None:
    nothing: dict[str, Any] = {
        "_find_large_values": lambda *_: set(),
        "_leaves_range": lambda _: False,
        "_needs_fp32": lambda node: node.op_type in trainer.export.formats.fp16._TYPED_OPERATORS,
    }
    monkeypatch.setattr(trainer.export.formats.fp16, ignored, nothing[ignored])
    path = tmp_path / "model.fp16.onnx"
    write_fp16(path, extreme)
    results = in_true_half(path, extreme)
    assert not all(np.allclose(got, expected, atol=2e-2) for got, expected in results)


def test_external_weights_are_written_next_to_the_new_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.export.formats.onnx, "_PROTOBUF_LIMIT", 1)
    with torch.no_grad():
        model = ExportModel(ToyModel(), ToyTask(), scratch=tmp_path)
    write_onnx(tmp_path / "model.onnx", model)  # its weights then have two names
    write_fp16(tmp_path / "model.fp16.onnx", model)
    names = ["model.fp16.onnx", "model.fp16.onnx.data", "model.onnx", "model.onnx.data"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == names
    forward, _ = load_onnx(tmp_path / "model.fp16.onnx", model)
    compare_cases("model.fp16.onnx", forward, model.cases, 1e-2)
