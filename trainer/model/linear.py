"""Logistic and linear regression: one linear layer on features, pixels or a bag of words."""

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from trainer.errors import ConfigError, format_error
from trainer.model.pooling import pool_samples


class Linear(nn.Module):
    """Inputs times a matrix plus a bias: `head.weight` (C, F) and `head.bias` (C,).

    With a cross-entropy loss this is logistic regression, with a squared error it is linear regression. What it reads
    is told by the facts that it is given:

    * features (B, F): the F features;
    * images (B, channels, H, W): the F = channels * H * W pixels;
    * tokens: the share that each of the F = vocab_size ids has of the sample's tokens (a bag of words). The output is
      the mean of one vector of C a token, plus the bias. With two kinds of tokens (a pair of texts) a word of the
      second text has a vector of its own, and F is twice as large.

    Tokens come in either layout, with the same output (see `TextEncoder`): padded with `attention_mask` (B, T), or
    packed with `token_index` (B, T).

    Source: McCullagh and Nelder 1989, "Generalized linear models"; Joachims 1998, "Text categorization with support
    vector machines: learning with many relevant features", for linear models of bags of words.

    Args:
        num_outputs: Columns of the output, C.
        vocab_size: Token ids are below it.
        num_token_types: Kinds of tokens, 1 or 2.
        num_features: Features of a sample.
        image_channels: Channels of the images.
        image_size: Their height and width.

    Raises:
        ConfigError: It is asked for features in place of outputs.
    """

    inputs: ClassVar[tuple[str, ...]] = ("tokens", "features", "images")
    levels: ClassVar[tuple[str, ...]] = ("sample",)

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
        if num_outputs is None:
            problem = "a linear model has outputs alone, no features before them"
            raise ConfigError(format_error("_target_", problem, "Another model has them"))
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
        """Outputs (B, C). Of a packed micro-batch only `token_index` matters: words of a bag have no positions."""
        if input_ids is not None:
            assert self.vocab_size is not None
            ids = input_ids if token_type_ids is None else input_ids + self.vocab_size * token_type_ids
            # The layer on the shares of the ids, without writing their F columns down.
            vectors = F.embedding(ids, self.head.weight.t())
            return pool_samples(vectors, attention_mask, token_index, "mean") + self.head.bias
        values = features if pixel_values is None else pixel_values.flatten(1)
        assert values is not None
        output: Tensor = self.head(values)
        return output
