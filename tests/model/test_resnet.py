from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.exported_models import (
    IMAGE_AXES,
    assert_exports_equal,
    assert_gives_features_without_outputs,
    assert_gradients_reach_everything,
    assert_onnx_equal,
    images,
    parameter_count,
)
from trainer.errors import ConfigError
from trainer.model.resnet import ResNet
from trainer.optimizer.parameter_groups import layer_indices

SHAPE: dict[str, Any] = {"depth": 8, "width": 4, "shortcut": "identity"}


def resnet(num_outputs: int | None = 10, channels: int = 3, size: tuple[int, int] = (16, 16), **changes: Any) -> ResNet:
    torch.manual_seed(0)
    return ResNet(num_outputs, channels, size, **(SHAPE | changes))


def reference(model: ResNet, images: Tensor) -> Tensor:
    """The output computed from the weights, block by block, with batch normalization as in training."""
    weights = model.state_dict()

    def normed(values: Tensor, name: str) -> Tensor:
        mean, variance = values.mean((0, 2, 3), keepdim=True), values.var((0, 2, 3), keepdim=True, correction=0)
        scale, shift = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return (values - mean) / (variance + 1e-5).sqrt() * scale[:, None, None] + shift[:, None, None]

    values = F.relu(normed(F.conv2d(images, weights["stem.weight"], padding=1), "norm"))
    for name in (f"blocks.{number}" for number in range(len(model.blocks))):
        first = weights[f"{name}.convolution1.weight"]
        stride = 1 if first.shape[0] == first.shape[1] else 2
        added = F.relu(normed(F.conv2d(values, first, stride=stride, padding=1), f"{name}.norm1"))
        added = normed(F.conv2d(added, weights[f"{name}.convolution2.weight"], padding=1), f"{name}.norm2")
        if f"{name}.projection.0.weight" in weights:
            projection = weights[f"{name}.projection.0.weight"]
            values = normed(F.conv2d(values, projection, stride=stride), f"{name}.projection.1")
        elif stride == 2:
            kept = values[:, :, ::2, ::2]
            values = torch.cat([kept, torch.zeros_like(kept)], dim=1)
        values = F.relu(values + added)
    return values.mean((2, 3)) @ weights["head.weight"].T + weights["head.bias"]


def test_forward_matches_the_reference() -> None:
    for shortcut in ["identity", "projection"]:
        for depth, size in ((8, (16, 16)), (14, (7, 12))):
            model = resnet(depth=depth, size=size, shortcut=shortcut).double()
            for name, value in model.named_parameters():
                if "norm" in name or "projection.1" in name:
                    nn.init.uniform_(value, 0.5, 1.5)
            pixels = images(6, 3, *size)["pixel_values"].double()

            torch.testing.assert_close(model(pixels), reference(model, pixels), rtol=0, atol=1e-10)


def test_parameter_counts_match_the_paper() -> None:
    """Table 6 gives 0.27M, 0.46M, 0.66M and 0.85M."""
    for depth, count in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)):
        with torch.device("meta"):
            identity = ResNet(10, 3, (32, 32), depth=depth, width=16, shortcut="identity")
            projection = ResNet(10, 3, (32, 32), depth=depth, width=16, shortcut="projection")

        assert parameter_count(identity) == count
        # Two 1 x 1 convolutions and their norms.
        assert parameter_count(projection) == count + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
        layers = [module for module in identity.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        assert len(layers) == depth


def test_adapts_to_the_image_size() -> None:
    for channels, size, shortcut in ((1, (5, 5), "identity"), (2, (9, 31), "projection"), (3, (32, 32), "identity")):
        model = resnet(7, channels, size, shortcut=shortcut)
        pixels = images(1, channels, *size)["pixel_values"]

        assert model(pixels).shape == (1, 7)
        model.eval()
        channels_last = model(pixels.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(channels_last, model(pixels), rtol=0, atol=1e-5)


def test_without_outputs_it_returns_the_mean_of_the_last_stage() -> None:
    bare, whole = resnet(None).eval(), resnet().eval()
    assert_gives_features_without_outputs(bare, whole, images(3, 3, 16, 16), 16)


def test_each_block_is_an_optimizer_layer() -> None:
    layers = layer_indices(nn.ModuleDict({"model": resnet(depth=20)}))

    assert layers["model.stem.weight"] == layers["model.norm.weight"] == 0
    assert [layers[f"model.blocks.{number}.convolution1.weight"] for number in range(9)] == list(range(1, 10))
    assert layers["model.head.weight"] == 10


def test_initialization_is_he_normal() -> None:
    """He et al. 2015: var(w) = 2 / fan_in."""
    weight = resnet(width=64).get_parameter("blocks.2.convolution2.weight")

    assert weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.01)


def test_gradients_reach_every_parameter() -> None:
    for shortcut in ("identity", "projection"):
        assert_gradients_reach_everything(resnet(shortcut=shortcut), images(8, 3, 16, 16))


def test_invalid_values_are_reported_together() -> None:
    for depth in (2, 7, 18, 21, -4):
        with pytest.raises(ConfigError, match=rf"^depth: .*got {depth}"):
            resnet(depth=depth)
    with pytest.raises(ConfigError) as error:
        resnet(depth=9, width=0, size=(4, 32))

    assert {message.split(":")[0] for message in error.value.messages} == {"depth", "width", "image_size"}


INPUTS = [images(count, 3, 13, 16, count) for count in (4, 1, 9)]


@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_exported_outputs_match(shortcut: Any, tmp_path: Path) -> None:
    model = resnet(size=(13, 16), shortcut=shortcut)
    assert_exports_equal(model, INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("shortcut", ["identity", "projection"])
def test_onnx_outputs_match(shortcut: Any, tmp_path: Path) -> None:
    assert_onnx_equal(resnet(size=(13, 16), shortcut=shortcut), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)
