"""The memory of a CUDA device: what happens when it runs out, and what it does not depend on."""

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.jobs import WORDS, Recorded, assert_resumes, events, train, working_in
from tests.test_conf import job_of
from trainer.builders.training import build_training
from trainer.run import RunOutputs

pytestmark = pytest.mark.gpu

MEGABYTE = 2**20
STEPS = 4
# A token stores some multiples of 200 kB for the backward pass, and the model has 7 MB of weights: what a step needs is
# its samples, 400 tokens each.
WIDE = [
    *(
        "model.dim=16",
        "model.depth=1",
        "model.heads=2",
        "model.hidden=50000",
        "model.dropout=0.0",
        "model.pooling=mean",
    ),
    *("task.vocab_size=200", "task.max_length=512", "train.batch_size=8", "train.log_every=1", "ema.decay=null"),
    *("optimizer=sgd", "optimizer.lr=0.01", f"train.duration={STEPS}", "train.eval_every=100", "checkpoint.every=1"),
    *(
        "loader.eval_batch_size=1",
        "export.formats=[]",
        "logger.console=none",
        "logger.tensorboard=false",
        "device=cuda",
    ),
    f"checkpoint.keep={STEPS}",
]
FITS_TWO = 1000
"""Megabytes for the weights and one to three samples."""

FITS_NONE = 120
"""Megabytes for the weights and less than one sample."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """The overrides of a job with texts of 400 words."""
    folder = tmp_path_factory.mktemp("memory")
    with working_in(folder):
        for split, count in (("train", 40), ("few", 8), ("many", 80)):
            rows = []
            for number in range(count):
                label = list(WORDS)[number % 3]
                text = " ".join(WORDS[label][(number + place) % 10] for place in range(400))
                rows.append(json.dumps({"text": f"{text} {number}", "label": label}))
            (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
        files = (f"data.train={folder}/train.jsonl", f"data.validation={folder}/few.jsonl", "data.split.test=0")
        yield ["data=files", *files, f"data.cache_dir={folder}/cache"]


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Return a function that lets this process use only so many megabytes more of the device."""
    total = torch.cuda.get_device_properties(0).total_memory

    def set_limit(megabytes: int) -> None:
        torch.cuda.empty_cache()
        allowed = torch.cuda.memory_reserved() + megabytes * MEGABYTE
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))

    yield set_limit
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(run_dir / f"checkpoints/step-{STEPS:08d}/model.safetensors")
    return weights


def used_accumulate(run_dir: Path) -> Any:
    state = json.loads((run_dir / f"checkpoints/step-{STEPS:08d}/state.json").read_text(encoding="utf-8"))
    return state["accumulate"]["used"]


def test_a_step_without_enough_memory_is_repeated_in_smaller_micro_batches(
    data: list[str], tmp_path: Path, limit: Callable[[int], None]
) -> None:
    assert train(tmp_path / "plain", *data, *WIDE) == 0
    limit(FITS_TWO)
    assert train(tmp_path / "limited", *data, *WIDE) == 0

    found = events(tmp_path / "limited", "out_of_memory")
    assert found
    assert {event["step"] for event in found} == {0}
    assert used_accumulate(tmp_path / "limited") == found[-1]["accumulate"] >= 2
    plain, limited = (final_weights(tmp_path / name) for name in ("plain", "limited"))
    torch.testing.assert_close(limited, plain, rtol=0, atol=1e-5)
    assert_resumes(tmp_path / "limited", 2)


def test_auto_finds_micro_batches_that_fit(data: list[str], tmp_path: Path, limit: Callable[[int], None]) -> None:
    limit(FITS_TWO)
    assert train(tmp_path / "auto", *data, *WIDE, "train.accumulate=auto") == 0

    assert used_accumulate(tmp_path / "auto") >= 2
    assert events(tmp_path / "auto", "out_of_memory") == []
    assert_resumes(tmp_path / "auto", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "train.accumulate: a single sample does not fit into memory, got 8"),
        (["train.accumulate=auto"], "train.accumulate: a single sample does not fit into memory, got 8"),
        (["loader.tokens=1024"], "loader.tokens: a micro-batch does not fit into memory, got 1024"),
    ],
    ids=["step", "auto", "tokens"],
)
def test_what_does_not_fit_is_named(
    options: list[str],
    message: str,
    data: list[str],
    tmp_path: Path,
    limit: Callable[[int], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    limit(FITS_NONE)
    assert train(tmp_path / "run", *data, *WIDE, *options) == 2

    assert message in capsys.readouterr().err


def test_gradient_checkpointing_and_micro_batches_save_memory(
    data: list[str], tmp_path: Path, limit: Callable[[int], None]
) -> None:
    limit(10**9)
    peaks = {}
    for name, options in {
        "plain": ["model.depth=3"],
        "blocks": ["model.depth=3", "model.gradient_checkpointing=blocks"],
        "four": ["model.depth=3", "train.accumulate=4"],
    }.items():
        assert train(tmp_path / name, *data, *WIDE, *options) == 0
        peaks[name] = max(event["memory"] for event in events(tmp_path / name, "train"))

    assert peaks["blocks"] < 0.7 * peaks["plain"]
    assert peaks["four"] < 0.5 * peaks["plain"]


def test_memory_of_evaluation_does_not_grow_with_the_data(
    data: list[str], limit: Callable[[int], None], tmp_path: Path
) -> None:
    limit(10**9)
    peaks = []
    for split in ("few", "many"):
        validation = data[1].replace("data.train=", "data.validation=").replace("train.jsonl", f"{split}.jsonl")
        with ExitStack() as closing:
            job = job_of(*data, *WIDE, validation)
            run = build_training(job, "", RunOutputs(Recorded()), None, closing).run
            run.validation.evaluate(run.model, run.loss)
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run.validation.evaluate(run.model, run.loss)
            peaks.append(torch.cuda.max_memory_allocated() - before)

    assert peaks[1] < peaks[0] + MEGABYTE
