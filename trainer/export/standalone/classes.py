"""Prints a JSON object for each: the `label` and its `probability`; with --top N the `probabilities` of the N best."""

import numpy as np

from trainer.export.standalone.folder import Inputs, Row, read_json
from trainer.export.standalone.likeliest import chosen, likeliest


def answer(logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
    labels = read_json("labels.json")
    return [chosen("label", likeliest(row, labels, top)) for row in logits]
