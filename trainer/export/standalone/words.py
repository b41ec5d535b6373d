"""Reads words.

Usage:
    python predict.py "Anna lives in Bern ."
    python predict.py rows.txt rows.jsonl rows.csv    white space between words; in .jsonl a list `words`, too
    python predict.py < rows.txt
"""

import json

from trainer.export.standalone.cells import as_text
from trainer.export.standalone.folder import Inputs, Row, read_json
from trainer.export.standalone.tokens import padded, token_inputs, tokenizer


def read_line(line: str) -> Row:
    return {"words": json.loads(line) if line.lstrip().startswith("[") else line.split()}


def encode(rows: list[Row]) -> Inputs:
    config = read_json("manifest.json")["provenance"].get("config", {"data": {"list_separator": " "}})
    separator = None if config["data"]["list_separator"] == " " else config["data"]["list_separator"]
    for row in rows:
        if not isinstance(row["words"], list):
            row["words"] = [part for part in map(str.strip, as_text(row["words"]).split(separator)) if part]
        row["words"] = [as_text(word) for word in row["words"]]
        if not row["words"]:
            raise ValueError("holds no words")
    encodings = tokenizer().encode_batch([row["words"] for row in rows], is_pretokenized=True)
    # Not for the model: which word each token is of, -1 for those of none.
    words = padded([[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings], -1)
    return {**token_inputs([encoding.ids for encoding in encodings]), "words": words}
