import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.export_models import ToyModel, ToyTask
from tests.support.pretrained_folders import model_of, save
from trainer.errors import ConfigError
from trainer.export.cases import Forward
from trainer.export.compare import compare_cases
from trainer.export.formats.catalog import FORMATS, HALF_FORMATS, Format
from trainer.export.model import ExportModel, scrambled
from trainer.model.weights import fit_weights
from trainer.model.weights_file import load_weights_file

NAMES = ("safetensors", "pth", "pth_legacy")


class Tied(ToyModel):
    """A weight under two names, a buffer that is saved, an integer one, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.again = nn.Linear(16, 50, bias=False)
        self.again.weight = self.tokens.weight
        self.register_buffer("shift", torch.tensor([0.25, -0.5, 1.0]))
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("places", torch.arange(24), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Any = None) -> Tensor:
        logits = super().forward(input_ids, attention_mask, self.places[: input_ids.shape[1]])
        return logits + self.shift * self.steps


@pytest.fixture(scope="module")
def model() -> ExportModel:
    with torch.no_grad():
        return ExportModel(Tied(), ToyTask(), architecture={"model": {"_target_": "mine"}, "facts": {"num_outputs": 3}})


def write(format: Format, folder: Path, model: ExportModel) -> Path:
    path = folder / format.path
    format.variants[0].write(path, model)
    return path


def load(format: Format, path: Path, model: ExportModel) -> Forward:
    forward, _ = format.load(path, model)
    return forward


@pytest.mark.parametrize("name", NAMES)
def test_loaded_weights_are_bitwise_equal(name: str, tmp_path: Path, model: ExportModel) -> None:
    path = write(FORMATS[name], tmp_path, model)
    with torch.no_grad():
        shapes = compare_cases(path.name, load(FORMATS[name], path, model), model.cases, 0.0)
    assert {row.difference for row in shapes} == {0.0}


@pytest.mark.parametrize("name", NAMES)
def test_model_weights_key_reads_it(name: str, tmp_path: Path, model: ExportModel) -> None:
    path = write(FORMATS[name], tmp_path, model)
    restored = Tied()
    with torch.no_grad():
        for parameter in restored.parameters():
            parameter.zero_()
    fit_weights(restored, load_weights_file(str(path)), [], [])
    for key, tensor in model.module.state_dict().items():
        assert torch.equal(restored.state_dict()[key], tensor), key


def test_pth_is_written_in_both_serializations(tmp_path: Path, model: ExportModel) -> None:
    new, old = (write(FORMATS[name], tmp_path, model) for name in ("pth", "pth_legacy"))
    assert [zipfile.is_zipfile(path) for path in (new, old)] == [True, False]
    for path in (new, old):
        state = torch.load(path, weights_only=True)
        assert list(state) == list(model.module.state_dict())
        assert state["again.weight"].data_ptr() == state["tokens.weight"].data_ptr()


def test_own_folder_rebuilds_the_model(tmp_path: Path, model: ExportModel) -> None:
    path = write(FORMATS["safetensors"], tmp_path, model)
    names = {file.name for file in path.iterdir()}
    assert names == {"model.safetensors", "config.json", "labels.json", "tokenizer.json"}
    config = json.loads((path / "config.json").read_text("utf-8"))
    assert config == {"model": {"_target_": "mine"}, "facts": {"num_outputs": 3}}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_has_half_the_size_and_is_close(name: str, tmp_path: Path, model: ExportModel) -> None:
    path = write(HALF_FORMATS[name], tmp_path, model)
    tensors = load_weights_file(str(path))
    kinds = {key: tensor.dtype for key, tensor in tensors.items()}
    assert kinds.pop("steps") == torch.int64
    assert set(kinds.values()) == {torch.float16}
    file = path / "model.safetensors" if path.is_dir() else path
    numbers = sum(parameter.numel() for parameter in model.module.parameters())
    assert 2 * numbers < file.stat().st_size < 3 * numbers + 4000
    with torch.no_grad():
        shapes = compare_cases(path.name, load(HALF_FORMATS[name], path, model), model.cases, 1e-2)
    assert max(row.difference for row in shapes) > 0
    assert (HALF_FORMATS[name].exact, HALF_FORMATS[name].bitwise) == (False, False)


@pytest.mark.parametrize("name", NAMES)
def test_truncated_file_is_rejected(name: str, tmp_path: Path, model: ExportModel) -> None:
    path = write(FORMATS[name], tmp_path, model)
    file = path / "model.safetensors" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(ConfigError, match="truncated"):
        load(FORMATS[name], path, model)


def test_file_without_a_weight_is_rejected(tmp_path: Path, model: ExportModel) -> None:
    state = model.module.state_dict()
    del state["shift"]
    torch.save(state, tmp_path / "model.pth")
    with pytest.raises(ConfigError, match="shift"):
        load(FORMATS["pth"], tmp_path / "model.pth", model)


def test_scrambled_copy_has_no_weight_of_the_model(model: ExportModel) -> None:
    other = scrambled(model.module)
    before = {key: tensor.clone() for key, tensor in model.module.state_dict().items()}
    for key, tensor in other.state_dict().items():
        assert not torch.equal(tensor, before[key]), key
    assert other.state_dict()["again.weight"].data_ptr() == other.state_dict()["tokens.weight"].data_ptr()
    assert torch.equal(other.get_buffer("places"), torch.arange(24))
    with torch.no_grad():
        inputs = ToyTask().example({"batch": 2, "sequence": 5}, np.random.default_rng(0))
        assert other(**inputs).isnan().all()
    for key, tensor in model.module.state_dict().items():
        assert torch.equal(tensor, before[key]), key


def test_library_model_is_written_and_read_by_its_library(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = model_of(save("bert", tmp_path / "bert"), num_outputs=3)
    capfd.readouterr()
    with torch.no_grad():
        model = ExportModel(model, ToyTask())
        path = tmp_path / "safetensors"
        details = FORMATS["safetensors"].variants[0].write(path, model)
        compare_cases(path.name, load(FORMATS["safetensors"], path, model), model.cases, 0.0)
    assert details == {"library": "transformers", "class": "BertModel", "head": "head.safetensors"}
    assert capfd.readouterr() == ("", "")
