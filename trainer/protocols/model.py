"""The abilities that a model may have: any `nn.Module` whose `forward(**inputs)` returns a tensor is a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, runtime_checkable

from trainer.layout import Document
from trainer.protocols.batch import Inputs

if TYPE_CHECKING:
    from torch import Tensor, nn


Cache: TypeAlias = "tuple[Tensor, ...]"
"""Keys and values of the P positions seen, each (B, heads, P, D / heads): the first layer's keys and its values, the
second layer's keys, and so on. The batch is the first dimension: `tuple(part[order] for part in cache)` reorders it.
"""


@runtime_checkable
class TokenByTokenModel(Protocol):
    """A causal language model that can decode token by token with a key-value cache."""

    cached: bool
    """False if this instance cannot, for example because its outputs are not token-level."""

    def empty_cache(self, batch_size: int) -> Cache:
        """Return the cache of `batch_size` sequences without tokens, the input of the first `step`."""
        ...

    def step(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """Run the next T tokens (B, T) of each sequence.

        Returns:
            The outputs of the last token (B, C), and the cache of P + T positions.
        """
        ...


@runtime_checkable
class HasCausality(Protocol):
    """A model that declares if its tokens attend only to earlier tokens; None if that is unknown."""

    causal: bool | None


@runtime_checkable
class HasPackingSupport(Protocol):
    """A model that declares if it keeps the samples of a packed row apart; other models are assumed to."""

    packed: bool


@runtime_checkable
class DefersLogits(Protocol):
    """A model that ends with a linear layer and can leave that layer to the loss."""

    defer_logits: bool
    """Return `trainer.deferred_logits.DeferredLogits` instead of logits; False at first."""

    def output_layer(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the weight (C, D) and the bias (C,) of the last layer; None if it cannot be left to the loss."""
        ...


@runtime_checkable
class HasInputEmbeddings(Protocol):
    """A model that knows its embeddings of tokens; the models of transformers have this method."""

    def get_input_embeddings(self) -> nn.Module:
        """Return the module whose weight has a row for each token."""
        ...


@runtime_checkable
class EndsWithHead(Protocol):
    """A model whose linear layer `head` makes its outputs; it calls the layer once in each forward pass.

    `ends_with_head` is a class attribute with a literal value: the `Inputs` for which this is so.
    """

    ends_with_head: tuple[Inputs, ...]


@runtime_checkable
class HasSelfAttention(Protocol):
    """A transformer in which every token passes through all weights, so that the operations of a step are known."""

    @property
    def self_attention(self) -> tuple[int, int] | None:
        """The number of self-attention layers and their width; None if they are not known."""
        ...


@runtime_checkable
class HasArchitecture(Protocol):
    """A model that can be rebuilt without its original files from this JSON, which is saved in each checkpoint."""

    architecture: Document


@runtime_checkable
class HasPooling(Protocol):
    """A model that pools token vectors to one vector per sample: `cls`, `mean`, `max` or `last`."""

    pooling: str
