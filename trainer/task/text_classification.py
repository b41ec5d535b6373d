"""Classify texts: one class per text."""

from __future__ import annotations

from trainer.constraints import HubPath, validated
from trainer.protocols import Inputs, Target
from trainer.task.class_targets import ClassTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.texts import MaxLength, Texts, VocabSize


class TextClassification(SupervisedTask):
    """Predict one of K classes for a text.

    Args:
        max_length: Tokens of a sample, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
    """

    monitor = "accuracy"
    monitors = ("accuracy", "macro_f1")
    target: Target = "class"
    inputs: Inputs = "tokens"
    script = ("texts", "classes")

    @validated()
    def __init__(
        self, *, max_length: MaxLength, vocab_size: VocabSize, tokenizer: HubPath | None, lowercase: bool
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.class_target = ClassTarget()
        super().__init__("text_classification/1", ("text",), self.texts, self.class_target)
