"""The likeliest of several by their logits."""

import numpy as np

from trainer.export.standalone.folder import Row


def likeliest(logits: np.ndarray, names: list[str], count: int) -> dict[str, float]:
    powers = np.exp(logits - logits.max())
    probabilities = powers / powers.sum()
    best = np.argsort(-probabilities, kind="stable")[:count]
    return {names[number]: round(float(probabilities[number]), 6) for number in best}


def chosen(key: str, best: dict[str, float]) -> Row:
    name, probability = next(iter(best.items()))
    return {key: name, "probability": probability, **({"probabilities": best} if len(best) > 1 else {})}
