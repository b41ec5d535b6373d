"""Compare ways to train with less memory: logits in chunks with all logits at once, and checkpointed with other blocks.

    python scripts/bench_memory.py [--rounds 5] [--output scripts/results/memory.json]
    python scripts/bench_memory.py --rows 10000 1000000 10000000 [--steps 1000] [--output scripts/results/rows.json]

Each round runs every variant once, so a slow moment of the machine affects all of them; medians are compared. The peak
memory of logits is that of a process of its own beyond the memory before the step. The activations of a model are the
bytes of the tensors that exist when its backward pass begins.

With --rows, it instead measures the memory of `trainer train` on data of so many rows of 25 words: the largest
anonymous memory and the largest mapped part of files during one epoch, at most --steps steps of 1024 rows. The kernel
can take mapped files back whenever it needs memory. The rows are written as encoded data, as encoding so many takes
long: about 250 bytes of disk a row.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.builders.data import build_encoded, build_task
from trainer.builders.memory import LiveTensors
from trainer.config.compose import compose, plain, register_defaults
from trainer.config.stored import job_from_config
from trainer.data.encode import Encoded
from trainer.data.split_cache import write_index
from trainer.deferred_logits import DeferredLogits, sum_in_chunks
from trainer.loss.cross_entropy import CrossEntropy
from trainer.model.decoder import Decoder
from trainer.model.gradient_checkpointing import checkpoint_blocks
from trainer.model.resnet import ResNet
from trainer.model.text_encoder import TextEncoder
from trainer.model.vit import ViT

CONF = Path(__file__).parent.parent / "conf"
_TARGETS, _FEATURES = 4096, 256
_VOCABULARIES = (32_000, 128_000)
_SIZES: dict[str, Any] = {"dim": 256, "depth": 4, "heads": 4, "hidden": 1024, "dropout": 0.1}
_TOKENS: dict[str, Any] = {"vocab_size": 1000, "num_outputs": 15, "max_length": 128, "pooling": "mean", **_SIZES}
_IMAGES: dict[str, Any] = {"num_outputs": 10, "image_channels": 3, "image_size": (32, 32)}
_MIB = 2**20


def main() -> None:
    """Measure, print a table and write it as JSON to `--output`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs="+", help="measure memory on so many rows instead")
    parser.add_argument("--steps", type=int, default=1000, help="optimizer steps on the rows")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--peak", nargs=2, metavar=("VARIANT", "VOCABULARY"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(measure_peak(arguments.peak[0], int(arguments.peak[1])))
        return
    result: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    if arguments.rows:
        result["rows"] = {str(count): measure_rows(count, arguments.steps) for count in arguments.rows}
    else:
        result |= {"targets": _TARGETS, "features": _FEATURES, "rounds": arguments.rounds}
        result["logits"] = {str(size): measure_logits(size, arguments.rounds) for size in _VOCABULARIES}
        models = {name: measure_model(make, arguments.rounds) for name, make in MODELS.items()}
        result["gradient_checkpointing"] = models
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


# Logits


def logit_variants(vocabulary: int) -> dict[str, Callable[[], object]]:
    """Return a forward and backward pass of the last layer and the loss, for each way to compute them."""
    torch.manual_seed(0)
    features = torch.randn(_TARGETS, _FEATURES, requires_grad=True)
    weight = (0.02 * torch.randn(vocabulary, _FEATURES)).requires_grad_()
    bias = torch.zeros(vocabulary, requires_grad=True)
    target = torch.randint(vocabulary, (_TARGETS,))
    loss = CrossEntropy(None, 0.0, -100)
    output = DeferredLogits(features, weight, bias)
    losses: dict[str, Callable[[], Tensor]] = {
        "all logits": lambda: loss(output.compute(), target),
        "chunks": lambda: sum_in_chunks(loss, output, target),
    }
    # Since torch 2.13; with the larger vocabulary it takes minutes.
    if hasattr(F, "linear_cross_entropy") and vocabulary == min(_VOCABULARIES):
        options = torch.nn.LinearCrossEntropyOptions()
        losses["torch's linear_cross_entropy"] = lambda: F.linear_cross_entropy(
            features, weight, target, linear_bias=bias, reduction="sum", options=options
        )

    def with_backward(compute: Callable[[], Tensor]) -> Callable[[], None]:
        def update() -> None:
            for tensor in (features, weight, bias):
                tensor.grad = None
            (compute() / _TARGETS).backward()

        return update

    return {name: with_backward(compute) for name, compute in losses.items()}


def measure_peak(variant: str, vocabulary: int) -> int:
    """Return the bytes by which the peak memory of this process grows in a step."""
    step = logit_variants(vocabulary)[variant]
    before = peak_bytes()
    step()
    return peak_bytes() - before


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far; `getrusage` would include that of its parent."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def measure_logits(vocabulary: int, rounds: int) -> dict[str, Any]:
    """Return the median time and the peak memory of each way to compute the loss."""
    variants = logit_variants(vocabulary)
    seconds = time_in_turn(variants, rounds)
    command = [sys.executable, __file__, "--peak"]
    peaks = {
        name: int(subprocess.run([*command, name, str(vocabulary)], check=True, capture_output=True, text=True).stdout)
        for name in variants
    }
    for name, values in seconds.items():
        print(f"{vocabulary:7} {name:30} {statistics.median(values):7.3f} s  {peaks[name] / _MIB:8.0f} MiB")
    return {"seconds": seconds, "peak_bytes": peaks, "time_ratios": median_ratios(seconds, "all logits")}


# Gradient checkpointing


