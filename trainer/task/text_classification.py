"""One label for one text."""

from __future__ import annotations

from trainer.protocols import Inputs, Target
from trainer.task.label import Label
from trainer.task.supervised import Supervised
from trainer.task.texts import Texts


class TextClassification(Supervised):
    """Text in, one of K classes out.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "classes")

    def __init__(self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.label = Label()
        super().__init__("text_classification/1", ("text",), self.texts, self.label)
