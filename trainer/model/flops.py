"""The floating-point operations (FLOPs) that a model needs for training, and the peak of the GPUs that compute them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.model.modes import evaluation_mode
from trainer.protocols import DefersLogits, HasSelfAttention, LanguageModelTask

logger = logging.getLogger(__name__)

Peaks = Mapping[str, Mapping[str, float]]
"""Name of a GPU, a regular expression -> precision -> FLOPs per second."""


def _peaks(half: float, tf32: float | None, fp32: float, *, bf16: bool = True) -> dict[str, float]:
    """Return FLOPs per second by precision; the arguments are in TFLOPs, `half` is float16 and bfloat16."""
    values = {"fp16": half, "bf16": half if bf16 else None, "tf32": tf32, "fp32": fp32}
    return {name: 1e12 * value for name, value in values.items() if value is not None}


PEAKS: Final[Peaks] = {
    # Matrix products of dense matrices, summed in float32, by NVIDIA's data sheets, which mostly print the figures
    # for sparse matrices: those are divided by 2. A precision that a GPU has no units for is left out. The names are
    # those that CUDA reports; a part of a GPU (MIG) has another name and no entry.
    # H100 Tensor Core GPU data sheet; H100 NVL product brief
    r"NVIDIA H100 \d+GB HBM3": _peaks(989.4, 494.7, 66.9),
    r"NVIDIA H100 PCIe": _peaks(756.0, 378.0, 51.2),
    r"NVIDIA H100 NVL": _peaks(835.0, 417.5, 60.0),
    # H200 Tensor Core GPU data sheet
    r"NVIDIA H200": _peaks(989.4, 494.7, 66.9),
    r"NVIDIA H200 NVL": _peaks(835.5, 417.5, 60.0),
    # GH200 Grace Hopper Superchip data sheet
    r"NVIDIA GH200 \d+GB": _peaks(989.4, 494.7, 66.9),
    # HGX B200 data sheet, divided by 8 GPUs
    r"NVIDIA B200": _peaks(2250.0, 1125.0, 75.0),
    # A100 Tensor Core GPU data sheet
    r"NVIDIA A100-(SXM4|PCIE)-\d+GB|NVIDIA A100 80GB PCIe": _peaks(312.0, 156.0, 19.5),
    # L4 and L40S data sheets
    r"NVIDIA L4": _peaks(121.0, 60.0, 30.3),
    r"NVIDIA L40S": _peaks(362.05, 183.0, 91.6),
    # T4 data sheet
    r"Tesla T4": _peaks(65.0, None, 8.1, bf16=False),
    # V100 data sheet
    r"Tesla V100-SXM2-\d+GB": _peaks(125.0, None, 15.7, bf16=False),
    r"Tesla V100-PCIE-\d+GB": _peaks(112.0, None, 14.0, bf16=False),
    # Ada and Ampere GA102 GPU architecture white papers
    r"NVIDIA GeForce RTX 4090": _peaks(165.2, 82.6, 82.6),
    r"NVIDIA GeForce RTX 3090": _peaks(71.0, 35.6, 35.6),
}


def find_peak(device_name: str, precision: str, peaks: Peaks = PEAKS) -> float | None:
    """Return the FLOPs per second that a GPU can compute at most; None if they are not known."""
    entries = (entry for name, entry in peaks.items() if re.fullmatch(name, device_name))
    return next(entries, {}).get(precision)


@dataclass(frozen=True)
class ModelFlops:
    """The FLOPs of a training step, forward and backward, without what an execution repeats or spends on padding.

    A token needs `6 weights + 12 attention length`, an image `image`. The length is the mean length of the samples, so
    samples of mixed lengths need a little more than this.

    Source: Chowdhery et al. 2022, "PaLM", appendix B, https://arxiv.org/abs/2204.02311.

    Attributes:
        weights: The weights that each token is multiplied with, N: without embeddings; with the last layer of a causal
            language model, even if it shares the weights of the embeddings, but not with a masked one, which
            reads only some of the tokens.
        attention: Self-attention layers times their width.
        image: FLOPs of an image.
    """

    weights: int = 0
    attention: int = 0
    image: float = 0.0

    def per_second(self, samples_rate: float, tokens_rate: float) -> float:
        """Return the FLOPs per second at so many samples and tokens per second."""
        length = tokens_rate / samples_rate if samples_rate else 0.0
        return tokens_rate * (6 * self.weights + 12 * self.attention * length) + samples_rate * self.image


@dataclass(frozen=True)
class Utilization:
    """Model FLOPs utilization (MFU): the share of the devices' peak that training needs.

    Attributes:
        flops: The FLOPs of the model.
        peak: FLOPs per second of all devices together.
    """

    flops: ModelFlops
    peak: float

    def mfu(self, samples_rate: float, tokens_rate: float) -> float:
        """Return the MFU at so many samples and tokens per second, over all devices."""
        return self.flops.per_second(samples_rate, tokens_rate) / self.peak


def count_flops(
    model: nn.Module, image: tuple[int, ...] | None, language_model: LanguageModelTask | None
) -> ModelFlops | None:
    """Return the FLOPs of a model that is trained on tokens or images; None if they are not known.

    They are not known for a model with frozen weights, which needs less, for tables, and for a model of images whose
    forward pass depends on values.

    Args:
        model: Not changed, not run.
        image: The shape (channels, H, W) of the images; None for other inputs.
        language_model: The task if it is one of language modeling.
    """
    if image is not None:
        trained = list(model.parameters())
        try:
            flops = ModelFlops(image=_image_flops(model, image))
        except RuntimeError as error:  # a model of the user that needs the values of its inputs
            logger.debug("mfu: the operations of the model cannot be counted: %s", error)
            return None
    elif isinstance(model, HasSelfAttention) and model.self_attention is not None:
        last = model.output_layer() if language_model and isinstance(model, DefersLogits) else None
        tables = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        left_out = {_address(weight) for weight in [*tables, *(last or ())] if weight is not None}
        trained = [each for each in model.parameters() if _address(each) not in left_out]
        weights = sum(each.numel() for each in trained)
        if last is not None and language_model is not None and language_model.causal:
            weights += last[0].numel()
        layers, width = model.self_attention
        flops = ModelFlops(weights=weights, attention=layers * width)
    else:
        return None
    return flops if all(each.requires_grad for each in trained) else None


def _address(tensor: Tensor) -> int:
    """Return what tensors that share their numbers have in common."""
    return tensor.untyped_storage().data_ptr()


def _image_flops(model: nn.Module, shape: tuple[int, ...]) -> float:
    """Return the FLOPs of the forward and backward pass of one image: three times the forward pass."""
    from torch.utils.flop_counter import FlopCounterMode

    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with (
        evaluation_mode(model),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
        torch.compiler.set_stance("force_eager"),
    ):
        functional_call(model, shapes, torch.empty(1, *shape, device="meta"))
    forward: int = counter.get_total_flops()
    return 3.0 * forward
