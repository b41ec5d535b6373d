"""The int8 graph, and the normalized graph that it is made of."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import Tensor, nn

from tests.export.formats.test_fp16 import wide_toy
from tests.support.export_models import LABELS, WORDS, ToyTask, batches, publish_toy, toy_export_model
from trainer.errors import ProofError
from trainer.export.cases import Forward
from trainer.export.compare import Limits, compare_cases
from trainer.export.formats.catalog import FORMATS
from trainer.export.formats.int8 import Quantization, find_layers, normalize_linear_layers, write_int8
from trainer.export.formats.onnx import load_onnx, shared_graph
from trainer.export.model import ExportModel
from trainer.export.prove import ProofResult, prove_formats
from trainer.protocols import Batch

Method = Literal["dynamic", "static"]


def models_of_one_graph(module: nn.Module, task: ToyTask) -> dict[Method, ExportModel]:
    """Return the models of both methods, of which the first exports the graph."""
    with torch.no_grad():
        models: dict[Method, ExportModel] = {
            method: ExportModel(module, task, training=lambda count: batches(), int8=method)
            for method in get_args(Method)
        }
    shared_graph(models["dynamic"])
    models["static"]._results.update(models["dynamic"]._results)
    return models


class Tied(nn.Module):
    """Embeddings that are also the weights of a product and of a linear layer; a linear layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(1200, 8)  # the exporter itself stores a smaller one twice
        self.twice = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1200)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) to scores of words (B, V)."""
        hidden = (self.tokens(input_ids) * attention_mask[:, :, None]).sum(1)
        hidden = self.twice(self.twice(hidden).tanh()).tanh()
        return self.head(hidden) + hidden @ self.tokens.weight.T


def tied_model() -> Tied:
    with torch.random.fork_rng():
        return Tied()


@pytest.fixture(scope="module")
def tied_models() -> dict[Method, ExportModel]:
    return models_of_one_graph(tied_model(), ToyTask())


@pytest.fixture(scope="module")
def tied(tied_models: dict[Method, ExportModel]) -> ExportModel:
    return tied_models["dynamic"]


def normalize(model: ExportModel, path: Path) -> onnx.ModelProto:
    graph_model = onnx.load(shared_graph(model))
    normalize_linear_layers(graph_model.graph)
    onnx.checker.check_model(graph_model, full_check=True)
    onnx.save(graph_model, path)
    return graph_model


def test_every_product_is_a_matmul_and_every_weight_is_stored_once(tied: ExportModel, tmp_path: Path) -> None:
    assert {"Gemm", "Transpose"} <= {node.op_type for node in onnx.load(shared_graph(tied)).graph.node}
    path = tmp_path / "model.onnx"
    graph = normalize(tied, path).graph
    matrices = [each.name for each in graph.initializer if len(each.dims) > 1]
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert len(matrices) == 2
    assert sorted(products) == sorted(matrices * 2)
    assert "Gemm" not in {node.op_type for node in graph.node}
    forward, _ = load_onnx(path, tied)
    compare_cases(path.name, forward, tied.cases, 1e-5)


def test_layers_have_the_names_of_the_model_and_all_readers(tied: ExportModel, tmp_path: Path) -> None:
    layers = {layer.name: layer for layer in find_layers(normalize(tied, tmp_path / "model.onnx").graph)}
    assert {name: (len(layer.nodes), layer.size) for name, layer in layers.items()} == {
        "head": (3, 8 * 1200),
        "twice": (2, 64),
    }
    assert all(layer.is_tied for layer in layers.values())


def test_renamed_weight_is_named_by_its_bias(toys: dict[Method, ExportModel], tmp_path: Path) -> None:
    layers = find_layers(normalize(toys["dynamic"], tmp_path / "model.onnx").graph)
    assert [layer.name for layer in layers] == ["tokens", "positions", "query_key_value", "head"]
    assert [layer.operator for layer in layers] == ["Gather", "Gather", "MatMul", "MatMul"]
    assert not any(layer.is_tied for layer in layers)


_INT8 = {TensorProto.INT8, TensorProto.UINT8}


class Stretched(nn.Module):
    """Three linear layers; some have channels a thousand times the others, which changes nothing of what it computes.

    Args:
        outputs: Layers of which one output is stretched: a scale for each output serves them, one for all does not.
        inputs: Layers of which one input is stretched: no scale for an output serves these.
    """

    def __init__(self, outputs: tuple[int, ...] = (), inputs: tuple[int, ...] = ()) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.tokens = nn.Embedding(len(WORDS), 64)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.head = nn.Linear(64, len(LABELS))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.2, generator=generator)
        self.before, self.after = (nn.Buffer(torch.ones(4, 64)) for _ in range(2))
        for number, layer in enumerate(self.layers):
            if number in outputs:
                layer.weight.data[0] *= 1e3
                layer.bias.data[0] *= 1e3
                self.after[number, 0] = 1e-3
            if number in inputs:
                layer.weight.data[:, 0] *= 1e3
                self.before[number, 0] = 1e-3

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, T) to logits (B, C)."""
        mask = attention_mask[:, :, None]
        hidden = (self.tokens(input_ids) * mask).sum(1) / mask.sum(1)
        for layer, before, after in zip(self.layers, self.before, self.after, strict=True):
            hidden = (layer(hidden * before) * after).tanh()
        return self.head(hidden)


