"""Plant wrong labels in the default data, and measure how many of them a sweep over folds lists first.

    python scripts/planted_label_errors.py FOLDER [--share 0.05] [--rows N] [--output FILE] [key=value ...]

The folder gets the data, the sweep and its `label_errors.csv`; the same command continues the sweep. Prints one JSON
object, and writes it to `--output`: `found` is the share of the planted errors among the first 2 x `share` of all rows.

`scripts/results/label_errors.json` is the result of a small encoder in four folds:

    python scripts/planted_label_errors.py FOLDER --output scripts/results/label_errors.json data.folds=4 model.dim=64 \
        model.depth=1 model.heads=2 model.hidden=128 task.max_length=64 optimizer.lr=3e-3 train.duration=5ep device=cpu
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
from pathlib import Path

from trainer.cli import main
from trainer.data.stdlib_docs import StdlibDocs


def write_data(file: Path, share: float, limit: int | None) -> set[int]:
    """Write the training and validation rows of the default data, some with a wrong label; return their numbers."""
    splits = StdlibDocs().load(["text", "label"])
    rows = [(row["text"], row["label"]) for name in ("train", "validation") for row in splits[name]]
    chance = random.Random(0)
    chance.shuffle(rows)
    rows = rows[:limit]
    labels = sorted({label for _, label in rows})
    planted = set(chance.sample(range(1, len(rows) + 1), round(share * len(rows))))
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for number, (text, label) in enumerate(rows, 1):
            others = [other for other in labels if other != label]
            writer.writerow([text, chance.choice(others) if number in planted else label])
    return planted


def measure(errors: Path, planted: set[int], num_rows: int, share: float) -> dict[str, float]:
    """Return the share of the planted errors that are listed first."""
    with errors.open(encoding="utf-8", newline="") as stream:
        listed = [int(row["row"]) for row in csv.DictReader(stream)]
    first = listed[: round(2 * share * num_rows)]
    found = len(planted & set(first)) / len(planted)
    return {"rows": num_rows, "planted": len(planted), "listed": len(listed), "first": len(first), "found": found}


def run() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--output", type=Path)
    arguments, keys = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    output = arguments.output and arguments.output.absolute()
    os.chdir(arguments.folder)
    planted = write_data(Path("planted.csv"), arguments.share, arguments.rows)
    with Path("planted.csv").open(encoding="utf-8", newline="") as stream:
        num_rows = sum(1 for _ in csv.DictReader(stream))
    job = [
        "data=files",
        "data.train=planted.csv",
        "data.folds=5",
        "data.split.test=0",
        "export.formats=[]",
        "sweep.name=planted",
        *keys,
    ]
    code = main(["train", "-m", *job])
    if not code:
        found = measure(Path("sweeps/planted/label_errors.csv"), planted, num_rows, arguments.share)
        result = json.dumps({"keys": keys, "share": arguments.share, **found})
        print(result)
        if output is not None:
            output.write_text(f"{result}\n", encoding="utf-8")
    return code


if __name__ == "__main__":
    raise SystemExit(run())
