"""Prints a JSON object for each: `words`, their `tags` (null for a word past the end of what is read), `entities`.

An entity has a `type` and is the words from `start` to before `end`.
"""

import numpy as np

from trainer.export.standalone.folder import Inputs, Row, read_json


def answer(logits: np.ndarray, rows: list[Row], inputs: Inputs, top: int) -> list[Row]:
    names = read_json("tags.json")
    answers: list[Row] = []
    for row, best, words in zip(rows, logits.argmax(axis=-1).tolist(), inputs["words"].tolist(), strict=True):
        # The first token of a word has its tag.
        tag_of = {word: names[number] for word, number in zip(reversed(words), reversed(best), strict=True)}
        tags = [tag_of.get(word) for word in range(len(row["words"]))]
        marked = any(name.startswith(("B-", "I-")) for name in names)
        answers.append({"words": row["words"], "tags": tags, **({"entities": entities(tags)} if marked else {})})
    return answers


def entities(tags: list[str | None]) -> list[Row]:
    """Where the type changes, at B, S and U, and after E, S, L and U, an entity ends and another may begin."""
    found: list[Row] = []
    closed = True
    for place, tag in enumerate(tags):
        if tag is None or tag == "O":
            closed = True
            continue
        prefix, kind = (tag[0], tag[2:]) if tag[1:2] == "-" and tag[0] in "BIESLU" else ("S", tag)
        if closed or prefix in "BSU" or kind != found[-1]["type"]:
            found.append({"type": kind, "start": place, "end": place})
        found[-1]["end"] = place + 1
        closed = prefix in "ESLU"
    return found
