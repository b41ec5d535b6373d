"""A text model of transformers, from its folder or the hub, with a head of outputs."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError, format_error
from trainer.model.packed_attention import (
    FAMILIES,
    Family,
    attention_masks,
    first_position,
    is_causal,
    mask_as_taken,
)
from trainer.model.pooling import pool_samples, take_tokens
from trainer.model.pretrained_config import read_config
from trainer.model.pretrained_fit import check_fit, language_kind, width_of
from trainer.model.pretrained_loading import (
    Kind,
    architecture_of,
    checkpoint_gradients,
    config_of,
    linear_head,
    make_model,
    refuse_unread,
)


class Chain(nn.Module):
    """Named modules, one after the other.

    It is no `nn.Sequential`: the layers of a model are those of its largest list of modules, and the head is not one.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, hidden: Tensor) -> Tensor:
        for module in self.children():
            hidden = module(hidden)
        return hidden


class Pretrained(nn.Module):
    """Token ids to outputs, one row a sample, or one a token, by any text model of transformers.

    Inputs and outputs are those of `TextEncoder`, in both layouts. The outputs are a new linear layer's on the last
    hidden states (D columns), pooled or token by token; those of a language model, as many as the task's vocabulary has
    tokens, are its own head's. Only the families in `FAMILIES` take packed rows, which `packed` says.

    Token types (`token_type_ids`) are passed on to models that have embeddings of two or more types.

    Source: Wolf et al. 2020, "Transformers: state-of-the-art natural language processing",
    https://arxiv.org/abs/1910.03771.

    Args:
        vocab_size: Token ids are below it.
        num_outputs: Columns of the output, C; None: the D features before the head are the output.
        max_length: No sample is longer.
        output_level: Whether there is an output for each sample or for each token.
        architecture: The attribute of that name of a model that was made before, such as a checkpoint holds. The model
            is made of it, without `path` and `config`, with random weights that the checkpoint's are to replace.
        path: A folder with `config.json` and weights, or a name on the hub.
        config: Changes of the keys of the model's own config.
        pooling: How the tokens of a sample become one vector; of no effect on outputs of tokens.
        attention: Its implementation; None: the one that transformers prefers.
        gradient_checkpointing: Keep no activations inside the blocks: less memory, a third more time.
        pretrained: Whether the weights are read, too; otherwise they are random.

    Attributes:
        architecture: JSON that makes the module again: `{"class": ..., "config": ...}`.
        packed: Whether packed rows give what padded ones do.
        causal: Whether a token sees none of those after it; None where that is not known.
        cached: Whether it can read token by token, with `empty_cache` and `step`.

    Raises:
        ConfigError: There is no such model, its weights are not all there, or it does not fit the task.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        max_length: int,
        output_level: Literal["sample", "token"] = "sample",
        architecture: dict[str, Any] | None = None,
        *,
        path: str,
        config: dict[str, Any],
        pooling: Literal["cls", "mean", "max", "last"],
        attention: Literal["sdpa", "eager"] | None,
        gradient_checkpointing: bool,
        pretrained: bool,
    ) -> None:
        super().__init__()
        kind: Kind
        if architecture is None:
            own = read_config(path, config)
            kind = language_kind(own) if output_level == "token" and num_outputs == vocab_size else "AutoModel"
        else:
            kind, own = config_of(architecture)
        self.output_level = output_level
        self.pooling = pooling
        self.num_outputs = num_outputs
        whole = make_model(kind, own, path if pretrained and architecture is None else None, attention)
        self.base: Any = whole.base_model
        refuse_unread(self.base, "input_ids")
        self.family = FAMILIES.get(own.model_type)
        self.packed = self.family is not None
        self.cached = self.family is not None and self.family.causal and output_level == "token"
        # Of transformers' own making, so that it holds what the model has changed in it.
        self.config = whole.config
        self.causal = None if self.family is None else is_causal(self.family, self.config)
        check_fit(self.base, self.config, self.family, vocab_size, max_length, told=pretrained and architecture is None)
        if kind == "AutoModel":
            self.head = linear_head(width_of(self.config), num_outputs, self.config)
        else:
            self.head = _lm_head(whole, self.family)
        self.architecture = architecture or architecture_of(kind, self.config)
        self._types = self._takes_types()
        if gradient_checkpointing:
            checkpoint_gradients(self.base)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_index: Tensor | None = None,
    ) -> Tensor:
        """Outputs in float32 or autocast's type: (B, C) of samples, (R, L, C) or S + (C,) of tokens.

        Raises:
            ConfigError: The rows are packed, and of its family it is not known that it keeps samples apart.
        """
        more: dict[str, Any] = {}
        if self._types and token_type_ids is not None:
            more["token_type_ids"] = token_type_ids
        if self.family is None:
            if attention_mask is None:
                problem = f"{type(self.base).__name__} is not known to keep the samples of a packed row apart"
                raise ConfigError(format_error("loader.batching", problem, "Set it to padded", value="packed"))
            more["attention_mask"] = attention_mask
        else:
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            more["position_ids"] = position_ids + first_position(self.family, self.config)
            more["attention_mask"] = attention_masks(
                self.family, self.config, attention_mask, sequence_ids, self.base.dtype
            )
        hidden = self.base(input_ids=input_ids, **more).last_hidden_state
        if self.output_level == "sample":
            hidden = pool_samples(hidden, attention_mask, token_index, self.pooling)
        elif output_index is not None:
            hidden = take_tokens(hidden, output_index)
        return self._outputs(hidden)

    def empty_cache(self, batch_size: int) -> tuple[Tensor, ...]:
        """What `step` begins with: the cache of `batch_size` sequences of which nothing is seen.

        Keys and values of the P positions seen, each (B, heads, P, D / heads): the first layer's keys and its values,
        the second layer's keys, and so on.
        """
        heads = self.config.num_attention_heads
        weight = self.base.get_input_embeddings().weight
        shape = (batch_size, heads, 0, width_of(self.config) // heads)
        return tuple(weight.new_empty(shape) for _ in range(2 * self.config.num_hidden_layers))

    def step(self, input_ids: Tensor, cache: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The next T tokens of B sequences of equal length: a prompt, or the token that was chosen last.

        Args:
            input_ids: The tokens (B, T).
            cache: From `empty_cache`, or from the step before; it stays as it is.

        Returns:
            The outputs of the last token (B, C), as `forward` gives them, and the cache of P + T tokens.
        """
        from transformers import DynamicCache

        assert self.cached
        seen, total = cache[0].shape[2], cache[0].shape[2] + input_ids.shape[1]
        positions = torch.arange(seen, total, device=input_ids.device)
        allowed = positions[:, None] >= torch.arange(total, device=input_ids.device)
        past: Any = DynamicCache(zip(cache[::2], cache[1::2], strict=True))
        hidden = self.base(
            input_ids=input_ids,
            position_ids=positions[None],
            attention_mask=mask_as_taken(allowed[None, None], self.config, self.base.dtype),
            past_key_values=past,
            use_cache=True,
        ).last_hidden_state[:, -1]
        extended = tuple(part for layer in past.layers for part in (layer.keys, layer.values))
        return self._outputs(hidden), extended

    @property
    def headed(self) -> Kind:
        """The class of transformers whose head may be this one; see `pretrained_folder.save`."""
        return (
            "AutoModelForTokenClassification" if self.output_level == "token" else "AutoModelForSequenceClassification"
        )

    def _outputs(self, hidden: Tensor) -> Tensor:
        # A language model's head may have more columns than the vocabulary has tokens.
        output: Tensor = self.head(hidden)
        return output if self.num_outputs is None else output[..., : self.num_outputs]

    def _takes_types(self) -> bool:
        known = "token_type_ids" in inspect.signature(self.base.forward).parameters
        has_own = self.family is None or self.family.token_types
        return known and has_own and getattr(self.config, "type_vocab_size", 0) > 1


def _lm_head(whole: nn.Module, family: Family | None) -> Chain:
    assert family is not None, "refused before"
    return Chain(**{name: getattr(whole, name) for name in family.lm_head})
