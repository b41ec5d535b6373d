"""Compare shuffled, balanced and class-weighted training on long-tailed data, over several seeds.

    python scripts/bench_sampling.py FOLDER [--variants NAME ...] [--seeds N ...] [key=value ...]

The training rows are docstrings of the standard library, of which the k-th most frequent of K topics keeps at most
300 r^(-k / (K - 1)) rows, where r = 50 (Cui et al. 2019, "Class-balanced loss based on effective number of samples",
for this form of a long tail). The validation and the test rows stay as they are. Prints the scores of the best weights
on the test split for each run, and a table with means.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
from collections import Counter
from pathlib import Path
from statistics import mean

import trainer
from trainer.data.stdlib_docs import StdlibDocs

VARIANTS = {
    "shuffled": [],
    "balanced": ["loader.sampler=balanced"],
    "class weights in the loss": ["loss=cross_entropy", "loss.weight=auto"],
}
METRICS = ("macro_f1", "accuracy")
MODEL = ["model.dim=64", "model.depth=1", "model.heads=4", "model.hidden=128"]
JOB = [*MODEL, "train.duration=20ep", "train.eval_every=2ep", "checkpoint.monitor=macro_f1", "export.formats=[]"]


def write_data(folder: Path) -> Counter[str]:
    """Write a file for each split; return the number of training rows of each topic."""
    splits = StdlibDocs().load(["text", "label"])
    sizes = Counter(row["label"] for row in splits["train"])
    ranks = {label: rank for rank, (label, _) in enumerate(sizes.most_common())}
    kept: Counter[str] = Counter()
    for name, rows in splits.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for row in rows:
                most = 300 * 50 ** (-ranks[row["label"]] / (len(ranks) - 1))
                if name == "train" and kept[row["label"]] >= most:
                    continue
                kept[row["label"]] += name == "train"
                writer.writerow([row["text"], row["label"]])
    return kept


def run() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments, keys = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.chdir(arguments.folder)
    sizes = write_data(Path())
    print(json.dumps({"training rows": sizes.most_common()}))
    data = ["data=files", *(f"data.{split}={split}.csv" for split in ("train", "validation", "test"))]
    table = []
    for name in arguments.variants:
        scores = []
        for seed in arguments.seeds:
            done = trainer.train(*data, *JOB, *VARIANTS[name], *keys, f"seed={seed}", verbose=False)
            scores.append({metric: done.metrics[metric] for metric in METRICS})
            print(json.dumps({"variant": name, "seed": seed, **scores[-1]}), flush=True)
        cells = [
            f"{mean(each[metric] for each in scores):.3f} ({', '.join(f'{each[metric]:.3f}' for each in scores)})"
            for metric in METRICS
        ]
        table.append(f"| {name} | {' | '.join(cells)} |")
    print("\n".join(["| training | macro F1 (each seed) | accuracy |", "| --- | --- | --- |", *table]))


if __name__ == "__main__":
    run()
