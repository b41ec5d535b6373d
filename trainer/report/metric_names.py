"""Names of metrics in words, the ranges of their values, and the order of metrics in tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

_WORDS: Final = {
    **{name: name.upper() for name in ("auroc", "f1", "lm", "mae", "mape", "mcc", "mrr", "mse", "rmse")},
    "r2": "R²",
    **{name: name.capitalize() for name in ("pearson", "spearman")},
}
_TOP: Final = re.compile(r"\btop (\d+)\b")
_SHARE: Final = re.compile(r"(\w+_)?(accuracy|f1|precision|recall|exact_match|auroc|mrr|recall_at_\d+)")
_RANGES: Final = {
    **dict.fromkeys(("mcc", "cohen_kappa", "pearson", "spearman"), (-1.0, 1.0)),
    **dict.fromkeys(("r2", "explained_variance"), (-math.inf, 1.0)),
    **dict.fromkeys(("mae", "rmse", "mape", "median_absolute_error", "max_error"), (0.0, math.inf)),
    "perplexity": (1.0, math.inf),
    "alignment": (0.0, 4.0),  # squared distances of unit vectors
    "uniformity": (-8.0, 0.0),  # the log of a mean of exp(-2 d^2), for the same distances
}


def metric_range(name: str) -> tuple[float, float]:
    """Return the lowest and the highest value of a metric by its name; infinite if no bound is known.

    A loss has no known bound: the loss of a density can be negative.
    """
    return (0.0, 1.0) if _SHARE.fullmatch(name) else _RANGES.get(name, (-math.inf, math.inf))


def words(name: str) -> str:
    """Return a name of a metric or of a part as words: `macro_f1` is "macro F1"."""
    return _TOP.sub(r"top-\1", " ".join(_WORDS.get(word, word) for word in name.split("_")))


def monitored_first(names: Iterable[str], monitor: object) -> list[str]:
    """Return names of metrics, each once, with the monitored one first and the others in their order."""
    return sorted(dict.fromkeys(names), key=lambda name: name != monitor)
