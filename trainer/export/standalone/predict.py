"""Classifies texts with the model in this folder.

    python predict.py "a text" "another text"
    python predict.py < texts.txt        one text a line
    python predict.py --check            the golden inputs must give the golden output

Prints one JSON object for each text: the label and its probability. Needs onnxruntime, numpy and tokenizers.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parent
BATCH_SIZE = 32


def read_json(name: str) -> Any:
    return json.loads((FOLDER / name).read_text("utf-8"))


def open_session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(FOLDER / "model.onnx"), providers=["CPUExecutionProvider"])


def open_tokenizer(max_length: int) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(max_length)
    tokenizer.enable_padding()  # the attention mask hides the padding, so any id serves
    return tokenizer


def predict(texts: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The label and its probability for each text."""
    session, labels = open_session(), read_json("labels.json")
    tokenizer = open_tokenizer(max_length=read_json("manifest.json")["axes"]["sequence"][1])
    remaining = iter(texts)
    while batch := list(islice(remaining, BATCH_SIZE)):
        encodings = tokenizer.encode_batch(batch)
        inputs = {
            "input_ids": np.array([encoding.ids for encoding in encodings], dtype=np.int64),
            "attention_mask": np.array([encoding.attention_mask for encoding in encodings], dtype=np.int64),
        }
        (logits,) = session.run(None, inputs)
        for row in softmax(logits.astype(np.float64)):
            best = int(row.argmax())
            yield {"label": labels[best], "probability": round(float(row[best]), 6)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits (B, C) to probabilities."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: np.ndarray = powers / powers.sum(axis=-1, keepdims=True)
    return probabilities


def check() -> bool:
    """Whether the model gives the golden output for the golden inputs, within the tolerance it was proved with."""
    tolerance = float(read_json("manifest.json")["tolerance"])
    with np.load(FOLDER / "golden.npz", allow_pickle=False) as golden:
        inputs = {name.removeprefix("input."): golden[name] for name in golden.files if name.startswith("input.")}
        expected = golden["output"]
    (got,) = open_session().run(None, inputs)
    difference = float(np.abs(got - expected).max()) if got.shape == expected.shape else float("inf")
    equal = difference <= tolerance
    print(f"{'ok' if equal else 'FAILED'}: largest difference {difference:.3g}, tolerance {tolerance:g}")
    return equal


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="default: the lines of standard input")
    parser.add_argument(
        "--check", action="store_true", help="compare with the golden output, exit code 1 if it differs"
    )
    arguments = parser.parse_args()
    if arguments.check:
        return 0 if check() else 1
    for prediction in predict(arguments.texts or (line.rstrip("\n") for line in sys.stdin)):
        print(json.dumps(prediction, ensure_ascii=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
