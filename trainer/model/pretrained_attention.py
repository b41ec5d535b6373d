"""Attention of transformers' text models in packed rows: supported families, their masks and their positions.

The models take a finished mask in place of their own: boolean for torch's `scaled_dot_product_attention`, added to
the scores for the `eager` implementation. With a mask that confines a token to its own sample, several samples can
share a row, with the results of padded rows up to rounding. On CUDA, the starts of the samples take the mask's place
(see `attention.sample_starts`), and `packed_attention`, registered with transformers, reads them.

Source: Krell et al. 2021, https://arxiv.org/abs/2107.02027.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from trainer.errors import ConfigError, format_error
from trainer.model.attention import attend, same_sample, sample_starts
from trainer.model.pretrained_loading import AutoClass

if TYPE_CHECKING:
    # Takes seconds; a model of ours does not need the library.
    from transformers import PreTrainedConfig

_IMPLEMENTATION: Final = "packed"
"""The name of `packed_attention` among the attention implementations of transformers."""


@dataclass(frozen=True)
class Family:
    """The properties of an architecture that matter for packing several samples into a row.

    Attributes:
        lm_head: Names of the language model's modules after the last hidden states, in order.
        attention_dropout: Name of the probability of dropout inside attention in the model's config.
        output_layer: Name of the last linear layer in the last of these modules; empty if it is that module itself.
        causal: Tokens see only earlier tokens.
        after_padding: The first position is the padding token's id + 1.
        token_types: The model has token type embeddings.
    """

    lm_head: tuple[str, ...]
    causal: bool = False
    after_padding: bool = False
    token_types: bool = True
    attention_dropout: str = "attention_probs_dropout_prob"
    output_layer: str = ""


_ROBERTA: Final = Family(("lm_head",), after_padding=True, output_layer="decoder")

FAMILIES: Final[Mapping[str, Family]] = {
    "bert": Family(("cls",), output_layer="predictions.decoder"),
    "camembert": _ROBERTA,
    "distilbert": Family(
        ("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"),
        token_types=False,
        attention_dropout="attention_dropout",
    ),
    "electra": Family(("generator_predictions", "generator_lm_head")),
    "gpt2": Family(("lm_head",), causal=True, token_types=False, attention_dropout="attn_pdrop"),
    "modernbert": Family(("head", "decoder"), token_types=False, attention_dropout="attention_dropout"),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""Families by the `model_type` of a config. Other models are not known to give equal results for packed rows."""


def first_position(family: Family, config: PreTrainedConfig) -> int:
    """Return the position of a sample's first token."""
    return int(config.pad_token_id) + 1 if family.after_padding else 0


def is_causal(family: Family, config: PreTrainedConfig) -> bool:
    """Return whether tokens see only earlier tokens."""
    return family.causal or getattr(config, "is_decoder", False)


def language_model_class(config: PreTrainedConfig) -> AutoClass:
    """Return the class of a language model with its own head.

    Raises:
        ConfigError: The head of this family is not known.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        problem = f"is a {config.model_type}, whose language model head is not supported"
        raise ConfigError(format_error("path", problem, f"Supported are {', '.join(FAMILIES)}"))
    return "AutoModelForCausalLM" if is_causal(family, config) else "AutoModelForMaskedLM"


def attention_masks(
    family: Family,
    config: PreTrainedConfig,
    attention_mask: Tensor | None,
    sequence_ids: Tensor | None,
    dtype: torch.dtype,
) -> Tensor | dict[str, Tensor]:
    """Return the model's `attention_mask`, (R, 1, 1 or L, L), or one mask per attention type of its layers.

    Args:
        family: Family of the model.
        config: Config of the model; `_attn_implementation` is its attention implementation.
        attention_mask: Mask of padded rows (R, L).
        sequence_ids: Numbers of the samples in packed rows (R, L); used if there is no `attention_mask`.
        dtype: Type of the scores to which the `eager` implementation adds the mask.
    """
    sequence = sequence_ids if attention_mask is None else attention_mask
    assert sequence is not None
    # Both masks of all pairs of positions are made only if they are needed: small models notice the time.
    same = partial(same_sample, sequence)
    columns = partial(torch.arange, sequence.shape[1], device=sequence.device)
    if is_causal(family, config):
        allowed = same() & (columns()[:, None] >= columns())
    elif attention_mask is None:
        allowed = same()
    else:
        allowed = attention_mask.bool()[:, None, None, :]
    full = native_mask(allowed, config, dtype)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return full
    # Samples are contiguous, so the distance in the row is the distance in the sample. In padded rows padding sees
    # padding: in a narrow window, a row without any allowed position would give NaN.
    near = same() & ((columns()[:, None] - columns()).abs() <= config.sliding_window)
    return {"full_attention": full, "sliding_attention": native_mask(near, config, dtype)}


def packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention from the starts of the samples, or as `sdpa` does from another mask; see transformers.

    Returns:
        The output (R, L, heads, D) for inputs (R, heads, L, D).
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int32:
        options |= {"dropout": dropout, "scaling": scaling, "sliding_window": sliding_window}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert dropout == 0, "sample_starts has checked it"
    # Versions of transformers count the window of a layer differently, but not the window of the config.
    window = None if sliding_window is None else module.config.sliding_window
    causal = bool(module.is_causal)
    attended = attend(query, key, value, attention_mask, causal=causal, window=window, scale=scaling)
    return attended.transpose(1, 2), None


def starts_in_mask(
    family: Family, base: Any, sequence_ids: Tensor | None, token_index: Tensor | None
) -> Tensor | dict[str, Tensor] | None:
    """Return what takes the place of the model's `attention_mask` in packed rows, or None if it needs a mask.

    Args:
        family: Family of the model.
        base: The model.
        sequence_ids: Numbers of the samples in packed rows (R, L); None if the rows are not packed.
        token_index: See `sample_starts`.
    """
    config = base.config
    if sequence_ids is None or config._attn_implementation != _IMPLEMENTATION:
        return None
    head_size = config.hidden_size // config.num_attention_heads
    dropout = getattr(config, family.attention_dropout) if base.training else 0.0
    starts = sample_starts(sequence_ids, token_index, head_size=head_size, dtype=base.dtype, dropout=dropout)
    if starts is None or "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return starts
    return {"full_attention": starts, "sliding_attention": starts}


def use_packed_attention(base: Any) -> None:
    """Let a model that computes attention with `sdpa` compute it with `packed_attention`, if its code can choose."""
    from transformers import AttentionInterface

    dispatches = hasattr(sys.modules[type(base).__module__], "ALL_ATTENTION_FUNCTIONS")
    if base.config._attn_implementation == "sdpa" and dispatches:
        AttentionInterface.register(_IMPLEMENTATION, packed_attention)
        base.config._attn_implementation = _IMPLEMENTATION


def native_mask(allowed: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    """Convert a boolean mask to the form that the model's attention implementation takes."""
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
