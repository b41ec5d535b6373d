"""A text model of transformers, from a folder or the hub, with an output head."""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

import torch
from torch import Tensor, nn

from trainer.constraints import HubPath, validated
from trainer.deferred_logits import DeferredLogits, defer_logits
from trainer.errors import ConfigError, format_error, raise_if_any
from trainer.layout import Document
from trainer.model.layers import pool_samples, take_tokens
from trainer.model.pretrained_attention import (
    FAMILIES,
    Family,
    attention_masks,
    first_position,
    is_causal,
    language_model_class,
    native_mask,
    starts_in_mask,
    use_packed_attention,
)
from trainer.model.pretrained_loading import (
    AutoClass,
    architecture_of,
    check_input,
    config_of,
    linear_head,
    make_model,
    read_config,
    width_of,
)
from trainer.protocols import Cache

if TYPE_CHECKING:
    # Takes seconds; a model of ours does not need the library.
    from transformers import PreTrainedConfig

logger = logging.getLogger(__name__)

_MIN_VOCABULARY_SHARE: Final = 0.9
"""If the task's tokenizer has a smaller share of the model's vocabulary, it is probably not the model's own."""


class Chain(nn.Module):
    """Named modules that run one after the other.

    This is not an `nn.Sequential`, because the largest list of modules defines the layers of a model, and the head is
    not one of them.
    """

    def __init__(self, **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, hidden: Tensor) -> Tensor:
        for module in self.children():
            hidden = module(hidden)
        return hidden


class PassThrough(nn.Linear):
    """The last layer of a head while its logits are deferred: it returns its input."""

    def forward(self, input: Tensor) -> Tensor:
        return input


