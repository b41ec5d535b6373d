"""Names of metrics as people read them, and their order."""

import math

import pytest

from trainer.report.metric_names import metric_range, monitored_first, words
from trainer.task.named_metrics import FITS


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("macro_f1", "macro F1"),
        ("f1", "F1"),
        ("r2", "R²"),
        ("auroc", "AUROC"),
        ("macro_auroc", "macro AUROC"),
        ("mcc", "MCC"),
        ("pearson", "Pearson"),
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


@pytest.mark.parametrize(
    ("names", "limits"),
    [
        ("accuracy top_5_accuracy f1 macro_f1 entity_precision recall_at_1 exact_match mrr auroc", (0, 1)),
        ("mean_average_precision triplet_accuracy balanced_accuracy micro_recall", (0, 1)),
        ("mcc cohen_kappa pearson spearman", (-1, 1)),
        ("r2 explained_variance", (-math.inf, 1)),
        ("mae rmse mape median_absolute_error max_error", (0, math.inf)),
        ("perplexity", (1, math.inf)),
        ("loss inaccuracy accuracy_ratio my_metric", (-math.inf, math.inf)),
    ],
)
def test_ranges(names: str, limits: tuple[float, float]) -> None:
    assert {metric_range(name) for name in names.split()} == {limits}


def test_every_named_metric_has_a_range() -> None:
    named = {name.replace("top_K", "top_3") for name in FITS}
    assert not [name for name in named if metric_range(name) == (-math.inf, math.inf)]
