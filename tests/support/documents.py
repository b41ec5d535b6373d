"""Documents of runs for tests."""

import json
from typing import Any


def state_text(step: int, score: dict[str, Any] | None = None) -> str:
    """Return the least `state.json` of a checkpoint."""
    numpy = {"kind": "MT19937", "keys": "", "position": 0, "has_gauss": 0, "cached": 0.0}
    document = {
        "score": score,
        "train": {"step": step, "score": score, "best": score, "best_step": None},
        "ema": None,
        "schedule": None,
        "precision": {},
        "optimizer": {"groups": [], "values": {}},
        "generators": {"python": {"version": 3, "words": "", "gauss": None}, "numpy": numpy},
        "data": "",
        "versions": {},
    }
    return json.dumps(document)
