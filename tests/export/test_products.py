from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.support.export_models import ToyModel, ToyTask
from trainer.export.float_graph import float_graph
from trainer.export.onnx import load_onnx
from trainer.export.products import layers_of, with_products
from trainer.export.proof import prove_cases
from trainer.export.subject import Subject


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
def tied() -> Subject:
    with torch.no_grad():
        return Subject(tied_model(), ToyTask())


def products_of(subject: Subject, path: Path) -> onnx.ModelProto:
    model = onnx.load(float_graph(subject))
    with_products(model.graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return model


def test_every_product_has_its_weight_on_the_right_and_every_weight_is_stored_once(
    tied: Subject, tmp_path: Path
) -> None:
    assert {"Gemm", "Transpose"} <= {node.op_type for node in onnx.load(float_graph(tied)).graph.node}
    path = tmp_path / "model.onnx"
    graph = products_of(tied, path).graph
    matrices = [each.name for each in graph.initializer if len(each.dims) > 1]
    products = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert len(matrices) == 2
    assert sorted(products) == sorted(matrices * 2)
    assert "Gemm" not in {node.op_type for node in graph.node}
    forward, _ = load_onnx(path, tied)
    prove_cases(path.name, forward, tied.cases, 1e-5)


def test_layers_have_the_names_of_the_model_and_all_their_readers(tied: Subject, tmp_path: Path) -> None:
    layers = {layer.name: layer for layer in layers_of(products_of(tied, tmp_path / "model.onnx").graph)}
    assert {name: (len(layer.nodes), layer.size) for name, layer in layers.items()} == {
        "head": (3, 8 * 1200),
        "twice": (2, 64),
    }
    assert all(layer.is_tied for layer in layers.values())


def test_a_weight_whose_name_the_exporter_changed_is_named_by_its_bias(tmp_path: Path) -> None:
    with torch.no_grad():
        subject = Subject(ToyModel(), ToyTask())
    layers = layers_of(products_of(subject, tmp_path / "model.onnx").graph)
    assert [layer.name for layer in layers] == ["tokens", "positions", "query_key_value", "head"]
    assert [layer.kind for layer in layers] == ["Gather", "Gather", "MatMul", "MatMul"]
    assert not any(layer.is_tied for layer in layers)
