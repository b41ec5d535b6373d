"""One or more numbers for one text."""

from __future__ import annotations

from trainer.protocols import Inputs, Target
from trainer.task.supervised import Supervised
from trainer.task.texts import Texts
from trainer.task.values import Values


class Regression(Supervised):
    """Text in, V numbers out.

    Targets are standardized by the training split, and the loss is that of standardized values; metrics and
    answers are in the user's units. An exported graph gives standardized values, and `values.json` beside it the
    way back.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
    """

    monitor = "r2"
    monitors = ("r2", "mae", "rmse", "pearson", "spearman")
    target: Target = "values"
    inputs: Inputs = "tokens"
    script = ("texts", "values")

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.values = Values()
        super().__init__("regression/1", ("text",), self.texts, self.values)
