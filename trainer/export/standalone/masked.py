"""Prints a JSON object for each: the `text`, and how its mask tokens were `filled`: `token` and `probability`.

null stands for one past the end of what is read; with --top N there are the `probabilities` of the N best.
"""

import numpy as np

from trainer.export.standalone.folder import Inputs, Row
from trainer.export.standalone.likeliest import chosen, likeliest
from trainer.export.standalone.tokens import tokenizer
from trainer.export.standalone.vocabulary import vocabulary


def answer(logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
    names = vocabulary(logits.shape[-1])
    mask = next(name for name in ("[MASK]", "<mask>") if name in names)
    answers: list[Row] = []
    for row, ids, scores in zip(rows, inputs["input_ids"], logits, strict=True):
        start, *rest = row["text"].split(mask)
        places = np.flatnonzero(ids == names.index(mask))
        filled = [chosen("token", likeliest(scores[place], names, top)) for place in places][: len(rest)]
        for found, following in zip(filled, rest, strict=False):
            piece = tokenizer().decode([names.index(found["token"])], skip_special_tokens=False).strip()
            start = (start.rstrip() + piece[2:] if piece.startswith("##") else start + piece) + following
        unread = rest[len(filled) :]
        answers.append({"text": mask.join([start, *unread]), "filled": [*filled, *[None] * len(unread)]})
    return answers
