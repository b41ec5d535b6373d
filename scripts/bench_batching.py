"""Packed batches compared with padded batches on the default job: whole training steps on the same samples, in turn.

    python scripts/bench_batching.py [--steps 60] [--output result.json] [key=value ...]

A step is collation, forward, backward, clipping and the optimizer's update. Keys change the job as in `trainer train`.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from trainer.builders.training import Training, build_training
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.jobs import TrainJob
from trainer.config.stored import job_from_config
from trainer.data.batch_plan import BatchPlan
from trainer.data.batches import Batches
from trainer.loop import update_weights
from trainer.protocols import Batch, Batching
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
WARM_UP = 5


class Silent:
    """A report that ignores all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Ignore the event."""


def default_job(overrides: list[str]) -> TrainJob:
    register_defaults()
    config, _ = compose(CONF, "train", overrides)
    return job_from_config(plain(config)[0])


def build(job: TrainJob, batching: Batching, closing: ExitStack) -> Training:
    job = replace(job, loader=replace(job.loader, batching=batching))
    return build_training(job, "", RunOutputs(Silent()), None, closing)


def tokens(batch: Batch) -> tuple[int, int]:
    """Return the number of computed positions, and how many of them contain a token."""
    mask = batch.inputs.get("attention_mask", batch.inputs.get("sequence_ids"))
    assert mask is not None
    return mask.numel(), int((mask > 0).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    job = default_job(options.overrides)
    layouts: tuple[Batching, ...] = ("padded", "packed")
    with ExitStack() as closing:
        built = {layout: build(job, layout, closing) for layout in layouts}
        rows = built["padded"].encoded.splits["train"]
        plan = BatchPlan(len(rows), job.train.batch_size, job.seed)
        loaders = {layout: Batches(rows, built[layout].task, layout, job.seed) for layout in layouts}
        seconds: dict[str, list[float]] = {layout: [] for layout in layouts}
        computed = {layout: [0, 0] for layout in layouts}
        for step in range(options.steps + WARM_UP):
            part = plan.batch(step)
            for layout in layouts if step % 2 else reversed(layouts):
                started = time.perf_counter()
                batch = loaders[layout][part]
                update_weights(built[layout].run, step, [batch])
                if built[layout].run.device.type == "cuda":
                    torch.cuda.synchronize()
                if step >= WARM_UP:
                    seconds[layout].append(time.perf_counter() - started)
                    computed[layout] = [a + b for a, b in zip(computed[layout], tokens(batch), strict=True)]
    ratios = [padded / packed for padded, packed in zip(seconds["padded"], seconds["packed"], strict=True)]
    result = {
        "samples_per_second": {layout: job.train.batch_size / median(seconds[layout]) for layout in layouts},
        "share_of_padding": {layout: 1 - used / total for layout, (total, used) in computed.items()},
        "packed_over_padded": median(ratios),
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "device": str(built["padded"].run.device),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    for layout in layouts:
        rate, share = result["samples_per_second"][layout], result["share_of_padding"][layout]
        print(f"{layout:<8} {rate:8.1f} samples/s   {share:6.1%} of the computed positions are padding")
    print(f"packed / padded: {result['packed_over_padded']:.2f} (median of {options.steps} steps, the same batches)")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
