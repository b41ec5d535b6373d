"""What a model of transformers is, and a text model must be for a task: of a known family, with the task's tokens."""

from __future__ import annotations

import logging
from typing import Any

from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.model.packed_attention import FAMILIES, Family, first_position, is_causal
from trainer.model.pretrained_loading import Kind

logger = logging.getLogger(__name__)

_OWN_TOKENS = 0.9
"""Below this share of the model's vocabulary, the task's tokenizer is hardly the model's own."""


def language_kind(config: Any) -> Kind:
    """The class of a language model with its own head.

    Raises:
        ConfigError: The family's head is not known.
    """
    family = FAMILIES.get(config.model_type)
    if family is None:
        problem = f"is a {config.model_type}, whose head of a language model is not known"
        raise ConfigError(format_error("path", problem, f"Known are those of {', '.join(FAMILIES)}"))
    return "AutoModelForCausalLM" if is_causal(family, config) else "AutoModelForMaskedLM"


def width_of(config: Any) -> int:
    """The width of the hidden states, or of the last feature map, that a model puts out: D.

    Raises:
        ConfigError: Its config does not tell.
    """
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        problem = f"is a {config.model_type}, whose config does not tell the width of its outputs (hidden_size)"
        raise ConfigError(format_error("path", problem))
    return width


def check_fit(base: Any, config: Any, family: Family | None, vocab_size: int, max_length: int, *, told: bool) -> None:
    """Raises for a tokenizer or samples that are too large; logs a vocabulary that is suspiciously small."""
    faults = []
    rows = base.get_input_embeddings().num_embeddings
    if vocab_size > rows:
        problem = f"the model has embeddings of {rows} tokens, the task's tokenizer has {vocab_size}"
        faults.append(format_error("path", problem, "Give the model's own as task.tokenizer"))
    elif told and vocab_size < _OWN_TOKENS * rows:
        message = (
            "the task's tokenizer has %d tokens, the model was trained with %d: is task.tokenizer the model's own?"
        )
        logger.warning(message, vocab_size, rows)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= first_position(family, config) if family else 0
        if max_length > positions:
            problem = f"the model has {positions} positions, the task's samples have up to {max_length} tokens"
            faults.append(format_error("path", problem, f"Set task.max_length={positions}"))
    raise_if_any(*faults)
