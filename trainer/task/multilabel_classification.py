"""Any number of labels for one text."""

from __future__ import annotations

from trainer.protocols import Inputs, Target
from trainer.task.labels import Labels
from trainer.task.supervised import Supervised
from trainer.task.texts import Texts


class MultilabelClassification(Supervised):
    """Text in, those of C labels out that hold for it: none, one or several.

    The monitor is the micro F1, as in the literature on many labels: one over labels with a handful of positives in
    the validation split moves with each of them.

    Args:
        max_length: Tokens of a sample, special ones included; longer texts are cut.
        vocab_size: Entries of a vocabulary learnt from the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a name on the hub; None learns a WordPiece vocabulary.
        lowercase: Lower case and no accents, in a learnt vocabulary.
        threshold: A label is predicted where its probability is above it, in (0, 1); for F1 and exact match, too.

    Raises:
        ConfigError: A value is out of range, or there is no such tokenizer.
    """

    monitor = "micro_f1"
    monitors = ("micro_f1", "macro_f1", "exact_match", "mean_average_precision")
    target: Target = "multi_hot"
    inputs: Inputs = "tokens"
    script = ("texts", "labels")

    def __init__(
        self, *, max_length: int, vocab_size: int, tokenizer: str | None, lowercase: bool, threshold: float
    ) -> None:
        self.labels = Labels(threshold)
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        super().__init__("multilabel_classification/1", ("text",), self.texts, self.labels)
