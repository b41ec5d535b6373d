"""Checkpointed blocks give the gradients of ordinary ones and store less."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.exported_models import images
from tests.support.jobs import assert_resumes, checkpoint_files, events, train, without_clock, write_data
from tests.support.pretrained_folders import Folders, layouts, model_of
from tests.support.typical import typical
from trainer.builders.memory import LiveTensors
from trainer.errors import ConfigError
from trainer.model.decoder import Decoder
from trainer.model.feature_extractor import FeatureExtractor
from trainer.model.gradient_checkpointing import checkpoint_blocks
from trainer.model.resnet import ResNet
from trainer.model.text_encoder import TextEncoder
from trainer.model.vit import ViT

SIZES: dict[str, Any] = {"dim": 16, "depth": 3, "heads": 2, "hidden": 32, "dropout": 0.3}
TOKENS = {"vocab_size": 50, "num_outputs": 5, "max_length": 64}
IMAGES: dict[str, Any] = {"num_outputs": 5, "image_channels": 3, "image_size": (8, 8)}


def featured(folders: Folders) -> nn.Module:
    model = TextEncoder(**TOKENS, **SIZES, pooling="mean")
    return FeatureExtractor(model, ["blocks.0", "blocks.2.feed_forward"], 5, layouts(3)[0])


MODELS: dict[str, Callable[[Folders], nn.Module]] = {
    "text_encoder": lambda folders: TextEncoder(**TOKENS, **SIZES, pooling="mean"),
    "decoder": lambda folders: Decoder(**TOKENS, **SIZES, pooling="mean", tie_embeddings=False),
    "vit": lambda folders: ViT(**IMAGES, **SIZES, patch=4, pooling="cls"),
    "resnet": lambda folders: ResNet(**IMAGES, depth=14, width=4, shortcut="projection"),
    "features": featured,
    "bert": lambda folders: model_of(folders("bert")),
    "bert, eager": lambda folders: model_of(folders("bert"), attention="eager"),
    "gpt2": lambda folders: model_of(folders("gpt2")),
    "modernbert": lambda folders: model_of(folders("modernbert")),
    "distilbert": lambda folders: model_of(folders("distilbert")),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def inputs_of(model: nn.Module) -> dict[str, Tensor]:
    return images(4, 3, 8, 8) if isinstance(model, ViT | ResNet) else layouts(4)[1]


def update(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[list[Tensor], int]:
    """Return all gradients and buffers after one pass with dropout, and the bytes kept for the backward pass."""
    torch.manual_seed(1)
    with LiveTensors(lambda: [*model.parameters(), *model.buffers()]) as live:
        output = model.train()(**inputs)
    kept = live.count()
    output.square().sum().backward()
    drawn = torch.rand(3)  # the generator must be where it would be without checkpointing
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return [*gradients, *model.buffers(), drawn], kept


@pytest.mark.parametrize("name", typical(MODELS, "text_encoder", "resnet", "bert"))
def test_gradients_and_buffers_have_the_same_bits(name: str, folders: Folders) -> None:
    results, stored = {}, {}
    for setting in ("none", "blocks", "selective", True, False):
        torch.manual_seed(0)
        model = MODELS[name](folders)
        names = [(name, type(module).__name__) for name, module in model.named_modules()]
        checkpoint_blocks(model, setting)  # type: ignore[arg-type]
        assert [(name, type(module).__name__) for name, module in model.named_modules()] == names
        results[setting], stored[setting] = update(model, inputs_of(model))
        assert len(results[setting]) == len(results["none"])
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[setting], results["none"], strict=True))
    assert (stored[True], stored[False]) == (stored["blocks"], stored["none"])
    assert stored["blocks"] < stored["selective"] < 0.8 * stored["none"]
    assert stored["blocks"] < 0.5 * stored["none"]


def test_a_model_without_blocks_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^gradient_checkpointing: this model has no list of blocks, got 'blocks'\. Set"
    ):
        checkpoint_blocks(nn.Linear(2, 2), "blocks")
    checkpoint_blocks(nn.Linear(2, 2), "none")


def test_a_run_has_the_same_bits_with_every_setting(tmp_path: Path) -> None:
    job = [*write_data(tmp_path), "train.duration=6", "checkpoint.every=3", "model.depth=2", "model.dropout=0.2"]
    runs = {}
    for setting in ("none", "selective", "true"):
        runs[setting] = tmp_path / setting
        assert train(runs[setting], *job, f"model.gradient_checkpointing={setting}") == 0
    for run in runs.values():
        assert checkpoint_files(run, 6) == checkpoint_files(runs["none"], 6)
        assert without_clock(events(run)) == without_clock(events(runs["none"]))
    assert_resumes(runs["selective"], 3)
    assert_resumes(runs["none"], 3, "model.gradient_checkpointing=blocks")
