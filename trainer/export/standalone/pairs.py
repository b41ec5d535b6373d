"""Reads pairs of texts.

Usage:
    python predict.py "a text<TAB>a second one"
    python predict.py rows.txt rows.jsonl rows.csv    a tab between them, or the columns `text` and `text_pair`
    python predict.py < rows.txt
"""

from typing import Any

import numpy as np

from trainer.export.standalone.cells import as_text
from trainer.export.standalone.folder import Inputs, Row
from trainer.export.standalone.tokens import max_length, padded, token_inputs, tokenizer


def read_line(line: str) -> Row:
    texts = line.split("\t")
    if len(texts) != 2:
        raise ValueError(f"expected two texts with a tab between, got {len(texts)}")
    return {"text": texts[0], "text_pair": texts[1]}


def encode(rows: list[Row]) -> Inputs:
    tokenizer().no_truncation()  # its own is slow where much is cut
    encodings = tokenizer().encode_batch([(as_text(row["text"]), as_text(row["text_pair"])) for row in rows])
    kept = [kept_places(encoding) for encoding in encodings]
    types = [[encoding.type_ids[place] for place in places] for encoding, places in zip(encodings, kept, strict=True)]
    ids = [[encoding.ids[place] for place in places] for encoding, places in zip(encodings, kept, strict=True)]
    return {**token_inputs(ids), "token_type_ids": padded(types, 0)}


def kept_places(encoding: Any) -> list[int]:
    """Of a pair that is too long the last tokens of the longer text go, then of both by turns."""
    text_of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    special, first, second = (np.flatnonzero(text_of == text) for text in (-1, 0, 1))
    room = max(0, max_length() - len(special))
    shorter = min(len(first), len(second), room // 2)
    longer = room - shorter
    rooms = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
    return sorted([*special, *first[: rooms[0]], *second[: rooms[1]]])
