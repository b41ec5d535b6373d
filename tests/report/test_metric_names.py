"""Names of metrics as people read them, and their order."""

import pytest

from trainer.report.metric_names import monitored_first, words


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("macro_f1", "macro F1"),
        ("f1", "F1"),
        ("r2", "R²"),
        ("auroc", "AUROC"),
        ("macro_auroc", "macro AUROC"),
        ("mcc", "MCC"),
        ("causal_lm", "causal LM"),
        ("top_5_accuracy", "top-5 accuracy"),
        ("stop_5_accuracy", "stop 5 accuracy"),
        ("recall_at_1", "recall at 1"),
        ("mean_average_precision", "mean average precision"),
        ("text_classification", "text classification"),
    ],
)
def test_words(name: str, shown: str) -> None:
    assert words(name) == shown


def test_the_monitored_metric_comes_first() -> None:
    assert monitored_first(["loss", "accuracy", "loss", "macro_f1"], "macro_f1") == ["macro_f1", "loss", "accuracy"]
    assert monitored_first(["b", "a"], None) == ["b", "a"]