def export_model(model: nn.Module) -> ExportModel:
    with torch.no_grad():
        return ExportModel(model, ToyTask(), training=lambda count: batches())


def error(forward: Forward, model: ExportModel) -> float:
    """The difference from PyTorch on the evaluation split, by the size of its outputs."""
    expected = torch.cat([model.module(**batch.inputs) for batch in batches()])
    got = torch.cat([forward(batch.inputs) for batch in batches()])
    return float((got - expected).norm() / expected.norm())


def agreement(forward: Forward, model: ExportModel) -> float:
    """The share of equal decisions on the evaluation split."""
    equal = [forward(each.inputs).argmax(-1) == model.module(**each.inputs).argmax(-1) for each in batches()]
    return float(torch.cat(equal).float().mean())


def own_decisions(model: nn.Module) -> Callable[[], Iterator[Batch]]:
    """The evaluation split labelled by the model itself: its accuracy is 1, and what an artifact loses is seen."""

    def labelled() -> Iterator[Batch]:
        for batch in batches(num_batches=8):
            yield Batch(batch.inputs, model.eval()(**batch.inputs).argmax(-1), batch.num_samples, batch.ids)

    return labelled


def prove(model: ExportModel, stage: Path, budget: float = 0.02) -> ProofResult:
    with torch.no_grad():
        model = replace(model, evaluation=own_decisions(model.module))
        return prove_formats([FORMATS["onnx_int8"]], stage, model, Limits(1e-4, budget))


@pytest.fixture(scope="module")
def toys() -> dict[Method, ExportModel]:
    return models_of_one_graph(wide_toy(), ToyTask())


@pytest.mark.parametrize(("method", "per_channel"), [("dynamic", True), ("static", False)])
def test_weights_are_int8_and_decisions_agree_at_untraced_shapes(
    toys: dict[Method, ExportModel], tmp_path: Path, method: Method, per_channel: bool
) -> None:
    model, path = toys[method], tmp_path / "model.int8.onnx"
    details = write_int8(path, model, per_channel=per_channel)
    assert details == {
        "activations": method,
        "int8_layers": ["tokens", "positions", "query_key_value", "head"],
        "float32_layers": [],
    }
    assert path.stat().st_size < 0.35 * shared_graph(model).stat().st_size
    graph = onnx.load(path).graph
    matrices = {each.name: each for each in graph.initializer if len(each.dims) > 1}
    assert Counter(each.data_type in _INT8 for each in matrices.values()) == {True: 4}
    products = [numpy_helper.to_array(each) for each in matrices.values() if each.data_type == TensorProto.INT8]
    assert (
        max(int(abs(each.astype(int)).max()) for each in products) == 64
    )  # 7 bits: nothing saturates, whatever the processor
    forward, declared = load_onnx(path, model)
    assert declared["output"] == {"name": "output", "shape": ["batch", 3]}
    compare_cases(path.name, forward, model.cases, 0.05)
    assert agreement(forward, model) > 0.95
    assert error(forward, model) < 0.05


@pytest.mark.parametrize("per_channel", [False, True])
def test_scales_are_per_layer_or_per_output(toys: dict[Method, ExportModel], tmp_path: Path, per_channel: bool) -> None:
    write_int8(tmp_path / "model.onnx", toys["dynamic"], per_channel=per_channel)
    scales = [each for each in onnx.load(tmp_path / "model.onnx").graph.initializer if each.name.endswith("_scale")]
    sizes = sorted(each.dims[0] if each.dims else 1 for each in scales)
    assert sizes == ([1, 1, 3, 384] if per_channel else [1, 1, 1, 1])


