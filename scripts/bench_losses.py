"""Compare the time of our losses with torch's cross entropy, and of hierarchical softmax with a full softmax.

Each round runs every variant once, so a slow moment of the machine affects all of them; medians are compared. Gradients
are set to None before each variant, as in the training loop. Class counts are proportional to 1 / rank (Zipf), and
targets are sampled by them; the optimizer is fused AdamW on dense gradients for both softmaxes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.focal import Focal
from trainer.loss.hierarchical_softmax import HierarchicalSoftmax

_WARMUP = 2
_SLOWDOWN = 1.3
_SPEEDUP = 20.0
_ROWS, _CLASSES = 4096, 32_000
_WORDS, _FEATURES = 100_000, 128


def main() -> None:
    """Measure, print a table and write it as JSON to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 1024], help="targets of a hierarchical batch")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--output", type=Path, help="JSON file")
    arguments = parser.parse_args()
    runs = []
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        runs.append({"threads": threads} | measure(arguments.batches, arguments.rounds))
    if arguments.output:
        result = {
            "logits": [_ROWS, _CLASSES],
            "words": _WORDS,
            "features": _FEATURES,
            "rounds": arguments.rounds,
            "optimizer": "AdamW, fused, dense gradients",
            "torch": torch.__version__,
            "python": platform.python_version(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "runs": runs,
        }
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


Seconds = dict[str, list[float]]
Ratios = dict[str, dict[str, float | str | bool]]


def measure(batches: list[int], rounds: int) -> dict[str, Any]:
    """Measure all variants with the current number of threads and print a table."""
    torch.manual_seed(0)
    seconds, ratios = time_logits_losses(rounds)
    for batch in batches:
        more_seconds, more_ratios = time_softmaxes(batch, rounds)
        seconds, ratios = seconds | more_seconds, ratios | more_ratios
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    print(f"threads: {torch.get_num_threads()}")
    for name, median in medians.items():
        print(f"{name:56}{1000 * median:9.1f} ms   {1000 * min(seconds[name]):9.1f} to {1000 * max(seconds[name]):.1f}")
    for name, ratio in ratios.items():
        target = f"      target {ratio['target']}: {'met' if ratio['met'] else 'MISSED'}" if "target" in ratio else ""
        print(f"{name:56}{ratio['value']:9.2f}{target}")
    return {"median_seconds": medians, "seconds": seconds, "ratios": ratios}


def time_logits_losses(rounds: int) -> tuple[Seconds, Ratios]:
    """Time forward and backward passes of our losses and of torch's over float32 logits."""
    logits = torch.randn(_ROWS, _CLASSES, requires_grad=True)
    target = torch.randint(_CLASSES, (_ROWS,))
    focal = Focal(gamma=2.0, alpha=None, label_smoothing=0.0, ignore_index=-100, class_counts=None)
    smoothed = CrossEntropy(weight=None, label_smoothing=0.1, ignore_index=-100, class_counts=None)
    plain = CrossEntropy(weight=None, label_smoothing=0.0, ignore_index=-100, class_counts=None)
    losses: dict[str, Callable[[], Tensor]] = {
        "torch's cross entropy": lambda: F.cross_entropy(logits, target, reduction="sum"),
        "torch's cross entropy, smoothed 0.1": lambda: F.cross_entropy(
            logits, target, reduction="sum", label_smoothing=0.1
        ),
        "cross_entropy": lambda: plain(logits, target),
        "cross_entropy, smoothed 0.1": lambda: smoothed(logits, target),
        "focal, gamma 2": lambda: focal(logits, target),
    }
    variants = {name: with_backward(loss, [logits]) for name, loss in losses.items()}
    seconds = time_in_turn(variants, rounds)
    reference = seconds["torch's cross entropy"]
    return seconds, {
        f"{name} / torch's cross entropy": at_most(median_ratio(values, reference), _SLOWDOWN)
        for name, values in seconds.items()
        if not name.startswith("torch's")
    }


def time_softmaxes(batch: int, rounds: int) -> tuple[Seconds, Ratios]:
    """Time a full and a hierarchical softmax over the same features, without and with the optimizer's step."""
    counts = [10_000_000 // rank + 1 for rank in range(1, _WORDS + 1)]
    target = torch.multinomial(torch.tensor(counts, dtype=torch.float64), batch, replacement=True)
    features = torch.randn(batch, _FEATURES, requires_grad=True)
    full = nn.Linear(_FEATURES, _WORDS)
    tree = HierarchicalSoftmax(_FEATURES, -100, _WORDS, counts)
    losses: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
        "full": (full, lambda: F.cross_entropy(full(features), target, reduction="sum")),
        "hierarchical": (tree, lambda: tree(features, target)),
    }
    variants: dict[str, Callable[[], object]] = {}
    for name, (module, loss) in losses.items():
        backward = with_backward(loss, [features, *module.parameters()])
        optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4, fused=True)
        variants[f"{name} softmax, {batch} targets"] = backward
        variants[f"{name} softmax, {batch} targets, with AdamW"] = lambda run=backward, step=optimizer.step: (
            run(),
            step(),
        )
    seconds = time_in_turn(variants, rounds)
    ratios: Ratios = {}
    for suffix in ("", ", with AdamW"):
        full_seconds, tree_seconds = (seconds[f"{name} softmax, {batch} targets{suffix}"] for name in losses)
        value = median_ratio(full_seconds, tree_seconds)
        # Updating all weights takes the same time for both, so this ratio has no target.
        ratios[f"full / hierarchical, {batch} targets{suffix}"] = (
            {"value": value} if suffix else at_least(value, _SPEEDUP)
        )
    return seconds, ratios


def with_backward(loss: Callable[[], Tensor], leaves: Iterable[Tensor]) -> Callable[[], None]:
    """Return a function that runs forward and backward passes without earlier gradients."""
    leaves = list(leaves)

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        loss().backward()

    return run


def time_in_turn(variants: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    """Return the seconds of each variant in each round after two warmup rounds; every other round runs in reverse."""
    seconds: Seconds = {name: [] for name in variants}
    for step in range(rounds + _WARMUP):
        for name in list(variants) if step % 2 else list(reversed(variants)):
            start = time.perf_counter()
            variants[name]()
            if step >= _WARMUP:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the ratio of the medians."""
    return statistics.median(ours) / statistics.median(theirs)


def at_most(value: float, target: float) -> dict[str, float | str | bool]:
    return {"value": value, "target": f"<= {target:g}", "met": value <= target}


def at_least(value: float, target: float) -> dict[str, float | str | bool]:
    return {"value": value, "target": f">= {target:g}", "met": value >= target}


if __name__ == "__main__":
    main()
