"""Prints a JSON object for each: its `labels`, the likeliest first, and their `probabilities`, at least --top N."""

import numpy as np

from trainer.export.standalone.folder import Inputs, Row, read_json


def answer(logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
    labels, threshold = read_json("labels.json"), read_json("threshold.json")
    answers: list[Row] = []
    for probabilities in 1 / (1 + np.exp(-logits)):
        order = np.argsort(-probabilities, kind="stable")
        count = int((probabilities > threshold).sum())
        found = {labels[number]: round(float(probabilities[number]), 6) for number in order[: max(count, top)]}
        answers.append({"labels": [labels[number] for number in order[:count]], "probabilities": found})
    return answers
