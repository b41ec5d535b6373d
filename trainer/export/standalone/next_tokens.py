"""Prints a JSON object for each: the likeliest tokens that come `next`, 5 or --top N of them, and the `perplexity`."""

import numpy as np

from trainer.export.standalone.folder import Inputs, Row
from trainer.export.standalone.likeliest import likeliest
from trainer.export.standalone.vocabulary import vocabulary


def answer(logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
    answers: list[Row] = []
    for scores, ids, mask in zip(logits, inputs["input_ids"], inputs["attention_mask"], strict=True):
        last = int(mask.sum()) - 1
        best = likeliest(scores[last], vocabulary(logits.shape[-1]), max(5, top)).items()
        following = [{"token": token, "probability": probability} for token, probability in best]
        answers.append({"next": following, "perplexity": perplexity(scores[:last], ids[1 : last + 1])})
    return answers


def perplexity(logits: np.ndarray, ids: np.ndarray) -> float | None:
    """Of the tokens but the first."""
    if not len(ids):
        return None
    shifted = (logits - logits.max(axis=-1, keepdims=True)).astype(np.float64)
    surprises = np.log(np.exp(shifted).sum(axis=-1)) - shifted[np.arange(len(ids)), ids]
    return round(float(np.exp(surprises.mean())), 6)
