"""`model.channels_last`: another layout in memory, the same model."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.support.jobs import checkpoint_files, events, train, without_clock, working_in, write_data
from tests.support.sources import write_sources
from trainer.builders.model import to_device
from trainer.cli import main
from trainer.config.jobs import TrainJob
from trainer.ema import Ema
from trainer.errors import ConfigError
from trainer.model.convnet import ConvNet
from trainer.model.lenet import LeNet
from trainer.model.resnet import ResNet
from trainer.model.vit import ViT

CPU = torch.device("cpu")
JOB = TrainJob(model={"channels_last": True})
MODELS: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: ConvNet(5, 3, (12, 12), channels=(4, 6), hidden=[8]),
    "lenet": lambda: LeNet(5, 3, (12, 12), activation="tanh"),
    "resnet": lambda: ResNet(5, 3, (12, 12), depth=8, width=4, shortcut="identity"),
    "resnet, projection": lambda: ResNet(5, 3, (12, 12), depth=8, width=4, shortcut="projection"),
    "vit": lambda: ViT(5, 3, (12, 12), patch=4, dim=8, depth=1, heads=2, hidden=8, dropout=0.0, pooling="mean"),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return MODELS[name]().double()


def is_channels_last(weight: torch.Tensor) -> bool:
    return weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_updates_are_equal_to_rounding(name: str) -> None:
    plain, other = made(name), to_device(JOB, made(name), CPU)
    x = torch.randn(6, 3, 12, 12, dtype=torch.float64)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.01) for model in (plain, other)]
    for _ in range(3):
        for model, optimizer in zip((plain, other), optimizers, strict=True):
            optimizer.zero_grad()
            model(pixel_values=x).square().sum().backward()
        for ours, theirs in zip(other.parameters(), plain.parameters(), strict=True):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(other(pixel_values=x), plain(pixel_values=x), rtol=0, atol=1e-9)
    assert [key for key, _ in other.named_parameters()] == [key for key, _ in plain.named_parameters()]


def test_the_layout_is_that_of_the_weights_their_average_and_what_passes_through() -> None:
    model = to_device(JOB, made("resnet"), CPU)
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    seen: list[bool] = []
    for module in convolutions:
        module.register_forward_hook(lambda module, inputs, output: seen.append(is_channels_last(output)))
    model(pixel_values=torch.randn(2, 3, 12, 12, dtype=torch.float64))

    assert seen == [True] * len(convolutions)
    assert all(is_channels_last(module.weight) for module in convolutions)
    average = Ema(model, 0.9).module
    assert all(is_channels_last(value) for value in average.parameters() if value.ndim == 4)
    assert not is_channels_last(to_device(TrainJob(model={}), made("resnet"), CPU).get_parameter("stem.weight"))


def test_a_model_without_convolutions_has_no_channels() -> None:
    with pytest.raises(ConfigError, match=r"model\.channels_last: this model has no 2-d convolution, got True"):
        to_device(JOB, nn.Linear(2, 2), CPU)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("channels")
    with working_in(folder):
        write_sources(folder)
        lengths = ["train.duration=6", "train.eval_every=3", "checkpoint.every=1", "checkpoint.keep=6"]
        model = ["model=convnet", "model.channels=[4,6]", "model.hidden=[8]", "train.batch_size=8", "train.log_every=1"]
        quiet = ["logger.console=none", "logger.tensorboard=false", "device=cpu", "export.formats=[torchscript]"]
        source = ["data=idx", f"data.folder={folder}/idx", f"data.cache_dir={folder}/cache"]
        yield ["train", "task=image_classification", *source, *model, *lengths, *quiet]


def test_a_run_learns_the_same_and_is_resumed_in_the_same_bytes(job: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main([*job, f"run.dir={tmp_path / 'plain'}"]) == 0
    assert main([*job, "model.channels_last=true", f"run.dir={run}"]) == 0
    found, expected = (events(folder, "train") for folder in (run, tmp_path / "plain"))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours["loss"], ours["grad_norm"]) == pytest.approx((theirs["loss"], theirs["grad_norm"]), rel=1e-5)
    ours, theirs = (load_file(folder / "model" / "model.safetensors") for folder in (run, tmp_path / "plain"))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)

    shutil.copytree(run, tmp_path / "resumed")
    for folder in (tmp_path / "resumed" / "checkpoints").iterdir():
        if int(folder.name.removeprefix("step-")) > 2:
            shutil.rmtree(folder)
    assert main(["train", f"resume={tmp_path / 'resumed'}"]) == 0
    assert checkpoint_files(tmp_path / "resumed", 6) == checkpoint_files(run, 6)
    after = [event for event in events(run) if event["step"] > 2]
    assert without_clock(events(tmp_path / "resumed")[-len(after) :]) == without_clock(after)


def test_a_text_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        assert train(tmp_path / "run", *write_data(tmp_path), "model.channels_last=true") == 2
    assert "model.channels_last: this model has no 2-d convolution" in capsys.readouterr().err
