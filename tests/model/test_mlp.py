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


def reference(model: Mlp, values: Tensor, activation: Any, norm: str) -> Tensor:
    """The output of a model with two hidden layers in evaluation mode, computed from its weights."""
    weights = model.state_dict()
    for block in ("blocks.0", "blocks.1"):
        values = values @ weights[f"{block}.linear.weight"].T + weights[f"{block}.linear.bias"]
        if norm == "layer":
            centered = values - values.mean(1, keepdim=True)
            values = centered / (centered.square().mean(1, keepdim=True) + 1e-5).sqrt()
        elif norm == "batch":
            values = values - weights[f"{block}.norm.running_mean"]
            values = values / (weights[f"{block}.norm.running_var"] + 1e-5).sqrt()
        if norm != "none":
            values = values * weights[f"{block}.norm.weight"] + weights[f"{block}.norm.bias"]
        values = activation(values)
    return values @ weights["head.weight"].T + weights["head.bias"]


def test_forward_matches_the_reference() -> None:
    for norm in ["none", "batch", "layer"]:
        for activation, function in (("relu", F.relu), ("gelu", F.gelu), ("silu", F.silu), ("tanh", torch.tanh)):
            model = mlp(norm=norm, activation=activation).double()
            # Move the norms away from their initial values, 0 and 1.
            model(3 * features(32, 7)["features"].double() + 1)
            for name, value in model.named_parameters():
                if ".norm." in name:
                    nn.init.uniform_(value, 0.5, 1.5)
            model.eval()
            values = features(6, 7, seed=1)["features"].double()

            torch.testing.assert_close(model(values), reference(model, values, function, norm), rtol=0, atol=1e-12)


def test_images_are_flattened_channel_by_channel() -> None:
    for channels, size in ((1, (8, 8)), (3, (5, 9)), (4, (1, 1))):
        number = channels * size[0] * size[1]
        image_model = mlp(image_channels=channels, image_size=size)
        table_model = mlp(num_features=number)
        table_model.load_state_dict(image_model.state_dict())
        pixels = images(3, channels, *size)["pixel_values"]

        assert image_model(pixel_values=pixels).shape == (3, 5)
        assert torch.equal(image_model(pixel_values=pixels), table_model(pixels.reshape(3, number)))
        channels_last = pixels.contiguous(memory_format=torch.channels_last)
        assert torch.equal(image_model(pixel_values=channels_last), image_model(pixel_values=pixels))


def test_without_outputs_it_returns_the_last_hidden_layer() -> None:
    bare, whole = mlp(None), mlp()
    assert_gives_features_without_outputs(bare, whole, features(6, 7), 12)


def test_each_hidden_layer_is_an_optimizer_layer() -> None:
    layers = layer_indices(nn.ModuleDict({"model": mlp(hidden=[16, 12, 8], norm="layer")}))

    assert layers["model.blocks.0.linear.weight"] == layers["model.blocks.0.norm.bias"] == 1
    assert layers["model.blocks.2.linear.weight"] == 3
    assert layers["model.head.weight"] == 4
    assert parameter_count(mlp()) == 7 * 16 + 16 + 16 * 12 + 12 + 12 * 5 + 5


def test_dropout_is_only_active_in_training() -> None:
    model, values = mlp(dropout=0.5), features(6, 7)["features"]

    assert not torch.equal(model(values), model(values))
    model.eval()
    assert torch.equal(model(values), model(values))


class TestBatchNorm:
    def test_matches_torch_for_several_samples(self) -> None:
        ours, theirs = BatchNorm(7), nn.BatchNorm1d(7)
        for seed, count in enumerate([2, 5, 33]):
            values = features(count, 7, seed)["features"]
            assert torch.equal(ours(values), theirs(values))
        for name, value in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], value)

    def test_one_sample_is_normalized_by_the_running_statistics(self) -> None:
        norm, value = BatchNorm(7), features(1, 7)["features"]
        norm(features(9, 7, seed=1)["features"])
        before = {name: state.clone() for name, state in norm.state_dict().items()}
        trained = norm(value)

        assert all(torch.equal(state, before[name]) for name, state in norm.state_dict().items())
        assert torch.equal(trained, norm.eval()(value))


def test_gradients_reach_every_parameter() -> None:
    # With tanh, which has no flat part: a single sample may turn off whole units of a ReLU.
    for norm in ("none", "batch", "layer"):
        for count in (1, 16):
            assert_gradients_reach_everything(mlp(norm=norm, activation="tanh"), features(count, 7))


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        mlp(hidden=[16, 0], dropout=1.0)

    assert [message.split(":")[0] for message in error.value.messages] == ["hidden", "dropout"]


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
def test_exported_outputs_match(changes: Any, inputs: Any, axes: Any, tmp_path: Path) -> None:
    assert_exports_equal(mlp(**changes), inputs[0], inputs[1:], axes, {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("changes", "inputs", "axes"), CASES)
def test_onnx_outputs_match(changes: Any, inputs: Any, axes: Any, tmp_path: Path) -> None:
    assert_onnx_equal(mlp(**changes), inputs[0], inputs[1:], axes, {}, tmp_path)