def make_tokens() -> dict[str, Tensor]:
    """Return a padded micro-batch of texts without padding."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1000, (16, 128), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def make_images() -> dict[str, Tensor]:
    """Return a micro-batch of images."""
    return {"pixel_values": torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))}


def make_bert() -> nn.Module:
    """Return a BERT of transformers with a linear head."""
    from transformers import BertConfig

    from trainer.model.pretrained import Pretrained
    from trainer.model.pretrained_loading import architecture_of

    config = BertConfig(
        vocab_size=1000, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )
    facts: dict[str, Any] = {"vocab_size": 1000, "num_outputs": 15, "max_length": 128}
    options: dict[str, Any] = {"path": "unused", "config": {}, "attention": None, "pretrained": False}
    return Pretrained(**facts, **options, architecture=architecture_of("AutoModel", config), pooling="mean")


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]]] = {
    "text_encoder": (lambda: TextEncoder(**_TOKENS), make_tokens),
    "decoder": (lambda: Decoder(**_TOKENS, tie_embeddings=False), make_tokens),
    "pretrained (BERT)": (make_bert, make_tokens),
    "vit": (lambda: ViT(**_IMAGES, **_SIZES, patch=4, pooling="mean"), make_images),
    "resnet": (lambda: ResNet(**_IMAGES, depth=20, width=16, shortcut="projection"), make_images),
}


def measure_model(
    parts: tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]]], rounds: int
) -> dict[str, Any]:
    """Return the median time of a forward and backward pass and the bytes of activations for each setting."""
    make, make_inputs = parts
    torch.manual_seed(0)
    model, inputs = make().train(), make_inputs()
    variants, stored = {}, {}
    for setting in ("none", "selective", "blocks"):
        copy = deepcopy(model)
        checkpoint_blocks(copy, setting)
        with LiveTensors(lambda copy=copy: [*copy.parameters(), *copy.buffers()]) as live:
            output = copy(**inputs)
        stored[setting] = live.count()
        del output
        variants[setting] = lambda copy=copy: copy(**inputs).sum().backward()
    seconds = time_in_turn(variants, rounds)
    for name, values in seconds.items():
        print(f"{type(model).__name__:12} {name:10} {statistics.median(values):7.3f} s  {stored[name] / _MIB:8.1f} MiB")
    return {"seconds": seconds, "activation_bytes": stored, "time_ratios": median_ratios(seconds, "none")}


# Rows


def measure_rows(count: int, steps: int) -> dict[str, float]:
    """Return the largest memory of a training process on so many rows, by kind, and its seconds."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["TRAINER_CACHE"] = str(folder / "cache")
        job = [*write_rows(folder, count), f"train.duration={min(steps, -(-count // 1024))}", "train.log_every=100"]
        command = [sys.executable, "-m", "trainer", "train", f"run.dir={folder / 'run'}", *job]
        peaks = {"RssAnon": 0, "RssFile": 0, "VmRSS": 0}
        start = time.perf_counter()
        with (folder / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            while process.poll() is None:
                for line in Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines():
                    kind, _, value = line.partition(":")
                    if kind in peaks:
                        peaks[kind] = max(peaks[kind], 1024 * int(value.split()[0]))
                time.sleep(0.05)
        if process.returncode:
            sys.exit((folder / "log").read_text(encoding="utf-8"))
        seconds = time.perf_counter() - start
    columns = "  ".join(f"{kind} {value / _MIB:6.0f} MiB" for kind, value in peaks.items())
    print(f"{count:10} rows  {columns}  {seconds:6.1f} s", flush=True)
    return {"anonymous_bytes": peaks["RssAnon"], "file_bytes": peaks["RssFile"], "bytes": peaks["VmRSS"]}


def write_rows(folder: Path, count: int) -> list[str]:
    """Encode a few texts, repeat the training rows with other digests, and return the keys of a job that reads them."""
    draw, words = random.Random(0), [f"w{index}" for index in range(500)]
    lines = (f"{' '.join(draw.choices(words, k=25))},c{index % 4}" for index in range(2000))
    (folder / "texts.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    keys = [
        *("data=files", f"data.train={folder / 'texts.csv'}", "task.vocab_size=600", "train.batch_size=1024"),
        *("model.dim=8", "model.depth=1", "model.heads=1", "model.hidden=8", "device=cpu", "export.formats=[]"),
    ]
    register_defaults()
    job = job_from_config(plain(compose(CONF, "train", keys)[0])[0])
    task = build_task(job)
    enlarge(build_encoded(job, task, fitted=False), task.state_dict(), count)
    return keys


def enlarge(encoded: Encoded, state: dict[str, Any], count: int) -> None:
    """Write the training split of a cache folder again, with its first rows repeated until there are `count`."""
    first = encoded.splits["train"].data[:1000]
    table = pa.concat_tables([first] * 32).combine_chunks()  # encoding writes blocks of about this size
    place, digests = table.column_names.index("input_digest"), np.random.default_rng(0)
    enlarged = encoded.folder / "train.enlarged"  # the rows are mapped from the file that it replaces
    with pa.OSFile(str(enlarged), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        for start in range(0, count, len(table)):
            part = table.slice(0, min(len(table), count - start))
            fresh = pa.array(digests.integers(-(2**62), 2**62, len(part)))
            writer.write_table(part.set_column(place, part.schema.field(place), fresh))
    enlarged.replace(encoded.folder / "train.arrow")
    (encoded.folder / "index.json").unlink()
    sizes = {split: len(rows) for split, rows in encoded.splits.items()} | {"train": count}
    write_index(encoded.folder, state=state, rows=sizes, warnings=[])


# Time


def time_in_turn(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each variant in each round; one more round comes first and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, float]:
    """Return the median over the rounds of each variant's time divided by the time of the reference."""
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[reference], strict=True))
        for name, values in seconds.items()
    }


if __name__ == "__main__":
    main()
