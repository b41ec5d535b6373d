"""The cost of a training step compared with a hand-written loop and with the Trainer of transformers, in turn.

    python scripts/bench_loop.py [--rounds 9] [--steps 100] [--output result.json]

A micro BERT (1 layer of 32 features) makes the work around the model visible. All train on the same texts with the same
tokens, batch size, optimizer, schedule and clipping. The texts of `fixed` all have 64 tokens; the texts of `mixed`
have 8 to 64. The hand-written loop is what a careful user writes: token ids in lists, a DataLoader that pads each
batch, fused AdamW, clipping, a schedule, and one read of the loss per step to notice a divergence. With an average, it
keeps one by `torch._foreach_lerp_`. Times are medians of rounds, in milliseconds per step of this process's CPU time.

Trainer needs the package accelerate; without it, it is left out.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import platform
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from trainer.builders.training import Training, build_training
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config
from trainer.loop import fit
from trainer.model.pretrained_loading import quiet
from trainer.run import RunOutputs

CONF = Path(__file__).parent.parent / "conf"
BATCH = 32
LENGTH = 64
Rounds = Callable[[int], None]
"""Train so many further steps."""


class Silence:
    """A report that drops all events."""

    def log(self, event: str, *, step: int, epoch: float, values: Any) -> None:
        """Drop an event."""


def write_inputs(folder: Path, shortest: int) -> None:
    """Write a CSV file of random texts of `shortest` to `LENGTH` tokens in four classes, and a model's config."""
    from transformers import BertConfig

    draw = random.Random(0)
    words = [f"w{index}" for index in range(500)]
    with (folder / "texts.csv").open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for index in range(6400):
            # Two special tokens; every word is in the vocabulary.
            rows.writerow([" ".join(draw.choices(words, k=draw.randint(shortest, LENGTH) - 2)), f"c{index % 4}"])
    config = BertConfig(
        vocab_size=1000,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=128,
        max_position_embeddings=LENGTH,
    )
    config.architectures = ["BertModel"]
    (folder / "bert").mkdir()
    config.to_json_file(folder / "bert" / "config.json")


def build_ours(folder: Path, closing: ExitStack, *overrides: str) -> Training:
    """Build the job of this tool."""
    register_defaults()
    arguments = [
        "data=files",
        f"data.train={folder / 'texts.csv'}",
        "model=pretrained",
        f"model.path={folder / 'bert'}",
        "model.pretrained=false",
        f"task.max_length={LENGTH}",
        "task.tokenizer=null",
        "task.vocab_size=1000",
        f"train.batch_size={BATCH}",
        "train.duration=100000",
        "train.max_grad_norm=1.0",
        "device=cpu",
        *overrides,
    ]
    config, _ = compose(CONF, "train", arguments)
    return build_training(job_from_config(plain(config)[0]), "", RunOutputs(Silence()), None, closing)


def our_rounds(built: Training) -> Rounds:
    def train(steps: int) -> None:
        counts = replace(
            built.run.steps, total=built.state.step + steps, log_every=10, eval_every=None, save_every=None
        )
        fit(replace(built.run, steps=counts), built.state, lambda: False)

    return train


