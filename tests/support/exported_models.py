"""Properties of every model and of its exported artifacts, at sizes that were not traced."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer.export.formats.onnx import open_session, save_graph
from trainer.export.formats.torchscript import load_trace, save_trace
from trainer.export.model import capture

Axes = Mapping[str, Mapping[int, str]]


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def assert_adapts_to_image_sizes(
    build: Callable[[int, int, tuple[int, int]], nn.Module],
    sizes: Sequence[tuple[int, tuple[int, int], int]],
    width: int,
) -> None:
    """Check a model with two convolutions at sizes (channels, (H, W), inputs of its first linear layer of `width`)."""
    for channels, size, flat in sizes:
        model = build(3, channels, size)
        pixels = images(2, channels, *size)["pixel_values"]

        assert model(pixels).shape == (2, 3)
        assert model.get_parameter("blocks.2.linear.weight").shape == (width, flat)
        channels_last = model(pixels.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(channels_last, model(pixels), rtol=0, atol=1e-6)


def assert_gradients_reach_everything(model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Check that every parameter of the model in training mode has a finite, nonzero gradient."""
    model.train().zero_grad()
    output = model(**inputs)
    generator = torch.Generator().manual_seed(0)
    (output * torch.randn(output.shape, generator=generator)).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def assert_gives_features_without_outputs(
    bare: nn.Module, whole: nn.Module, inputs: Mapping[str, Tensor], width: int
) -> None:
    """Check that a model without outputs returns the features that the head of the whole model reads."""
    assert isinstance(whole.head, nn.Module)
    bare.load_state_dict({name: value for name, value in whole.state_dict().items() if not name.startswith("head.")})
    hidden, output = bare(**inputs), whole(**inputs)
    assert hidden.shape == (len(output), width)
    assert torch.equal(whole.head(hidden), output)


def assert_exports_equal(
    model: nn.Module,
    traced: dict[str, Tensor],
    others: list[dict[str, Tensor]],
    axes: Axes,
    limits: Mapping[str, tuple[int, int]],
    folder: Path,
) -> None:
    """Check that a trace and a program made with `traced` match the model on `others` within 1e-5."""
    model.eval()
    save_trace(model, traced, folder / "model.pt")
    trace = load_trace(folder / "model.pt", tuple(traced))
    program = capture(model, traced, axes, limits).module()
    with torch.no_grad():
        for inputs in others:
            expected = model(**inputs)
            torch.testing.assert_close(trace(inputs), expected, rtol=0, atol=1e-5)
            torch.testing.assert_close(program(**inputs), expected, rtol=0, atol=1e-5)


def assert_onnx_equal(
    model: nn.Module,
    traced: dict[str, Tensor],
    others: list[dict[str, Tensor]],
    axes: Axes,
    limits: Mapping[str, tuple[int, int]],
    folder: Path,
) -> None:
    """Check that an ONNX graph made with `traced` matches the model on `others` within 1e-5."""
    model.eval()
    with torch.no_grad():
        save_graph(capture(model, traced, axes, limits), folder / "model.onnx", axes)
        forward, *_ = open_session(folder / "model.onnx")
        for inputs in others:
            torch.testing.assert_close(forward(inputs), model(**inputs), rtol=0, atol=1e-5)


def images(count: int, channels: int, height: int, width: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"pixel_values": torch.randn(count, channels, height, width, generator=generator)}


def features(count: int, number: int, seed: int = 0) -> dict[str, Tensor]:
    return {"features": torch.randn(count, number, generator=torch.Generator().manual_seed(seed))}


IMAGE_AXES: Axes = {"pixel_values": {0: "batch"}}
FEATURE_AXES: Axes = {"features": {0: "batch"}}
TOKEN_AXES: Axes = {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}
