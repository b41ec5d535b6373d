from pathlib import Path
from typing import Any

import pytest
import torch
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
from tests.support.torch_encoder import torchs_encoder
from trainer.errors import ConfigError
from trainer.model.vit import ViT
from trainer.optimizer.parameter_groups import layer_indices, no_decay_names

SHAPE: dict[str, Any] = {
    "patch": 4,
    "dim": 32,
    "depth": 2,
    "heads": 4,
    "hidden": 48,
    "dropout": 0.0,
    "pooling": "mean",
}


def vit(num_outputs: int | None = 10, channels: int = 3, size: tuple[int, int] = (12, 16), **changes: Any) -> ViT:
    torch.manual_seed(0)
    return ViT(num_outputs, channels, size, **(SHAPE | changes))


def patches(pixels: Tensor, side: int) -> Tensor:
    """Patches of an image (channels, H, W) in row-major order, flattened: (T, channels * side * side)."""
    _, height, width = pixels.shape
    corners = [(top, left) for top in range(0, height, side) for left in range(0, width, side)]
    return torch.stack([pixels[:, top : top + side, left : left + side].flatten() for top, left in corners])


def test_matches_torchs_pre_norm_encoder_on_patches() -> None:
    for pooling in ["cls", "mean"]:
        model = vit(pooling=pooling).double()
        if pooling == "cls":
            nn.init.normal_(model.get_parameter("class_token"))
        reference = torchs_encoder(model, dim=32, heads=4, hidden=48, depth=2)
        pixels = images(3, 3, 12, 16)["pixel_values"].double()
        weights = model.state_dict()
        squares = torch.stack([patches(image, 4) for image in pixels])
        tokens = squares @ weights["patch_embedding.weight"].flatten(1).T + weights["patch_embedding.bias"]
        if pooling == "cls":
            tokens = torch.cat([weights["class_token"].expand(3, 1, 32), tokens], dim=1)
        hidden = reference(tokens + weights["position_embedding.weight"])
        pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(1)

        torch.testing.assert_close(model(pixels), model.head(pooled), rtol=0, atol=1e-10)


def test_parameter_count_matches_the_papers_base_model() -> None:
    """ViT-B/16 at 224 x 224 with 1,000 classes; table 1 gives 86M."""
    base: dict[str, Any] = {"patch": 16, "dim": 768, "depth": 12, "heads": 12, "hidden": 3072, "pooling": "cls"}
    with torch.device("meta"):
        model = ViT(1000, 3, (224, 224), **(SHAPE | base))

    assert parameter_count(model) == 86_567_656


def test_adapts_to_the_image_size() -> None:
    for pooling in ["cls", "mean"]:
        for channels, size, patch in ((1, (8, 8), 2), (2, (9, 30), 3), (1, (28, 28), 28)):
            model = vit(7, channels, size, patch=patch, pooling=pooling)
            pixels = images(2, channels, *size)["pixel_values"]

            assert model(pixels).shape == (2, 7)
            assert len(model.position_embedding.weight) == size[0] * size[1] // patch**2 + (pooling == "cls")
            channels_last = model(pixels.contiguous(memory_format=torch.channels_last))
            torch.testing.assert_close(channels_last, model(pixels), rtol=0, atol=1e-5)


def test_without_outputs_it_returns_the_pooled_vector() -> None:
    for pooling in ["cls", "mean"]:
        bare, whole = vit(None, pooling=pooling), vit(pooling=pooling)
        assert_gives_features_without_outputs(bare, whole, images(3, 3, 12, 16), 32)


def test_each_block_is_an_optimizer_layer() -> None:
    module = nn.ModuleDict({"model": vit(pooling="cls", depth=3)})
    layers = layer_indices(module)
    below = ("model.class_token", "model.patch_embedding.weight", "model.position_embedding.weight")

    assert [layers[name] for name in below] == [0, 0, 0]
    assert [layers[f"model.blocks.{number}.query_key_value.weight"] for number in range(3)] == [1, 2, 3]
    assert layers["model.norm.weight"] == layers["model.head.weight"] == 4
    assert "model.position_embedding.weight" in no_decay_names(module)


def test_each_dropout_is_only_active_in_training() -> None:
    cases = (
        ("dropout", []),
        ("blocks.1.dropout", ["blocks.1.attention_output"]),
        ("blocks.1.dropout", ["blocks.1.feed_forward.2"]),
    )
    for active, silenced in cases:
        model, pixels = vit(dropout=0.5), images(3, 3, 12, 16)["pixel_values"]
        for name, module in model.named_modules():
            if isinstance(module, nn.Dropout) and name != active:
                module.p = 0.0
            if name in silenced:
                for value in module.parameters():
                    nn.init.zeros_(value)

        assert not torch.equal(model(pixels), model(pixels))
        model.eval()
        assert torch.equal(model(pixels), model(pixels))


def test_gradients_reach_every_parameter() -> None:
    for pooling in ("cls", "mean"):
        assert_gradients_reach_everything(vit(pooling=pooling), images(8, 3, 12, 16))


def test_a_patch_that_does_not_divide_the_image_size_is_rejected() -> None:
    for size in ((12, 18), (18, 12)):
        with pytest.raises(ConfigError, match=rf"^patch: .*{size[0]} x {size[1]}.*got 4.*1, 2, 3, 6"):
            vit(size=size)


def test_invalid_values_are_reported_together() -> None:
    with pytest.raises(ConfigError) as error:
        vit(patch=0, dim=30, depth=0, dropout=1.0)

    assert {message.split(":")[0] for message in error.value.messages} == {"patch", "depth", "heads", "dropout"}


INPUTS = [images(count, 3, 12, 16, count) for count in (4, 1, 9)]


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_exported_outputs_match(pooling: Any, tmp_path: Path) -> None:
    assert_exports_equal(vit(pooling=pooling), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_onnx_outputs_match(pooling: Any, tmp_path: Path) -> None:
    assert_onnx_equal(vit(pooling=pooling), INPUTS[0], INPUTS[1:], IMAGE_AXES, {}, tmp_path)
