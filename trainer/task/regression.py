"""Predict one or more numbers for a text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.constraints import HubPath, validated
from trainer.protocols import Inputs, Target
from trainer.task.numeric import RegressionTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.texts import MaxLength, Texts, VocabSize

if TYPE_CHECKING:
    from torch import Tensor


class Regression(SupervisedTask):
    """Predict V numbers for a text.

    Targets are standardized by the training split, and the loss compares standardized values; metrics and predictions
    are in the user's units. An exported graph outputs standardized values, and `values.json` next to it has the means
    and standard deviations to convert them back.

    Args:
        max_length: Tokens of a sample, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
    """

    monitor = "r2"
    monitors = ("r2", "mae", "rmse", "pearson", "spearman")
    target: Target = "values"
    inputs: Inputs = "tokens"
    script = ("texts", "values")

    @validated()
    def __init__(
        self, *, max_length: MaxLength, vocab_size: VocabSize, tokenizer: HubPath | None, lowercase: bool
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.regression_target = RegressionTarget()
        super().__init__("regression/1", ("text",), self.texts, self.regression_target)

    def in_units(self, values: Tensor) -> Tensor:
        """Return outputs or targets (B, V) in the user's units."""
        return self.regression_target.in_units(values)
