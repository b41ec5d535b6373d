from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.exported_models import (
    IMAGE_AXES,
    assert_adapts_to_image_sizes,
    assert_exports_equal,
    assert_gives_features_without_outputs,
    assert_gradients_reach_everything,
    assert_onnx_equal,
    images,
    parameter_count,
)
from trainer.errors import ConfigError
from trainer.model.convnet import ConvNet
from trainer.optimizer.parameter_groups import layer_indices

SHAPE: dict[str, Any] = {"channels": (16, 32), "hidden": [128, 64]}


def convnet(
    num_outputs: int | None = 10, channels: int = 1, size: tuple[int, int] = (28, 28), **changes: Any
) -> ConvNet:
    torch.manual_seed(0)
    return ConvNet(num_outputs, channels, size, **(SHAPE | changes))


class DigitNet(nn.Module):
    """The network for 28 x 28 digits, written out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 3, 1, 1), nn.ReLU(), nn.AvgPool2d(2, 2))
        self.conv2 = nn.Sequential(nn.Conv2d(16, 32, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2, 2))
        self.fc = nn.Sequential(nn.Linear(32 * 7 * 7, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU())
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x))
        output: Tensor = self.out(self.fc(x.view(x.size(0), -1)))
        return output


def test_matches_the_written_out_network() -> None:
    model, reference = convnet(), DigitNet()
    reference.load_state_dict(dict(zip(reference.state_dict(), model.state_dict().values(), strict=True)))
    pixels = images(5, 1, 28, 28)["pixel_values"]

    assert parameter_count(model) == 214_538
    torch.testing.assert_close(model(pixels), reference(pixels), rtol=0, atol=1e-6)


def test_initial_weights_match_the_written_out_network() -> None:
    torch.manual_seed(0)
    for ours, theirs in zip(DigitNet().parameters(), convnet().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_adapts_to_the_image_size() -> None:
    assert_adapts_to_image_sizes(convnet, ((1, (4, 4), 32), (3, (32, 32), 2048), (2, (9, 31), 448)), 128)


def test_without_outputs_it_returns_the_last_hidden_layer() -> None:
    bare, whole = convnet(None), convnet()
    assert_gives_features_without_outputs(bare, whole, images(3, 1, 28, 28), 64)


def test_each_convolution_and_linear_layer_is_an_optimizer_layer() -> None:
    layers = layer_indices(nn.ModuleDict({"model": convnet()}))
    names = [f"model.blocks.{number}.{kind}.weight" for number, kind in enumerate(["convolution"] * 2 + ["linear"] * 2)]

    assert [layers[name] for name in [*names, "model.head.weight"]] == [1, 2, 3, 4, 5]


def test_gradients_reach_every_parameter() -> None:
    assert_gradients_reach_everything(convnet(channels=3, size=(12, 12)), images(8, 3, 12, 12))


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        ConvNet(10, 1, (28, 3), channels=(0, 32), hidden=[])

    assert [message.split(":")[0] for message in error.value.messages] == ["channels", "hidden", "image_size"]


INPUTS = [images(count, 3, 13, 10, count) for count in (4, 1, 9)]


def test_exported_outputs_match(tmp_path: Path) -> None:
    assert_exports_equal(convnet(7, 3, (13, 10)), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
def test_onnx_outputs_match(tmp_path: Path) -> None:
    assert_onnx_equal(convnet(7, 3, (13, 10)), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)
