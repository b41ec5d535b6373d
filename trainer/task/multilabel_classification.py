"""Classify texts: any number of labels per text."""

from __future__ import annotations

from trainer.constraints import Fraction, HubPath, validated
from trainer.protocols import Inputs, Target
from trainer.task.class_targets import MultilabelTarget
from trainer.task.supervised import SupervisedTask
from trainer.task.texts import MaxLength, Texts, VocabSize


class MultilabelClassification(SupervisedTask):
    """Predict which of C labels apply to a text: none, one or several.

    The monitor is the micro F1, as in the literature on many labels: the macro F1 over labels with a handful of
    positives in the validation split moves with each of these positives.

    Args:
        max_length: Tokens of a sample, special tokens included; longer texts are truncated.
        vocab_size: Entries of a vocabulary trained on the training texts.
        tokenizer: A `tokenizer.json`, its folder, or a hub name; None trains a WordPiece vocabulary.
        lowercase: For a trained vocabulary: convert texts to lower case without accents.
        threshold: A label is predicted if its probability is above this value, in (0, 1); also for F1 and exact match.
    """

    monitor = "micro_f1"
    monitors = ("micro_f1", "macro_f1", "exact_match", "mean_average_precision")
    target: Target = "multi_hot"
    inputs: Inputs = "tokens"
    script = ("texts", "labels")

    @validated()
    def __init__(
        self,
        *,
        max_length: MaxLength,
        vocab_size: VocabSize,
        tokenizer: HubPath | None,
        lowercase: bool,
        threshold: Fraction,
    ) -> None:
        self.texts = Texts(max_length, vocab_size, tokenizer, lowercase)
        self.multilabel_target = MultilabelTarget(threshold)
        super().__init__("multilabel_classification/1", ("text",), self.texts, self.multilabel_target)
