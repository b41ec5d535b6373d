"""The ONNX graph with the weights of its layers, and their products, in 8 bits.

Activations are quantized by the values of each call (dynamic), or by ranges measured on training samples (static).
Weights have 7 bits of the 8: processors without VNNI add pairs of products in 16 bits, and what is proved on one
machine must hold on another.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from math import ceil, inf, isfinite, sqrt
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
from torch import Tensor

from trainer.errors import ProofError, format_error
from trainer.export.float_graph import float_graph, is_split, load_graph
from trainer.export.isolation import silence
from trainer.export.onnx import open_session
from trainer.export.products import Layer, layers_of, with_products
from trainer.export.subject import Subject

_MOST_GROUPS = 24
"""The error of each layer is measured alone; where there are more layers than these, those of neighbours together."""

_MEASURED = 32
"""Samples that errors are measured on, about."""


_MOST_FLOATS = 1 / 3
"""The share of the weights above which the graph in float16 would be no larger."""


def write_int8(path: Path, subject: Subject, *, per_channel: bool, spared: int = 0) -> dict[str, Any]:
    """Writes the subject's graph with its layers in int8.

    Args:
        path: The new file.
        subject: `int8` says how activations are quantized.
        per_channel: Whether each output of a layer has a scale of its own, or all have one.
        spared: How many of the most sensitive layers stay in float32 (of many layers: groups of neighbours).

    Returns:
        How activations are quantized, and which layers are in int8 and in float32, for the manifest.

    Raises:
        ProofError: There is no layer to quantize, or too few would be.
    """
    quantization = subject.once(Quantization)
    left = quantization.most_sensitive(spared) if spared else []
    chosen = [layer for layer in quantization.layers if layer not in left]
    quantization.write(path, chosen, per_channel=per_channel)
    return {
        "activations": quantization.method,
        "int8_layers": [layer.name for layer in chosen],
        "float32_layers": [layer.name for layer in quantization.every if layer not in chosen],
    }


class Quantization:
    """How a subject is quantized: what all variants share.

    Attributes:
        every: The layers of its graph.
        method: How activations are quantized: as the subject says, or static if most weights are convolutions'.
        layers: Those that can be quantized: dynamic convolutions take five times those in float32, and stay.

    Raises:
        ProofError: There are none.
    """

    def __init__(self, subject: Subject) -> None:
        source = float_graph(subject)
        model = load_graph(source)
        with_products(model.graph)
        self._path = source.with_name("products.onnx")
        self._split = is_split(source)
        onnx.save(model, self._path, save_as_external_data=self._split, location=f"{self._path.name}.data")
        self._calibration = subject.calibration
        self.every = layers_of(model.graph)
        self.method = subject.int8 or _fitting(self.every)
        self.layers = [layer for layer in self.every if self.method == "static" or layer.kind != "Conv"]
        if not self.layers:
            problem = "there is no layer that dynamic int8 quantizes" if self.every else "the graph has no layers"
            raise ProofError(format_error("export.int8", problem, "Take export.int8=static", value=self.method))

    def write(self, path: Path, layers: Sequence[Layer], *, per_channel: bool) -> None:
        """Writes the graph with `layers` in int8."""
        settings: dict[str, Any] = {
            "op_types_to_quantize": ["MatMul", "Conv", "Gather", "Transpose"],
            "nodes_to_quantize": [name for layer in layers for name in layer.nodes],
            "per_channel": per_channel,
            "reduce_range": True,
            "weight_type": QuantType.QInt8,
            "use_external_data_format": self._split,
        }
        model = onnx.load(self._path)
        with silence():
            if self.method == "dynamic":
                quantize_dynamic(model, path, **settings)
            else:
                options = {**_STATIC, "TensorQuantOverrides": {layer.weight: [{}] for layer in layers if layer.is_tied}}
                reader = _Reader(self._inputs)
                quantize_static(
                    model, path, reader, activation_type=QuantType.QUInt8, extra_options=options, **settings
                )

    def most_sensitive(self, count: int) -> list[Layer]:
        """The layers of the `count` groups that change the output most, of those without which enough is in int8.

        Raises:
            ProofError: There are fewer.
        """
        most = _MOST_FLOATS * sum(layer.size for layer in self.layers)
        left: list[Layer] = []
        taken = 0
        for group in self._ranked:
            if taken < count and sum(layer.size for layer in [*left, *group]) < most:
                left, taken = [*left, *group], taken + 1
        if taken < count:
            problem = f"with {count} of its {len(self.layers)} layers in float32 it is no smaller than in float16"
            raise ProofError(format_error("export.int8", problem, "Take onnx_fp16", value=self.method))
        return left

    @cached_property
    def _ranked(self) -> list[list[Layer]]:
        """Neighbouring layers in groups; those whose quantization alone changes the output most come first."""
        size = ceil(len(self.layers) / _MOST_GROUPS)
        groups = [self.layers[start : start + size] for start in range(0, len(self.layers), size)]
        inputs = list(_some(self._inputs))
        forward, *_ = open_session(self._path)
        expected = [forward(each) for each in inputs]
        errors = []
        with TemporaryDirectory() as folder:
            for number, group in enumerate(groups):
                path = Path(folder) / f"{number}.onnx"
                self.write(path, group, per_channel=True)
                forward, *_ = open_session(path)
                errors.append(_error(expected, [forward(each) for each in inputs]))
        ranked = sorted(range(len(groups)), key=lambda number: -errors[number])
        return [groups[number] for number in ranked]

    @cached_property
    def _inputs(self) -> list[dict[str, Tensor]]:
        return self._calibration()


_STATIC = {
    "MatMulConstBOnly": True,
    # What a product gives goes into norms, softmax and sums, which are in float32.
    "OpTypesToExcludeOutputQuantization": ["MatMul"],
}


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Batches as ONNX Runtime's calibration reads them."""

    def __init__(self, batches: Sequence[dict[str, Tensor]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {name: value.numpy() for name, value in batch.items()}


def _fitting(layers: Sequence[Layer]) -> Literal["dynamic", "static"]:
    convolutions = sum(layer.size for layer in layers if layer.kind == "Conv")
    return "static" if 2 * convolutions > sum(layer.size for layer in layers) else "dynamic"


def _some(batches: Sequence[dict[str, Tensor]]) -> Iterator[dict[str, Tensor]]:
    count = 0
    for batch in batches:
        yield batch
        count += len(next(iter(batch.values())))
        if count >= _MEASURED:
            return


def _error(expected: Sequence[Tensor], got: Sequence[Tensor]) -> float:
    """The root of the squared difference by that of the squares; infinite where an output is not finite."""
    apart = sum(float((found - wanted).double().square().sum()) for wanted, found in zip(expected, got, strict=True))
    size = sum(float(wanted.double().square().sum()) for wanted in expected)
    return sqrt(apart / size) if isfinite(apart) and size else inf
