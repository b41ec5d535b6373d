from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
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
from trainer.model.lenet import LeNet
from trainer.optimizer.parameter_groups import layer_indices


def lenet(
    num_outputs: int | None = 10, channels: int = 1, size: tuple[int, int] = (28, 28), activation: Any = "tanh"
) -> LeNet:
    torch.manual_seed(0)
    return LeNet(num_outputs, channels, size, activation=activation)


def reference(model: LeNet, digits: Tensor, activation: Any) -> Tensor:
    """The paper's layers on 32 x 32 pixels, with C5 as a convolution."""
    weights = list(model.parameters())
    c1 = activation(F.conv2d(F.pad(digits, (2, 2, 2, 2)), weights[0], weights[1]))
    c3 = activation(F.conv2d(F.avg_pool2d(c1, 2), weights[2], weights[3]))
    c5 = activation(F.conv2d(F.avg_pool2d(c3, 2), weights[4].reshape(120, 16, 5, 5), weights[5]))
    f6 = activation(F.linear(c5.squeeze((2, 3)), weights[6], weights[7]))
    return F.linear(f6, weights[8], weights[9])


def test_matches_the_papers_network() -> None:
    for activation, function in [("tanh", torch.tanh), ("relu", F.relu)]:
        model = lenet(activation=activation).double()
        digits = images(5, 1, 28, 28)["pixel_values"].double()

        torch.testing.assert_close(model(digits), reference(model, digits, function), rtol=0, atol=1e-12)


def test_layers_have_the_papers_sizes() -> None:
    model = lenet()
    count = {name: parameter_count(block) for name, block in model.blocks.named_children()}

    # C1, C5 and F6 as in the paper, where C3 reads only some channels and has 1,516 parameters.
    assert count == {"0": 156, "1": 2_416, "2": 48_120, "3": 10_164}
    assert parameter_count(model) == 61_706


def test_adapts_to_the_image_size() -> None:
    assert_adapts_to_image_sizes(lenet, ((1, (12, 12), 16), (3, (32, 32), 576), (2, (13, 31), 80)), 120)


def test_without_outputs_it_returns_f6() -> None:
    bare, whole = lenet(None), lenet()
    assert_gives_features_without_outputs(bare, whole, images(3, 1, 28, 28), 84)


def test_each_convolution_and_linear_layer_is_an_optimizer_layer() -> None:
    layers = layer_indices(nn.ModuleDict({"model": lenet()}))

    assert sorted(set(layers.values())) == [1, 2, 3, 4, 5]
    assert layers["model.blocks.0.convolution.bias"] == 1
    assert layers["model.head.bias"] == 5


def test_gradients_reach_every_parameter() -> None:
    assert_gradients_reach_everything(lenet(channels=3, size=(14, 12)), images(8, 3, 14, 12))


def test_small_images_are_rejected() -> None:
    for size in ((11, 28), (28, 11)):
        with pytest.raises(ConfigError, match=r"^image_size: .*12 x 12 pixels"):
            lenet(size=size)


INPUTS = [images(count, 3, 13, 16, count) for count in (4, 1, 9)]


def test_exported_outputs_match(tmp_path: Path) -> None:
    assert_exports_equal(lenet(7, 3, (13, 16)), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
def test_onnx_outputs_match(tmp_path: Path) -> None:
    assert_onnx_equal(lenet(7, 3, (13, 16)), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)
