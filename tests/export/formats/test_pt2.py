from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.export_models import ToyModel, ToyTask
from trainer.errors import ProofError
from trainer.export.compare import compare_cases
from trainer.export.formats.pt2 import load_pt2, write_pt2
from trainer.export.model import ExportModel, capture


@pytest.fixture(scope="module")
def model() -> ExportModel:
    with torch.no_grad():
        return ExportModel(ToyModel(), ToyTask())


def test_saved_program_is_loaded_and_proved(tmp_path: Path, model: ExportModel) -> None:
    path = tmp_path / "model.pt2"
    assert write_pt2(path, model) == {"inputs": ["input_ids", "attention_mask"]}
    with torch.no_grad():
        forward, _ = load_pt2(path, model)
        compare_cases(path.name, forward, model.cases, 1e-6)
    assert str(Path.cwd()).encode() not in path.read_bytes()  # it is stored, not compressed


def test_frozen_dimension_is_refused(tmp_path: Path, model: ExportModel) -> None:
    path = tmp_path / "model.pt2"
    axes = {name: {0: "batch"} for name in model.task.axes()}
    with torch.no_grad():
        torch.export.save(capture(model.module, model.traced, axes, {}), path)
    with pytest.raises(
        ProofError, match=r"^model\.pt2: dimension 1 of input_ids must be symbolic \(sequence\), got 12"
    ):
        load_pt2(path, model)


def test_program_is_captured_once(model: ExportModel) -> None:
    assert model.program is model.program


class Uncapturable(ToyModel):
    """Counts how often somebody shapes."""

    calls = 0

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: object = None) -> Tensor:
        type(self).calls += 1
        if bool(input_ids.sum() > 0):
            return super().forward(input_ids, attention_mask)
        return super().forward(input_ids, attention_mask) * 2


def test_failed_capture_is_tried_once() -> None:
    with torch.no_grad():
        model = ExportModel(Uncapturable(), ToyTask())
        errors = []
        for _ in range(2):
            before = Uncapturable.calls
            with pytest.raises(Exception, match="data-dependent") as caught:
                _ = model.program
            errors.append((caught.value, Uncapturable.calls - before))
    assert errors[0][0] is errors[1][0]
    assert errors[0][1] > 0 == errors[1][1]
