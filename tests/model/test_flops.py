"""The operations of models, compared with torch's own count, and the share of a GPU's peak."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.support.pretrained_folders import LANGUAGE, Folders, model_of
from trainer.model.convnet import ConvNet
from trainer.model.decoder import Decoder
from trainer.model.flops import ModelFlops, Utilization, count_flops, find_peak
from trainer.model.resnet import ResNet
from trainer.model.text_encoder import TextEncoder
from trainer.model.vit import ViT

LENGTH, SAMPLES, VOCAB = 64, 4, 400
SIZES: dict[str, Any] = {"dim": 128, "depth": 2, "heads": 4, "hidden": 512, "dropout": 0.1, "pooling": "mean"}


class LanguageModeling:
    def __init__(self, *, causal: bool) -> None:
        self.causal = causal


CAUSAL, MASKED = LanguageModeling(causal=True), LanguageModeling(causal=False)


def measured(model: nn.Module, **inputs: torch.Tensor) -> int:
    """Return torch's count of the operations of a forward and backward pass."""
    # The fused attention of the CPU is not counted.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs).sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("model", "task"),
    [
        (TextEncoder(VOCAB, 3, LENGTH, **SIZES), None),
        (TextEncoder(VOCAB, 3, LENGTH, "token", **SIZES), None),
        (Decoder(VOCAB, VOCAB, LENGTH, "token", tie_embeddings=True, **SIZES), CAUSAL),
        (Decoder(VOCAB, VOCAB, LENGTH, "token", tie_embeddings=False, **SIZES), CAUSAL),
    ],
    ids=["encoder", "tags", "tied decoder", "decoder"],
)
def test_formula_agrees_with_the_counted_operations(model: nn.Module, task: Any) -> None:
    ids = torch.randint(5, VOCAB, (SAMPLES, LENGTH), generator=torch.Generator().manual_seed(0))
    counted = measured(model, input_ids=ids, attention_mask=torch.ones_like(ids))
    flops = count_flops(model, None, task)

    assert flops is not None
    assert flops.per_second(SAMPLES, SAMPLES * LENGTH) == pytest.approx(counted, rel=0.015)


def test_last_layer_of_a_masked_language_model_is_left_out() -> None:
    model = TextEncoder(VOCAB, VOCAB, LENGTH, "token", **SIZES)
    with_head, without = count_flops(model, None, CAUSAL), count_flops(model, None, MASKED)  # type: ignore[arg-type]

    assert with_head is not None
    assert without is not None
    assert with_head.weights - without.weights == VOCAB * 128


@pytest.mark.parametrize("name", ["bert", "gpt2", "distilbert"])
def test_models_of_transformers_are_counted(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    model = model_of(Folders(tmp_path_factory)(name), **LANGUAGE)
    flops = count_flops(model, None, CAUSAL if name == "gpt2" else MASKED)  # type: ignore[arg-type]
    config = model.config
    blocks = config.num_hidden_layers * config.hidden_size * (4 * config.hidden_size + 2 * hidden_of(config))

    assert flops is not None
    assert flops.attention == config.num_hidden_layers * config.hidden_size
    assert blocks <= flops.weights <= 1.6 * blocks + config.vocab_size * config.hidden_size


def hidden_of(config: Any) -> int:
    """Return the width of the feed-forward layers."""
    names = ("intermediate_size", "n_inner", "hidden_dim")
    return next((size for name in names if (size := getattr(config, name, None))), 4 * config.hidden_size)


@pytest.mark.parametrize(
    "model",
    [
        ConvNet(10, 1, (28, 28), channels=(16, 32), hidden=[128, 64]),
        ResNet(10, 1, (28, 28), depth=8, width=4, shortcut="projection"),
        ViT(10, 1, (28, 28), patch=7, dim=32, depth=2, heads=2, hidden=64, dropout=0.1, pooling="mean"),
    ],
    ids=["convnet", "resnet", "vit"],
)
def test_images_are_counted_without_running_the_model(model: nn.Module) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flops = count_flops(model, (1, 28, 28), None)
    pixels = torch.zeros(SAMPLES, 1, 28, 28, requires_grad=True)  # the first layer's backward pass is complete, too

    assert flops is not None
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert model.training
    assert flops.per_second(SAMPLES, 0.0) == measured(model, pixel_values=pixels)


class Uneven(nn.Module):
    """A model whose operations depend on the values of its inputs."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return pixel_values if pixel_values.sum() > 0 else -pixel_values


def test_models_that_need_an_unknown_number_of_operations_have_none() -> None:
    frozen = TextEncoder(VOCAB, 3, LENGTH, **SIZES)
    frozen.blocks[0].requires_grad_(False)

    assert count_flops(frozen, None, None) is None
    assert count_flops(Uneven(), (1, 8, 8), None) is None
    assert count_flops(nn.Linear(4, 2), None, None) is None


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA H200", "tf32", 494.7),
        ("NVIDIA A100-SXM4-40GB", "bf16", 312.0),
        ("NVIDIA A100 80GB PCIe", "fp32", 19.5),
        ("NVIDIA L4", "bf16", 121.0),
        ("NVIDIA L40S", "bf16", 362.05),
        ("Tesla T4", "fp16", 65.0),
        ("Tesla T4", "bf16", None),
        ("Tesla V100-SXM2-32GB", "tf32", None),
        ("NVIDIA GeForce RTX 4090", "fp32", 82.6),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "fp32", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", None),
        ("cpu", "fp32", None),
    ],
)
def test_peak_is_known_by_the_complete_name_of_a_device(name: str, precision: str, tflops: float | None) -> None:
    assert find_peak(name, precision) == (None if tflops is None else pytest.approx(1e12 * tflops))


def test_utilization_is_the_formula_of_palm() -> None:
    # PaLM 540B on 6144 TPU v4 chips: 118 layers of width 18432, 2048 tokens, 238,300 tokens per second: 45.7 %, 46.2 %.
    weights, layers, width = 540e9, 118, 48 * 256
    used = Utilization(ModelFlops(int(weights), layers * width), 6144 * 275e12).mfu(238_300 / 2048, 238_300)

    assert used == pytest.approx(0.462, abs=0.001)
