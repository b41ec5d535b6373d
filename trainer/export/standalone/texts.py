"""Reads texts.

Usage:
    python predict.py "a text" "another text"
    python predict.py rows.txt rows.jsonl rows.csv    a text a line, or the column `text`
    python predict.py < rows.txt
"""

from trainer.export.standalone.cells import as_text
from trainer.export.standalone.folder import Inputs, Row
from trainer.export.standalone.tokens import token_inputs, tokenizer


def read_line(line: str) -> Row:
    return {"text": line}


def encode(rows: list[Row]) -> Inputs:
    for row in rows:
        row["text"] = as_text(row["text"])
    return token_inputs([encoding.ids for encoding in tokenizer().encode_batch([row["text"] for row in rows])])