class MeanPooled(nn.Module):
    """A BERT, the mean of its last hidden states, and a linear layer."""

    def __init__(self, folder: Path, num_labels: int) -> None:
        from transformers import AutoConfig, AutoModel

        super().__init__()
        with quiet():
            self.base = AutoModel.from_config(AutoConfig.from_pretrained(folder), add_pooling_layer=False)
        self.head = nn.Linear(32, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (B, C), and the mean `loss` if `labels` are given."""
        hidden = self.base(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def encoded_rows(built: Training) -> list[dict[str, Any]]:
    """Return the training split as lists of ids and labels."""
    rows = built.encoded.splits["train"]
    columns = zip(rows["input_ids"], rows["label"], strict=True)
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": label} for ids, label in columns]


def hand_written_rounds(folder: Path, rows: list[dict[str, Any]], *, average: bool) -> Rounds:
    torch.manual_seed(0)
    model = MeanPooled(folder / "bert", 4).train()
    averaged = deepcopy(model).requires_grad_(False) if average else None
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 100_000)

    def collate(samples: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = [torch.tensor(sample["input_ids"]) for sample in samples]
        return {
            "input_ids": pad_sequence(ids, batch_first=True),
            "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], batch_first=True),
            "labels": torch.tensor([sample["labels"] for sample in samples]),
        }

    def batches() -> Iterator[dict[str, Tensor]]:
        while True:
            yield from DataLoader(rows, batch_size=BATCH, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

    stream = batches()

    def train(steps: int) -> None:
        for _ in range(steps):
            loss = model(**next(stream))["loss"]
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if averaged is not None:
                with torch.no_grad():
                    torch._foreach_lerp_(list(averaged.parameters()), list(model.parameters()), 0.001)
            if not math.isfinite(loss.item()):
                raise SystemExit("bench_loop: the hand-written loop diverged")

    return train


def trainer_rounds(folder: Path, rows: list[dict[str, Any]], steps: int, clock: list[float]) -> Rounds:
    """Train with transformers' Trainer; `clock` receives the seconds of all steps but the first ten."""
    from transformers import DataCollatorWithPadding, PreTrainedTokenizerFast, Trainer, TrainerCallback
    from transformers import TrainingArguments as Arguments
    from transformers.trainer_callback import PrinterCallback

    skipped = 10

    class Timed(TrainerCallback):  # type: ignore[misc]
        started = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == skipped:
                self.started = time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step == steps + skipped:
                clock.append(time.process_time() - self.started)

    from tokenizers import Tokenizer, models

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[PAD]": 0}, "[PAD]")), pad_token="[PAD]"
    )
    torch.manual_seed(0)
    model = MeanPooled(folder / "bert", 4)

    def train(_: int) -> None:
        arguments = Arguments(
            output_dir=str(folder / "out"),
            max_steps=steps + skipped,
            per_device_train_batch_size=BATCH,
            learning_rate=5e-4,
            weight_decay=0.01,
            max_grad_norm=1.0,
            logging_steps=10,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,  # type: ignore[arg-type]
            data_collator=DataCollatorWithPadding(tokenizer),
            callbacks=[Timed()],
        )
        trainer.remove_callback(PrinterCallback)
        with quiet():
            trainer.train()

    return train


def measure(folder: Path, shortest: int, options: argparse.Namespace, closing: ExitStack) -> dict[str, float]:
    """Return the median CPU milliseconds per step of each loop on texts of `shortest` to `LENGTH` tokens."""
    write_inputs(folder, shortest)
    jobs = {
        "ours, padded": ("loader.batching=padded", "ema.decay=null"),
        "ours, packed": ("loader.batching=packed", "ema.decay=null"),
        "ours, padded, average": ("loader.batching=padded", "ema.decay=0.999"),
    }
    built = {name: build_ours(folder, closing, *overrides) for name, overrides in jobs.items()}
    rows = encoded_rows(built["ours, padded"])
    clock: list[float] = []
    loops = {name: our_rounds(each) for name, each in built.items()}
    loops["hand-written"] = hand_written_rounds(folder, rows, average=False)
    loops["hand-written, average"] = hand_written_rounds(folder, rows, average=True)
    for train in loops.values():
        train(20)
    if find_spec("accelerate") is not None:
        loops["transformers"] = trainer_rounds(folder, rows, options.steps, clock)
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(options.rounds):
        for name, train in loops.items():
            started = time.process_time()
            train(options.steps)
            seconds = clock.pop() if name == "transformers" else time.process_time() - started
            times[name].append(1000 * seconds / options.steps)
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=100, help="optimizer steps of a round")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
        "milliseconds": {},
        "ratio": {},
    }
    for kind, shortest in (("fixed", LENGTH), ("mixed", 8)):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as closing:
            times = measure(Path(folder), shortest, options, closing)
        ratios = {
            name: value / times["hand-written, average" if "average" in name else "hand-written"]
            for name, value in times.items()
        }
        result["milliseconds"][kind], result["ratio"][kind] = times, ratios
        for name, value in times.items():
            print(f"{kind}  {name:<22} {value:7.2f} ms  {ratios[name]:5.2f}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
