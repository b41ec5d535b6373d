"""Complete jobs for tests: small data files and tiny models, run through the command line in this process."""

import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from trainer.cli import main
from trainer.documents import MEASURED_VALUES
from trainer.report.events import read_events

WORDS = {
    "fruit": ["apple", "banana", "cherry", "grape", "lemon", "mango", "orange", "peach", "pear", "plum"],
    "tool": ["axe", "chisel", "drill", "hammer", "knife", "lathe", "pliers", "saw", "spanner", "wrench"],
    "animal": ["badger", "cat", "dog", "eagle", "fox", "goat", "horse", "ibis", "jackal", "koala"],
}

TINY = (
    "model.dim=16",
    "model.depth=1",
    "model.heads=2",
    "model.hidden=16",
    "task.vocab_size=200",
    "task.max_length=16",
    "train.batch_size=8",
    "train.log_every=1",
    "export.formats=[]",
    "logger.console=none",
    "logger.tensorboard=false",
    "device=cpu",
)


TWO_FILES = ("data.train=[train.jsonl,test.jsonl]", "data.test=null", "data.split.test=0")
"""Training on two of the files of `write_roles`, in the working directory."""

TWO_SETS = ("data.validation={one:validation.jsonl,two:test.jsonl}", "data.test=null", "data.split.test=0")
"""Two validation sets of the files of `write_roles`, in the working directory."""


class Recorded:
    """A report that records its events."""

    def __init__(self) -> None:
        self.events: list[tuple[str, int, dict[str, Any]]] = []

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        self.events.append((event, step, dict(values)))


def rows(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """Return unique texts of random length with words of one category and a few of another, each with its category."""
    random = np.random.default_rng(seed)
    categories = list(WORDS)
    texts = []
    for number in range(count):
        category = categories[random.integers(len(categories))]
        words = [*random.choice(WORDS[category], size=random.integers(2, 9)), *random.choice(WORDS["tool"], size=2)]
        texts.append((f"{' '.join(random.permutation(words))} {number}", category))
    return texts


def write_csv(path: Path, count: int = 61, seed: int = 0) -> Path:
    """Write a CSV file with the columns `text` and `label`."""
    lines = [f"{text},{label}" for text, label in rows(count, seed)]
    path.write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    return path


def write_data(folder: Path) -> list[str]:
    """Write a training file of 61 texts, a validation and a test file; return the overrides of a job on them."""
    sizes = {"train": 61, "validation": 20, "test": 20}
    files = {split: write_csv(folder / f"{split}.csv", size, seed) for seed, (split, size) in enumerate(sizes.items())}
    return ["data=files", *(f"data.{split}={file}" for split, file in files.items()), f"data.cache_dir={folder}/cache"]


def write_roles(folder: Path, count: int = 61) -> list[str]:
    """Write JSON Lines files with a column for every role of the text tasks; return the overrides of a job on them."""
    files = []
    for seed, (split, size) in enumerate({"train": count, "validation": 20, "test": 20}.items()):
        lines = []
        for number, (text, category) in enumerate(rows(size, seed)):
            words = text.split()
            line = {
                "text": text,
                "label": category,
                "labels": sorted({category, *(other for other, known in WORDS.items() if {*known} & {*words})}),
                "value": float(len(words)),
                "text_pair": " ".join(WORDS[category][:3]),
                "positive": f"{category} {words[0]}",
                "negative": f"wrong {words[-1]}",
                "score": float(number % 2),
                "words": words,
                "tags": ["B-tool" if word in WORDS["tool"] else "O" for word in words],
                "spans": spans_of(text),
            }
            lines.append(json.dumps(line))
        file = folder / f"{split}.jsonl"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        files.append(f"data.{split}={file}")
    return ["data=files", *files, f"data.cache_dir={folder}/cache"]


def spans_of(text: str) -> list[dict[str, Any]]:
    """Return a span for each tool of a text, and for each two tools that follow each other."""
    places = [(match.start(), match.end()) for match in re.finditer(r"\w+", text) if match[0] in WORDS["tool"]]
    spans = [{"start": start, "end": end, "label": "tool"} for start, end in places]
    pairs = itertools.pairwise(places)
    return spans + [{"start": first, "end": last, "label": "pair"} for (first, _), (_, last) in pairs]


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Change the working directory and the encoding cache during the block; modules of the folder end with it."""
    before, cache = Path.cwd(), os.environ.get("TRAINER_CACHE")
    os.chdir(folder)
    os.environ["TRAINER_CACHE"] = str(folder / "encoded-cache")
    try:
        yield
    finally:
        os.chdir(before)
        sys.path[:] = [entry for entry in sys.path if entry != str(folder)]
        for name, module in list(sys.modules.items()):
            if Path(getattr(module, "__file__", None) or "/").parent == folder:
                del sys.modules[name]  # a test in another folder may write a module of the same name
        if cache is None:
            del os.environ["TRAINER_CACHE"]
        else:
            os.environ["TRAINER_CACHE"] = cache


def train(run_dir: Path, *overrides: str) -> int:
    """Run `trainer train` into a run folder; return the exit code."""
    return main(["train", *TINY, f"run.dir={run_dir}", *overrides])


def events(run_dir: Path, name: str | None = None) -> list[dict[str, Any]]:
    """Return the events of `metrics.jsonl`, or only those of one type."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name is None or line["event"] == name]


def without_clock(logged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return events by step, without the values that depend on the machine's speed and memory.

    A checkpoint is reported once it is on the disk, perhaps during or after the next step: it is the last of its step.
    """
    in_order = sorted(logged, key=lambda event: (event["step"], event["event"] == "checkpoint"))
    return [{key: value for key, value in event.items() if key not in MEASURED_VALUES} for event in in_order]


def checkpoint_files(run_dir: Path, step: int) -> dict[str, bytes]:
    """Return every file of a checkpoint except its config and manifest: the complete state of the run."""
    folder = run_dir / "checkpoints" / f"step-{step:08d}"
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.name not in ("config.yaml", "MANIFEST.json")
    }


def checkpoint_steps(run_dir: Path) -> list[int]:
    """Return the steps of a run's checkpoints, ascending."""
    return sorted(int(folder.name.removeprefix("step-")) for folder in (run_dir / "checkpoints").glob("step-*"))


def stop_at(run_dir: Path, step: int) -> None:
    """Leave a run as a kill right after the checkpoint of `step` would: without the later checkpoints."""
    for later in checkpoint_steps(run_dir):
        if later > step:
            shutil.rmtree(run_dir / "checkpoints" / f"step-{later:08d}")


def assert_same_end(resumed: Path, whole: Path, step: int) -> None:
    """Check that a run resumed at `step` ended in the bytes of the whole run and logged the same events."""
    end = checkpoint_steps(whole)[-1]
    assert checkpoint_files(resumed, end) == checkpoint_files(whole, end)
    expected = [event for event in read_events(whole / "metrics.jsonl") if event["step"] > step]
    tail = [event for event in read_events(resumed / "metrics.jsonl") if event["event"] != "resume"]
    assert without_clock(tail[-len(expected) :]) == without_clock(expected)


def assert_resumes(whole: Path, step: int, *overrides: str) -> None:
    """Resume a copy of a whole run from the checkpoint of `step`, and check that it ends in the same bytes."""
    resumed = whole.with_name(f"{whole.name}-resumed-{step}")
    shutil.copytree(whole, resumed)
    stop_at(resumed, step)
    assert main(["train", f"resume={resumed}", *overrides]) == 0
    assert_same_end(resumed, whole, step)