@pytest.mark.parametrize(("method", "per_channel"), [("dynamic", True), ("static", False)])
def test_tied_weights_are_quantized_once(
    tied_models: dict[Method, ExportModel], tmp_path: Path, method: Method, per_channel: bool
) -> None:
    model, path = tied_models[method], tmp_path / "model.onnx"
    write_int8(path, model, per_channel=per_channel)
    matrices = [each.data_type for each in onnx.load(path).graph.initializer if len(each.dims) > 1]
    assert len(matrices) == 2
    assert {*matrices} <= _INT8
    forward, _ = load_onnx(path, model)
    assert error(forward, model) < 0.05


class Pixels(ToyTask):
    """Small images in."""

    def axes(self) -> dict[str, dict[int, str]]:
        return {"pixel_values": {0: "batch"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {}

    def example(self, sizes: dict[str, int], generator: object) -> dict[str, Tensor]:  # type: ignore[override]
        return {"pixel_values": torch.randn(sizes["batch"], 1, 8, 8, generator=torch.Generator().manual_seed(0))}


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3)
        self.head = nn.Linear(16, len(LABELS))

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Images (B, 1, 8, 8) to logits (B, C)."""
        return self.head(self.second(self.first(pixel_values).relu()).relu().mean((2, 3)))


def test_convolutions_are_quantized_statically_or_not_at_all(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        model = Convolutions()
    with torch.no_grad():
        subjects = {method: ExportModel(model, Pixels(), int8=method) for method in (None, "dynamic")}
    shared_graph(subjects[None])
    subjects["dynamic"]._results.update(subjects[None]._results)
    path = tmp_path / "model.onnx"
    assert write_int8(path, subjects[None], per_channel=True) == {
        "activations": "static",
        "int8_layers": ["first", "second", "head"],
        "float32_layers": [],
    }
    forward, _ = load_onnx(path, subjects[None])
    for case in subjects[None].cases:
        assert (forward(case.inputs) - case.expected).norm() < 0.05 * case.expected.norm()
    details = write_int8(path, subjects["dynamic"], per_channel=True)
    assert (details["int8_layers"], details["float32_layers"]) == (["head"], ["first", "second"])
    model.head = nn.Identity()  # type: ignore[assignment]
    with torch.no_grad():
        model = ExportModel(model, Pixels(), int8="dynamic")
    with pytest.raises(ProofError, match="no layer that dynamic int8 quantizes, got 'dynamic'"):
        write_int8(path, model, per_channel=True)


def test_per_tensor_is_tried_first(tmp_path: Path) -> None:
    (artifact,) = prove(export_model(Stretched()), tmp_path).proved
    assert artifact.variant.name == "per tensor"


def test_per_channel_is_tried_second(tmp_path: Path) -> None:
    (artifact,) = prove(export_model(Stretched(outputs=(0, 1, 2))), tmp_path).proved
    assert artifact.variant.name == "per channel"
    assert artifact.details["float32_layers"] == []


def test_most_sensitive_layer_is_left_out_third(tmp_path: Path) -> None:
    (artifact,) = prove(export_model(Stretched(inputs=(2,))), tmp_path).proved
    assert artifact.variant.name == "per channel, 1 layer in fp32"
    assert artifact.details["float32_layers"] == ["layers.2"]


def test_too_many_fp32_layers_are_refused() -> None:
    model = export_model(Stretched(inputs=(1, 2)))
    quantization = model.compute_once(Quantization)
    assert [layer.name for layer in quantization.most_sensitive(1)] in (["layers.1"], ["layers.2"])
    with pytest.raises(ProofError, match="with 4 of its 6 layers in float32 it is no smaller than in float16"):
        quantization.most_sensitive(4)


def test_model_that_no_variant_fits_is_not_published(tmp_path: Path) -> None:
    model = Stretched(inputs=(0, 1, 2, 3))
    original = toy_export_model(model, evaluation=own_decisions(model))
    with pytest.raises(ProofError) as raised:
        publish_toy(tmp_path, original, ["onnx_int8"], calibration=16, metric_budget=0.02)
    assert raised.value.exit_code == 4
    (message,) = raised.value.messages
    assert message.startswith("model.int8.onnx: none of its 5 variants passes.")
    lines = [line.strip().split(": ", 2) for line in message.splitlines()[1:]]
    reason = {name: reason for names, *_, reason in lines for name in names.split("; ")}
    for variant in ("per tensor", "per channel", "per channel, 1 layer in fp32"):
        assert reason[variant].startswith("accuracy over the evaluation split must be within 0.02")
    assert not list(tmp_path.glob("*.onnx"))
