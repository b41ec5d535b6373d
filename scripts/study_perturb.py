"""Compare training with perturbed steps with training without, paired by seed.

    python scripts/study_perturb.py [--methods none,long,fgm,pgd,awp,r_drop] [--seeds 3]
                                    [--output scripts/results/perturb.json] [key=value ...]

Every run is the default job on 1,200 of its texts, which the default encoder learns by heart: a perturbation is said to
help such a model. `none` is the job itself, and the other methods are options of the group `perturb` with their
defaults. All have the same number of steps, so a perturbed run takes two to four times as long; `long` is `none` with
twice as many steps, which costs as much as two passes a step.

The results are the loss and the accuracy of the last weights and of their average on each split, and for each method
the mean difference from `none` with its 95 % interval (Student's t over the seeds). Finished runs in the output file
are kept, so an interrupted study goes on.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from study_heads import CONF, T_975, Silent, scores

from trainer.builders.training import build_training
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config
from trainer.loop import fit
from trainer.run import RunOutputs

LENGTH = 8
METHODS = {
    "none": [],
    "long": [f"train.duration={2 * LENGTH}ep"],
    **{option: [f"perturb={option}"] for option in ("fgm", "pgd", "awp", "r_drop")},
}
JOB = ["loader.limit=1200", f"train.duration={LENGTH}ep", "ema.decay=0.99", "device=cpu"]


def train(method: str, seed: int, overrides: list[str]) -> dict[str, Any]:
    """Train one run and return its scores."""
    register_defaults()
    config, _ = compose(CONF, "train", [*JOB, *METHODS[method], f"seed={seed}", *overrides])
    job = job_from_config(plain(config)[0])
    began = time.process_time()
    with ExitStack() as closing:
        built = build_training(job, "", RunOutputs(Silent()), None, closing)
        run = replace(built.run, steps=replace(built.run.steps, eval_every=None, save_every=None))
        fit(run, built.state, lambda: False)
        assert run.ema is not None
        models = {"weights": run.model, "average": run.ema.module}
        results = {
            name: {split: scores(built, model, split) for split in ("train", "validation", "test")}
            for name, model in models.items()
        }
    seconds = time.process_time() - began
    return {"method": method, "seed": seed, "steps": run.steps.total, "processor_seconds": seconds, **results}


def differences(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return for each method the mean difference from `none`, paired by seed."""
    table = []
    found = {(run["method"], run["seed"]): run for run in runs}
    for method in dict.fromkeys(run["method"] for run in runs if run["method"] != "none"):
        seeds = [seed for each, seed in found if each == method and ("none", seed) in found]
        for weights, split, metric in (
            ("weights", "validation", "loss"),
            ("weights", "validation", "accuracy"),
            ("weights", "test", "accuracy"),
            ("average", "test", "accuracy"),
        ):
            values = [
                found[method, seed][weights][split][metric] - found["none", seed][weights][split][metric]
                for seed in seeds
            ]
            if len(values) > 1:
                half = T_975.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))
                name = f"{weights}, {split} {metric}"
                table.append({"method": method, "of": name, "mean": fmean(values), "interval": half, "seeds": seeds})
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(METHODS), help="names, joined by commas")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, starting at 0")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    runs = json.loads(options.output.read_text())["runs"] if options.output and options.output.exists() else []
    done = {(run["method"], run["seed"]) for run in runs}
    for seed in range(options.seeds):
        for method in options.methods.split(","):
            if (method, seed) in done:
                continue
            runs.append(run := train(method, seed, options.overrides))
            shown = (
                f"{name} {split} {run[name][split]['loss']:.3f} {run[name][split]['accuracy']:.3f}"
                for name in ("weights", "average")
                for split in ("train", "validation", "test")
            )
            print(f"{method:<8} seed {seed}  {run['processor_seconds']:4.0f} s CPU  {'  '.join(shown)}", flush=True)
            if options.output:
                result = {
                    "differences": differences(runs),
                    "runs": runs,
                    "overrides": options.overrides,
                    "torch": torch.__version__,
                    "machine": platform.processor() or platform.machine(),
                }
                options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in differences(runs):
        seeds = len(row["seeds"])
        print(f"{row['method']:<8} {row['of']:<30} {row['mean']:+.4f} ± {row['interval']:.4f} ({seeds} seeds)")


if __name__ == "__main__":
    main()
