"""Logistic and linear regression: one linear layer on features, pixels or a bag of words."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.constraints import Rule, validated
from trainer.model.layers import pool_samples


class Linear(nn.Module):
    """Inputs times a matrix plus a bias: `head.weight` (C, F) and `head.bias` (C,).

    With a cross-entropy loss this is logistic regression, with a squared error it is linear regression. It reads one
    of these inputs:

    * features (B, F): the F features;
    * images (B, channels, H, W): the F = channels * H * W pixels;
    * tokens: the relative frequency of each of the F = vocab_size ids among the sample's tokens (a bag of words). The
      output is the mean of one vector of C values per token, plus the bias. With two token types (a pair of texts),
      words of the second text have their own vectors, and F is twice as large.

    Tokens are padded with `attention_mask` (B, T) or packed with `token_index` (B, T), with the same output; see
    `TextEncoder`.

    Source: McCullagh and Nelder 1989, "Generalized linear models"; Joachims 1998, "Text categorization with support
    vector machines: learning with many relevant features", for linear models of bags of words.

    Args:
        num_outputs: Number of outputs, C.
        vocab_size: Number of token ids.
        num_token_types: Number of token types, 1 or 2.
        num_features: Number of features of a sample.
        image_channels: Number of channels of the images.
        image_size: Height and width of the images in pixels.

    Raises:
        ConfigError: The loss needs features before the outputs, and a linear model has none.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens", "features", "images")
    levels: ClassVar[tuple[str, ...]] = ("sample",)
    ends_with_head: ClassVar[tuple[str, ...]] = ("features", "images")  # words pick columns of its weight

    @validated(
        Rule(
            "num_outputs is not None",
            key="_target_",
            problem="a linear model has no features before its outputs, which the loss needs",
            remedy="Use another model",
        )
    )
    def __init__(
        self,
        num_outputs: int | None,
        vocab_size: int | None = None,
        num_token_types: int = 1,
        num_features: int | None = None,
        image_channels: int | None = None,
        image_size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        assert num_outputs is not None
        self.vocab_size = vocab_size
        if vocab_size is not None:
            num_features = vocab_size * num_token_types
        elif image_size is not None:
            assert image_channels is not None
            num_features = image_channels * image_size[0] * image_size[1]
        assert num_features is not None
        self.head = nn.Linear(num_features, num_outputs)

    def forward(
        self,
        features: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        sequence_ids: Tensor | None = None,
        token_index: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Return outputs (B, C). In a packed batch only `token_index` matters, as a bag of words has no positions."""
        if input_ids is not None:
            assert self.vocab_size is not None
            ids = input_ids if token_type_ids is None else input_ids + self.vocab_size * token_type_ids
            # The linear layer on relative frequencies, without materializing their F columns.
            vectors = F.embedding(ids, self.head.weight.t())
            return pool_samples(vectors, attention_mask, token_index, "mean") + self.head.bias
        values = features if pixel_values is None else pixel_values.flatten(1)
        assert values is not None
        output: Tensor = self.head(values)
        return output
