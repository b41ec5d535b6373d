from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.exported_models import (
    FEATURE_AXES,
    IMAGE_AXES,
    assert_exports_equal,
    assert_gives_features_without_outputs,
    assert_gradients_reach_everything,
    assert_onnx_equal,
    features,
    images,
    parameter_count,
)
from trainer.errors import ConfigError
from trainer.model.mlp import BatchNorm, Mlp
from trainer.optimizer.parameter_groups import layer_indices

SHAPE: dict[str, Any] = {"hidden": [16, 12], "activation": "relu", "norm": "none", "dropout": 0.0}


def mlp(num_outputs: int | None = 5, **changes: Any) -> Mlp:
    torch.manual_seed(0)
    facts = {} if "image_size" in changes else {"num_features": 7}
    return Mlp(num_outputs, **(facts | SHAPE | changes))


def by_hand(model: Mlp, values: Tensor, activation: Any, norm: str) -> Tensor:
    """The forward of a model in evaluation with two hidden layers, from its weights."""
    weights = model.state_dict()
    for block in ("blocks.0", "blocks.1"):
        values = values @ weights[f"{block}.linear.weight"].T + weights[f"{block}.linear.bias"]
        if norm == "layer":
            centred = values - values.mean(1, keepdim=True)
            values = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
        elif norm == "batch":
            values = values - weights[f"{block}.norm.running_mean"]
            values = values / (weights[f"{block}.norm.running_var"] + 1e-5).sqrt()
        if norm != "none":
            values = values * weights[f"{block}.norm.weight"] + weights[f"{block}.norm.bias"]
        values = activation(values)
    return values @ weights["head.weight"].T + weights["head.bias"]


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize(
    ("activation", "function"), [("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu), ("tanh", torch.tanh)]
)
def test_forward_by_hand(norm: Any, activation: Any, function: Any) -> None:
    model = mlp(norm=norm, activation=activation).double()
    # Away from what norms begin with, 0 and 1.
    model(3 * features(32, 7)["features"].double() + 1)
    for name, value in model.named_parameters():
        if ".norm." in name:
            nn.init.uniform_(value, 0.5, 1.5)
    model.eval()
    values = features(6, 7, seed=1)["features"].double()

    torch.testing.assert_close(model(values), by_hand(model, values, function, norm), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (5, 9)), (4, (1, 1))])
def test_pixels_are_read_channel_by_channel(channels: int, size: tuple[int, int]) -> None:
    number = channels * size[0] * size[1]
    picture = mlp(image_channels=channels, image_size=size)
    table = mlp(num_features=number)
    table.load_state_dict(picture.state_dict())
    pixels = images(3, channels, *size)["pixel_values"]

    assert picture(pixel_values=pixels).shape == (3, 5)
    assert torch.equal(picture(pixel_values=pixels), table(pixels.reshape(3, number)))
    channels_last = pixels.contiguous(memory_format=torch.channels_last)
    assert torch.equal(picture(pixel_values=channels_last), picture(pixel_values=pixels))


def test_without_outputs_it_gives_the_last_hidden_layer() -> None:
    bare, whole = mlp(None), mlp()
    assert_gives_features_without_outputs(bare, whole, features(6, 7), 12)


def test_each_hidden_layer_is_a_layer_of_its_own() -> None:
    layers = layer_indices(nn.ModuleDict({"model": mlp(hidden=[16, 12, 8], norm="layer")}))

    assert layers["model.blocks.0.linear.weight"] == layers["model.blocks.0.norm.bias"] == 1
    assert layers["model.blocks.2.linear.weight"] == 3
    assert layers["model.head.weight"] == 4
    assert parameter_count(mlp()) == 7 * 16 + 16 + 16 * 12 + 12 + 12 * 5 + 5


def test_dropout_is_on_in_training_alone() -> None:
    model, values = mlp(dropout=0.5), features(6, 7)["features"]

    assert not torch.equal(model(values), model(values))
    model.eval()
    assert torch.equal(model(values), model(values))


class TestBatchNorm:
    def test_of_several_samples_it_is_torchs(self) -> None:
        ours, theirs = BatchNorm(7), nn.BatchNorm1d(7)
        for seed, count in enumerate([2, 5, 33]):
            values = features(count, 7, seed)["features"]
            assert torch.equal(ours(values), theirs(values))
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)

    def test_one_sample_is_trained_with_the_running_statistics(self) -> None:
        norm, value = BatchNorm(7), features(1, 7)["features"]
        norm(features(9, 7, seed=1)["features"])
        before = {name: state.clone() for name, state in norm.state_dict().items()}
        trained = norm(value)

        assert all(torch.equal(state, before[name]) for name, state in norm.state_dict().items())
        assert torch.equal(trained, norm.eval()(value))


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
@pytest.mark.parametrize("count", [1, 16])
def test_gradients_reach_every_parameter(norm: Any, count: int) -> None:
    # An activation without a flat side: of one sample a ReLU may stop a whole unit.
    assert_gradients_reach_everything(mlp(norm=norm, activation="tanh"), features(count, 7))


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        mlp(hidden=[16, 0], dropout=1.0)

    assert [message.split(":")[0] for message in caught.value.messages] == ["hidden", "dropout"]


CASES = [
    pytest.param({"norm": "batch"}, [features(n, 7, n) for n in (4, 1, 9)], FEATURE_AXES, id="features"),
    pytest.param(
        {"norm": "layer", "image_channels": 3, "image_size": (4, 6)},
        [images(n, 3, 4, 6, n) for n in (4, 1, 9)],
        IMAGE_AXES,
        id="images",
    ),
]


@pytest.mark.parametrize(("changes", "inputs", "axes"), CASES)
def test_artifacts_are_equal(changes: Any, inputs: Any, axes: Any, tmp_path: Path) -> None:
    assert_exports_equal(mlp(**changes), inputs[0], inputs[1:], axes, {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "inputs", "axes"), CASES)
def test_onnx_is_equal(changes: Any, inputs: Any, axes: Any, tmp_path: Path) -> None:
    assert_onnx_equal(mlp(**changes), inputs[0], inputs[1:], axes, {}, tmp_path)
