"""Makes model inputs of texts, pairs of texts and words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from trainer.export.bundle.predict import Folder, Inputs, Row


class Texts:
    """Reads texts.

    Usage:
        python predict.py "a text" "another text"
        python predict.py rows.txt rows.jsonl rows.csv    a text per line, or the column `text`
        python predict.py < rows.txt
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.as_document = folder.load("rows.py")["as_document"]

    def read_line(self, line: str) -> Row:
        return {"text": line}

    def encode(self, rows: list[Row]) -> Inputs:
        for row in rows:
            row["text"] = self.as_document(row["text"])
        encodings = open_tokenizer(self.folder).encode_batch([row["text"] for row in rows])
        return token_inputs([encoding.ids for encoding in encodings], self.folder)


class Pairs:
    """Reads pairs of texts.

    Usage:
        python predict.py "a text<TAB>a second one"
        python predict.py rows.txt rows.jsonl rows.csv    a tab between them, or the columns `text` and `text_pair`
        python predict.py < rows.txt
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.as_document = folder.load("rows.py")["as_document"]

    def read_line(self, line: str) -> Row:
        texts = line.split("\t")
        if len(texts) != 2:
            raise ValueError(f"expected two texts with a tab between, got {len(texts)}")
        return {"text": texts[0], "text_pair": texts[1]}

    def encode(self, rows: list[Row]) -> Inputs:
        tokenizer = open_tokenizer(self.folder)
        tokenizer.no_truncation()  # the tokenizer's own truncation is slow for long texts
        encodings = tokenizer.encode_batch(
            [(self.as_document(row["text"]), self.as_document(row["text_pair"])) for row in rows]
        )
        kept = [kept_places(encoding, self.folder.max_length) for encoding in encodings]
        types = [[each.type_ids[place] for place in places] for each, places in zip(encodings, kept, strict=True)]
        ids = [[each.ids[place] for place in places] for each, places in zip(encodings, kept, strict=True)]
        return {**token_inputs(ids, self.folder), "token_type_ids": padded(types, 0)}


class Words:
    """Reads words.

    Usage:
        python predict.py "Anna lives in Bern ."
        python predict.py rows.txt rows.jsonl rows.csv    white space between words; in .jsonl also a list `words`
        python predict.py < rows.txt
    """

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self.as_text = folder.load("rows.py")["as_text"]

    def read_line(self, line: str) -> Row:
        return {"words": json.loads(line) if line.lstrip().startswith("[") else line.split()}

    def encode(self, rows: list[Row]) -> Inputs:
        config = self.folder.manifest["provenance"].get("config", {"data": {"list_separator": " "}})
        separator = {" ": None, r"\t": "\t"}.get(config["data"]["list_separator"], config["data"]["list_separator"])
        for row in rows:
            if not isinstance(row["words"], list):
                text = self.as_text(row["words"])
                listed = json_list(text)
                row["words"] = (
                    [each for each in map(str.strip, text.split(separator)) if each] if listed is None else listed
                )
            row["words"] = [self.as_text(word) for word in row["words"]]
            if not row["words"]:
                raise ValueError("has no words")
        encodings = open_tokenizer(self.folder).encode_batch([row["words"] for row in rows], is_pretokenized=True)
        # Not a model input: the word of each token, -1 for tokens outside of words.
        words = padded([[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings], -1)
        return {**token_inputs([encoding.ids for encoding in encodings], self.folder), "words": words}


class Spans(Texts):
    """Reads texts.

    Usage:
        python predict.py "a text" "another"
        python predict.py rows.txt rows.jsonl rows.csv    a text per line, or the column `text`
        python predict.py < rows.txt
    """

    def encode(self, rows: list[Row]) -> Inputs:
        for row in rows:
            row["text"] = self.as_document(row["text"])
        encodings = open_tokenizer(self.folder).encode_batch([row["text"] for row in rows])
        # Not model inputs: the characters of each token, -1 for tokens that are no part of the text.
        places = [
            [
                (-1, -1) if special or start >= end else (start, end)
                for special, (start, end) in zip(
                    encoding.special_tokens_mask,
                    (strip_spaces(row["text"], *offsets) for offsets in encoding.offsets),
                    strict=True,
                )
            ]
            for row, encoding in zip(rows, encodings, strict=True)
        ]
        starts, ends = (padded([[place[side] for place in row] for row in places], -1) for side in (0, 1))
        return {**token_inputs([encoding.ids for encoding in encodings], self.folder), "starts": starts, "ends": ends}


READERS = {"texts": Texts, "pairs": Pairs, "words": Words, "spans": Spans}


def strip_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the places without white space at the ends; some tokenizers count the space before a word to it."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def json_list(text: str) -> list[object] | None:
    """Return the list that a cell contains as JSON if its parts are all strings or all numbers."""
    if not (text[:1] == "[" and text[-1:] == "]") or "[" in text[1:].partition('"')[0]:
        return None
    try:
        parts: list[object] = json.loads(text)
    except ValueError:
        return None
    same = all(isinstance(part, str) for part in parts) or all(isinstance(part, int | float) for part in parts)
    return parts if same else None


def open_tokenizer(folder: Folder) -> Tokenizer:
    tokenizer: Tokenizer = folder.open("tokenizer.json", Tokenizer.from_file)
    tokenizer.enable_truncation(folder.max_length)
    return tokenizer


def token_inputs(ids: list[list[int]], folder: Folder) -> Inputs:
    if not all(ids):
        raise ValueError("is empty after tokenization")
    mask = [[1] * len(row) for row in ids]
    return {"input_ids": padded(ids, folder.manifest["pad_id"]), "attention_mask": padded(mask, 0)}


def padded(rows: list[list[int]], fill: int) -> np.ndarray:
    width = max(map(len, rows))
    return np.array([[*row, *[fill] * (width - len(row))] for row in rows], dtype=np.int64)


def kept_places(encoding: Any, max_length: int) -> list[int]:
    """Truncate a pair: drop the last tokens of the longer text, then of both texts in turn."""
    text_of = np.array([-1 if text is None else text for text in encoding.sequence_ids])
    special, first, second = (np.flatnonzero(text_of == text) for text in (-1, 0, 1))
    room = max(0, max_length - len(special))
    shorter = min(len(first), len(second), room // 2)
    longer = room - shorter
    rooms = (shorter, longer) if len(first) <= len(second) else (longer, shorter)
    return sorted([*special, *first[: rooms[0]], *second[: rooms[1]]])
