"""Names of metrics in words, and the order of metrics in tables."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_WORDS: Final = {
    **{name: name.upper() for name in ("auroc", "f1", "lm", "mae", "mape", "mcc", "mrr", "mse", "rmse")},
    "r2": "R²",
}
_TOP: Final = re.compile(r"\btop (\d+)\b")


def words(name: str) -> str:
    """Return a name of a metric or of a part as words: `macro_f1` is "macro F1"."""
    return _TOP.sub(r"top-\1", " ".join(_WORDS.get(word, word) for word in name.split("_")))


def monitored_first(names: Iterable[str], monitor: object) -> list[str]:
    """Return names of metrics, each once, with the monitored one first and the others in their order."""
    return sorted(dict.fromkeys(names), key=lambda name: name != monitor)