class Pretrained(nn.Module):
    """Any text model of transformers that maps token ids to one row of outputs per sample or per token.

    Inputs and outputs are as in `TextEncoder`, in both layouts. A new linear layer computes the outputs from the
    last hidden states (D columns), pooled or per token; a language model, with as many outputs as the task's vocabulary
    has tokens, uses its own head. Only the families in `FAMILIES` support packed rows; see `packed`.

    Token types (`token_type_ids`) are passed to models with embeddings of at least two types.

    Source: Wolf et al. 2020, "Transformers: state-of-the-art natural language processing",
    https://arxiv.org/abs/1910.03771.

    Args:
        vocab_size: Number of token ids.
        num_outputs: Number of outputs, C; None returns the D features before the head.
        max_length: Maximum length of a sample in tokens.
        output_level: `sample` for one output per sample, `token` for one output per token.
        architecture: The attribute `architecture` of an earlier model, from a checkpoint. The model is rebuilt from it
            instead of `path` and `config`, with random weights that the checkpoint's weights replace.
        path: A folder with `config.json` and weights, or a name on the hub.
        config: Changes of the model's config.
        pooling: How the tokens of a sample become one vector; ignored for token-level outputs.
        attention: Attention implementation; None for the default of transformers, and for packed rows the kernel of
            `trainer.model.attention` if the device has it.
        pretrained: Load the weights too; otherwise they are random.

    Attributes:
        architecture: JSON from which the module can be rebuilt: `{"class": ..., "config": ...}`.
        packed: True if packed rows give the results of padded rows.
        causal: True if tokens see only earlier tokens; None if unknown.
        cached: True if the model can decode token by token with `empty_cache` and `step`.

    Raises:
        ConfigError: There is no such model, weights are missing, or the model does not fit the task.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens",)
    levels: ClassVar[tuple[str, ...]] = ("sample", "token")
    ends_with_head: ClassVar[tuple[str, ...]] = ("tokens",)

    @validated()
    def __init__(
        self,
        vocab_size: int,
        num_outputs: int | None,
        max_length: int,
        output_level: Literal["sample", "token"] = "sample",
        architecture: Document | None = None,
        *,
        path: HubPath,
        config: Document,
        pooling: Literal["cls", "mean", "max", "last"],
        attention: Literal["sdpa", "eager"] | None,
        pretrained: bool,
    ) -> None:
        super().__init__()
        auto_class: AutoClass
        if architecture is None:
            own = read_config(path, config)
            has_lm_head = output_level == "token" and num_outputs == vocab_size
            auto_class = language_model_class(own) if has_lm_head else "AutoModel"
        else:
            auto_class, own = config_of(architecture)
        self.output_level = output_level
        self.pooling = pooling
        self.num_outputs = num_outputs
        loads_weights = pretrained and architecture is None
        whole = make_model(auto_class, own, path if loads_weights else None, attention)
        self.base: Any = whole.base_model
        check_input(self.base, "input_ids")
        self.family = FAMILIES.get(own.model_type)
        self.packed = self.family is not None
        self.cached = self.family is not None and self.family.causal and output_level == "token"
        # The model's copy of the config, with the changes that the model has made.
        self.config = whole.config
        self.causal = None if self.family is None else is_causal(self.family, self.config)
        if self.packed and attention is None:
            use_packed_attention(self.base)
        _check_fit(self.base, self.config, self.family, vocab_size, max_length, warn=loads_weights)
        if auto_class == "AutoModel":
            self.head = linear_head(width_of(self.config), num_outputs, config)
        else:
            self.head = _language_model_head(whole, self.family)
        self.architecture = architecture or architecture_of(auto_class, self.config)
        self._uses_token_types = self._has_token_types()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_index: Tensor | None = None,
    ) -> Tensor | DeferredLogits:
        """Return outputs (B, C) of samples, or (R, L, C) or S + (C,) of tokens, in float32 or autocast's dtype.

        Raises:
            ConfigError: The rows are packed, and the model's family is not known to keep samples apart.
        """
        inputs: dict[str, Any] = {}
        if self._uses_token_types and token_type_ids is not None:
            inputs["token_type_ids"] = token_type_ids
        if self.family is None:
            if attention_mask is None:
                problem = f"{type(self.base).__name__} is not known to keep the samples of a packed row apart"
                raise ConfigError(format_error("loader.batching", problem, "Set it to padded", value="packed"))
            inputs["attention_mask"] = attention_mask
        else:
            if position_ids is None:
                position_ids = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0)
            first = first_position(self.family, self.config)
            inputs["position_ids"] = position_ids + first if first else position_ids
            starts = starts_in_mask(self.family, self.base, sequence_ids, token_index)
            inputs["attention_mask"] = (
                attention_masks(self.family, self.config, attention_mask, sequence_ids, self.base.dtype)
                if starts is None
                else starts
            )
        hidden = self.base(input_ids=input_ids, **inputs).last_hidden_state
        if self.output_level == "sample":
            hidden = pool_samples(hidden, attention_mask, token_index, self.pooling)
        elif output_index is not None:
            hidden = take_tokens(hidden, output_index)
        if self.defer_logits and (layer := self.output_layer()) is not None:
            return defer_logits(self.head(hidden), *layer)
        return self._outputs(hidden)

    @property
    def defer_logits(self) -> bool:
        """True if a language model leaves its last layer to the loss; see `DefersLogits`."""
        return type(self._last_layer()) is PassThrough

    @defer_logits.setter
    def defer_logits(self, deferred: bool) -> None:
        if (layer := self._last_layer()) is not None:
            layer.__class__ = PassThrough if deferred else nn.Linear

    def get_input_embeddings(self) -> nn.Module:
        """Return the embeddings of the tokens, without positions and types."""
        embeddings: nn.Module = self.base.get_input_embeddings()
        return embeddings

    @property
    def self_attention(self) -> tuple[int, int] | None:
        """The number of self-attention layers and their width; None for a family whose layers are not known."""
        return None if self.family is None else (self.config.num_hidden_layers, width_of(self.config))

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the weight and the bias of a language model's last layer; None for other heads, or with an adapter."""
        if (layer := self._last_layer()) is None:
            return None
        size = self.num_outputs
        if size == layer.out_features:
            return layer.weight, layer.bias
        # A language model's head may have more columns than the vocabulary has tokens.
        return layer.weight[:size], None if layer.bias is None else layer.bias[:size]

    def _last_layer(self) -> nn.Linear | None:
        if not isinstance(self.head, Chain) or self.family is None:
            return None
        layer = self.head.get_submodule(".".join(filter(None, (self.family.lm_head[-1], self.family.output_layer))))
        return layer if type(layer) in (nn.Linear, PassThrough) else None  # type: ignore[return-value]

    def empty_cache(self, batch_size: int) -> Cache:
        """Return the cache of `batch_size` sequences without tokens, the input of the first `step`."""
        heads = self.config.num_attention_heads
        weight = self.base.get_input_embeddings().weight
        shape = (batch_size, heads, 0, width_of(self.config) // heads)
        return tuple(weight.new_empty(shape) for _ in range(2 * self.config.num_hidden_layers))

    def step(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run the next T tokens of B sequences of equal length: a prompt, or the token chosen last.

        Args:
            input_ids: The tokens (B, T).
            cache: The result of `empty_cache` or of the previous step; not changed.

        Returns:
            The outputs of the last token (B, C), as `forward` returns them, and the cache of P + T tokens.
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
            attention_mask=native_mask(allowed[None, None], self.config, self.base.dtype),
            past_key_values=past,
            use_cache=True,
        ).last_hidden_state[:, -1]
        extended = tuple(part for layer in past.layers for part in (layer.keys, layer.values))
        return self._outputs(hidden), extended

    @property
    def headed(self) -> AutoClass:
        """The class of transformers whose head may compute the same outputs; see `pretrained_folder.save`."""
        return (
            "AutoModelForTokenClassification" if self.output_level == "token" else "AutoModelForSequenceClassification"
        )

    def _outputs(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.head(hidden)
        return output if self.num_outputs is None else output[..., : self.num_outputs]

    def _has_token_types(self) -> bool:
        takes_types = "token_type_ids" in inspect.signature(self.base.forward).parameters
        has_embeddings = self.family is None or self.family.token_types
        return takes_types and has_embeddings and getattr(self.config, "type_vocab_size", 0) > 1


def _language_model_head(whole: nn.Module, family: Family | None) -> Chain:
    assert family is not None, "language_model_class has checked it"
    return Chain(**{name: getattr(whole, name) for name in family.lm_head})


def _check_fit(
    base: Any,
    config: PreTrainedConfig,
    family: Family | None,
    vocab_size: int,
    max_length: int,
    *,
    warn: bool,
) -> None:
    """Raise ConfigError if the tokenizer or the samples are too large; with `warn`, log a very small tokenizer."""
    problems = []
    embeddings = base.get_input_embeddings().num_embeddings
    if vocab_size > embeddings:
        problem = f"the model has embeddings of {embeddings} tokens, the task's tokenizer has {vocab_size}"
        remedy = "Set task.tokenizer to the model's own tokenizer, or, if tokens were added to it, enlarge the model"
        enlarge = f"in Python: model.resize_token_embeddings({vocab_size}); model.save_pretrained(FOLDER)"
        problems.append(format_error("path", problem, f"{remedy} {enlarge}"))
    elif warn and vocab_size < _MIN_VOCABULARY_SHARE * embeddings:
        message = (
            "task.tokenizer: has %d tokens, but the model has embeddings of %d. Set it to the model's own tokenizer"
        )
        logger.warning(message, vocab_size, embeddings)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None:
        positions -= first_position(family, config) if family else 0
        if max_length > positions:
            problem = f"the model has {positions} positions, the task's samples have up to {max_length} tokens"
            problems.append(format_error("path", problem, f"Set task.max_length={positions}"))
    raise_if_any(*problems)
