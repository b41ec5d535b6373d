"""Compare GlobalPointer, which finds spans in each other, with tags of the outermost spans, paired by seed.

    python scripts/study_spans.py [--seeds 3] [--rows 1200] [--output scripts/results/spans.json] [key=value ...]

Both methods see the same docstrings of `data=stdlib_spans`, with the same encoder and the same number of steps:

* `pointer`: `task=span_classification`, all spans;
* `tags`, `tags+crf`: `task=token_classification` on words with BIO tags of the outermost spans, which are all that tags
  can say.

The scores are F1 of the spans of the test split in characters, of all labels together: of all spans, of the outermost
ones, and of those in others. Of the predicted spans, the outermost ones are those that no other one contains. Spans
that are cut off by `task.max_length` count as not found. Finished runs in the output file are kept.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory
from typing import Any

from study_heads import T_975

from trainer.cli import main as trainer
from trainer.data.stdlib_spans import StdlibSpans

Span = tuple[int, int, str]

_WORD = re.compile(r"\w+|[^\w\s]")
COMMON = ["device=cpu", "train.duration=6ep", "optimizer.lr=0.002", "export.formats=[]", "logger.console=none"]
METHODS = {
    "pointer": ["task=span_classification"],
    "tags": ["task=token_classification"],
    "tags+crf": ["task=token_classification", "loss=crf"],
}


def outermost(spans: Iterable[Span]) -> set[Span]:
    """Return the spans that no other one contains; of equal places, the first label."""
    kept: list[Span] = []
    for span in sorted(spans, key=lambda each: (each[0], -each[1], each[2])):
        if not kept or span[1] > kept[-1][1]:
            kept.append(span)
    return {*kept}


def tag(text: str, spans: Sequence[Span]) -> tuple[list[str], list[str]]:
    """Return the words of a text and the BIO tags of its outermost spans."""
    words = [*_WORD.finditer(text)]
    tags = ["O"] * len(words)
    for start, end, label in outermost(spans):
        inside = [number for number, word in enumerate(words) if start <= word.start() and word.end() <= end]
        for place, number in enumerate(inside):
            tags[number] = f"{'I' if place else 'B'}-{label}"
    return [word[0] for word in words], tags


def write_splits(folder: Path, num_rows: int) -> list[tuple[str, set[Span]]]:
    """Write the files of both tasks; return the texts and the spans of the test split."""
    test = []
    for split, rows in StdlibSpans().load(("text", "spans")).items():
        step = max(1, len(rows) // num_rows)
        with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows.select(range(0, min(len(rows), step * num_rows), step)):
                spans = [(span["start"], span["end"], span["label"]) for span in row["spans"]]
                words, tags = tag(row["text"], spans)
                file.write(json.dumps({"text": row["text"], "spans": spans, "words": words, "tags": tags}) + "\n")
                if split == "test":
                    test.append((row["text"], {*spans}))
    return test


def predicted_spans(answer: dict[str, Any], text: str) -> set[Span]:
    """Return the spans of a prediction in characters."""
    if "tags" not in answer:
        return {(entity["start"], entity["end"], entity["type"]) for entity in answer["entities"]}
    words = [*_WORD.finditer(text)]
    return {
        (words[entity["start"]].start(), words[entity["end"] - 1].end(), entity["type"])
        for entity in answer["entities"]
    }


def f1(pairs: Sequence[tuple[set[Span], set[Span]]]) -> float:
    """Return F1 of predicted and actual spans."""
    both = sum(len(found & actual) for found, actual in pairs)
    return 2 * both / max(1, sum(len(found) + len(actual) for found, actual in pairs))


def train(method: str, seed: int, test: list[tuple[str, set[Span]]], overrides: list[str]) -> dict[str, Any]:
    """Train one run in the working folder and return its scores."""
    began = time.process_time()
    files = ["data=files", *(f"data.{split}={split}.jsonl" for split in ("train", "validation", "test"))]
    line = [*METHODS[method], *files, "data.cache_dir=cache", *COMMON, f"seed={seed}", *overrides]
    run = f"{method}-{seed}"
    assert trainer(["train", *line, f"run.dir={run}"]) == 0
    assert trainer(["predict", f"run={run}", "input=test.jsonl", f"output={run}.jsonl", "device=cpu"]) == 0
    answers = [json.loads(answer) for answer in Path(f"{run}.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [(predicted_spans(answer, text), spans) for answer, (text, spans) in zip(answers, test, strict=True)]
    outer = [(outermost(found), outermost(actual)) for found, actual in pairs]
    inner = [(found - outermost(found), actual - outermost(actual)) for found, actual in pairs]
    scores = {"all": f1(pairs), "outermost": f1(outer), "inner": f1(inner)}
    return {"method": method, "seed": seed, **scores, "processor_seconds": time.process_time() - began}


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean scores of each method, and for F1 of the outermost spans the paired difference from `tags`."""
    table = []
    for method in dict.fromkeys(run["method"] for run in runs):
        own = {run["seed"]: run for run in runs if run["method"] == method}
        row: dict[str, Any] = {"method": method, "seeds": len(own)}
        row |= {score: fmean(run[score] for run in own.values()) for score in ("all", "outermost", "inner")}
        flat = {run["seed"]: run for run in runs if run["method"] == "tags"}
        gains = [own[seed]["outermost"] - flat[seed]["outermost"] for seed in own if seed in flat]
        if method != "tags" and len(gains) > 1:
            half = T_975[len(gains) - 1] * stdev(gains) / math.sqrt(len(gains))
            row["outermost_gain"] = [fmean(gains), fmean(gains) - half, fmean(gains) + half]
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1200, help="texts of each split, at most")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    output = arguments.output and arguments.output.resolve()
    runs = json.loads(output.read_text())["runs"] if output and output.exists() else []
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        test = write_splits(Path(folder), arguments.rows)
        for seed in range(arguments.seeds):
            for method in arguments.methods.split(","):
                if all((run["method"], run["seed"]) != (method, seed) for run in runs):
                    runs.append(train(method, seed, test, arguments.overrides))
                    print(json.dumps(runs[-1]), flush=True)
                    if output:
                        document = {"python": platform.python_version(), "rows": arguments.rows, "runs": runs}
                        output.write_text(json.dumps({**document, "summary": summary(runs)}, indent=1) + "\n")
        os.chdir("/")
    for row in summary(runs):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
