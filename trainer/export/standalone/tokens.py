"""Texts as padded token ids."""

from functools import cache

import numpy as np
from tokenizers import Tokenizer

from trainer.export.standalone.folder import Inputs, opened, read_json


@cache
def tokenizer() -> Tokenizer:
    made: Tokenizer = opened("tokenizer.json", Tokenizer.from_file)
    made.enable_truncation(max_length())
    return made


@cache
def max_length() -> int:
    return int(read_json("manifest.json")["axes"]["sequence"][1])


def token_inputs(ids: list[list[int]]) -> Inputs:
    if not all(ids):
        raise ValueError("the tokenizer leaves nothing of the text")
    pad_id = read_json("manifest.json")["pad_id"]
    return {"input_ids": padded(ids, pad_id), "attention_mask": padded([[1] * len(row) for row in ids], 0)}


def padded(rows: list[list[int]], fill: int) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], dtype=np.int64)
