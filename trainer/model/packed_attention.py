"""Who attends to whom in the text models of transformers: the masks and positions that they are given.

Each of them takes a finished mask in place of the one that it would make itself: boolean for torch's
`scaled_dot_product_attention`, added to the scores for the `eager` implementation. With one that lets a token see its
own sample alone, several samples share a row, and nothing but rounding tells the result from that of padded rows.

Source: Krell et al. 2021, https://arxiv.org/abs/2107.02027.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor


@dataclass(frozen=True)
class Family:
    """What must be known of an architecture to place several samples in a row.

    Attributes:
        lm_head: The modules of its language model after the last hidden states, by name, one after the other.
        causal: A token sees none of those after it.
        after_padding: Its first position is the one after the padding token's id.
        token_types: It has an embedding of token types.
    """

    lm_head: tuple[str, ...]
    causal: bool = False
    after_padding: bool = False
    token_types: bool = True


_ROBERTA: Final = Family(("lm_head",), after_padding=True)

FAMILIES: Final[Mapping[str, Family]] = {
    "bert": Family(("cls",)),
    "camembert": _ROBERTA,
    "distilbert": Family(("vocab_transform", "activation", "vocab_layer_norm", "vocab_projector"), token_types=False),
    "electra": Family(("generator_predictions", "generator_lm_head")),
    "gpt2": Family(("lm_head",), causal=True, token_types=False),
    "modernbert": Family(("head", "decoder"), token_types=False),
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""By the `model_type` of a config. Of no other is it known that packed rows give what padded ones do."""


def first_position(family: Family, config: Any) -> int:
    """The position of a sample's first token."""
    return int(config.pad_token_id) + 1 if family.after_padding else 0


def is_causal(family: Family, config: Any) -> bool:
    """Whether a token sees none of those after it."""
    return family.causal or getattr(config, "is_decoder", False)


def attention_masks(
    family: Family, config: Any, attention_mask: Tensor | None, sequence_ids: Tensor | None, dtype: torch.dtype
) -> Tensor | dict[str, Tensor]:
    """What a model takes as `attention_mask`: (R, 1, 1 or L, L), or one for each kind of its layers.

    Args:
        family: The model's.
        config: The model's own; `_attn_implementation` is the attention that it was made with.
        attention_mask: Of padded rows (R, L).
        sequence_ids: Of packed rows (R, L), a number for each sample of a row; used where there is no `attention_mask`.
        dtype: The type of the scores that a mask is added to, for the `eager` implementation.
    """
    sequence = sequence_ids if attention_mask is None else attention_mask
    assert sequence is not None
    # In padded rows padding sees padding: a row of scores without any would be NaN in a narrow window.
    same = sequence[:, None, :, None] == sequence[:, None, None, :]
    place = torch.arange(sequence.shape[1], device=sequence.device)
    apart = place[:, None] - place
    if is_causal(family, config):
        allowed = same & (apart >= 0)
    elif attention_mask is None:
        allowed = same
    else:
        allowed = attention_mask.bool()[:, None, None, :]
    full = mask_as_taken(allowed, config, dtype)
    if "sliding_attention" not in (getattr(config, "layer_types", None) or ()):
        return full
    # Samples lie in one piece, so that the distance within a row is that within the sample.
    near = same & (apart.abs() <= config.sliding_window)
    return {"full_attention": full, "sliding_attention": mask_as_taken(near, config, dtype)}


def mask_as_taken(allowed: Tensor, config: Any, dtype: torch.dtype) -> Tensor:
    """A boolean mask as a model takes it: added to the scores for the `eager` implementation."""
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)
