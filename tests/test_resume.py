"""A run that was stopped and resumed ends in the bytes of the one that never stopped."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.jobs import checkpoint_files, events, train, without_clock, working_in, write_data
from tests.support.toys import AUGMENTED
from trainer.cli import main

# 61 samples in batches of 8: 8 steps an epoch, the last of 5 samples; two epochs and a half.
STEPS = 20
Figure = Callable[[str, int, int], None]
STOPS = {"mid-epoch": 3, "before the last batch": 7, "end of the epoch": 8, "just after it": 9}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("resume")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1"]


def stop_at(run_dir: Path, step: int) -> None:
    """Leaves a run as a kill right after the checkpoint of `step` would have."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            shutil.rmtree(folder)


def assert_same_run(resumed: Path, whole: Path, step: int) -> None:
    assert checkpoint_files(resumed, STEPS) == checkpoint_files(whole, STEPS)
    tail = [event for event in events(resumed) if event["event"] != "resume"]
    after = [event for event in events(whole) if event["step"] > step]
    assert without_clock(tail[-len(after) :]) == without_clock(after)


OPTIONS = {
    "fp32": [],
    "bf16": ["precision=bf16"],
    "fp16": ["precision=fp16"],
    "no average": ["ema.decay=null"],
    "accumulation": ["train.accumulate=3"],
    "workers": ["loader.workers=2"],
    "padded": ["loader.batching=padded"],
    "bucketed": ["loader.batching=bucketed"],
    "sgd": ["optimizer=sgd", "optimizer.momentum=0.9", "scheduler=cosine", "loss=focal", "loss.alpha=auto"],
    "clipping off": ["train.max_grad_norm=null"],
    "augmented, batch norm": [*AUGMENTED, "train.accumulate=2"],
}

SLOW = {
    f"{name}, {precision}, {average}, accumulate {accumulate}, workers {workers}": [
        *parts,
        f"precision={precision}",
        f"ema.decay={average}",
        f"train.accumulate={accumulate}",
        f"loader.workers={workers}",
    ]
    for (name, parts), precision, average, accumulate, workers in itertools.product(
        {"plain": (), "augmented, batch norm": AUGMENTED}.items(),
        ("fp32", "bf16", "fp16"),
        ("null", "0.99"),
        (1, 3),
        (0, 2),
    )
}


def check(data: list[str], options: list[str], folder: Path, stops: dict[str, int], figure: Figure) -> None:
    keep = f"checkpoint.keep={STEPS}"
    assert train(folder / "whole", *data, *options, keep) == 0
    for step in stops.values():
        resumed = folder / f"resumed-{step}"
        shutil.copytree(folder / "whole", resumed)
        stop_at(resumed, step)
        assert main(["train", f"resume={resumed}", "trust=[tests]"]) == 0
        assert_same_run(resumed, folder / "whole", step)
    figure("resumed runs equal to the byte", len(stops), len(stops))


@pytest.mark.parametrize("name", OPTIONS)
def test_resumed_runs_end_in_the_same_bytes(name: str, data: list[str], tmp_path: Path, figure: Figure) -> None:
    check(data, OPTIONS[name], tmp_path, dict(list(STOPS.items())[:1]) if name == "workers" else STOPS, figure)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_every_combination(name: str, data: list[str], tmp_path: Path, figure: Figure) -> None:
    check(data, SLOW[name], tmp_path, STOPS, figure)


def test_changed_workers_draw_the_same_augmentations(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "whole", *data, *AUGMENTED, "checkpoint.keep=20") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    stop_at(tmp_path / "resumed", 5)

    assert main(["train", f"resume={tmp_path / 'resumed'}", "trust=[tests]", "loader.workers=1"]) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", 5)


def test_a_resume_of_a_resume_of_a_resume(data: list[str], tmp_path: Path) -> None:
    keep = f"checkpoint.keep={STEPS}"
    assert train(tmp_path / "whole", *data, keep) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    for step in (14, 9, 3):
        stop_at(tmp_path / "resumed", step)
        assert main(["train", f"resume={tmp_path / 'resumed'}"]) == 0
        assert_same_run(tmp_path / "resumed", tmp_path / "whole", step)


def test_workers_may_change_on_resume(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "whole", *data, "checkpoint.keep=20") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    stop_at(tmp_path / "resumed", 5)

    assert main(["train", f"resume={tmp_path / 'resumed'}", "loader.workers=2", "loader.prefetch=3"]) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", 5)


def test_auto_starts_a_run_and_goes_on_with_it(data: list[str], tmp_path: Path) -> None:
    keep = "checkpoint.keep=20"
    assert train(tmp_path / "whole", *data, keep) == 0
    assert train(tmp_path / "auto", *data, keep, "resume=auto") == 0
    assert checkpoint_files(tmp_path / "auto", STEPS) == checkpoint_files(tmp_path / "whole", STEPS)

    stop_at(tmp_path / "auto", 6)
    assert train(tmp_path / "auto", *data, keep, "resume=auto") == 0
    assert_same_run(tmp_path / "auto", tmp_path / "whole", 6)


def test_a_damaged_newest_checkpoint_is_survived(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tmp_path / "whole", *data, "checkpoint.keep=20") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    stop_at(tmp_path / "resumed", 6)
    weights = tmp_path / "resumed/checkpoints/step-00000006/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)

    assert main(["train", f"resume={tmp_path / 'resumed'}"]) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", 5)
    assert any("step-00000006" in record.message for record in caplog.records if record.levelname == "WARNING")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("optimizer.lr=0.5", "optimizer.lr: a resumed run keeps it: 0.001 -> 0.5"),
        ("train.batch_size=4", "train.batch_size: a resumed run keeps it: 8 -> 4"),
        ("loss=focal", "loss._target_: a resumed run keeps it"),
    ],
)
def test_what_is_learnt_may_not_change(
    change: str, told: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, "train.duration=2") == 0

    assert main(["train", f"resume={tmp_path / 'run'}", change]) == 2
    assert told in capsys.readouterr().err


def test_changed_data_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with working_in(tmp_path):
        data = write_data(tmp_path)
        assert train(tmp_path / "run", *data, "train.duration=2") == 0
        with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
            file.write("one more pear,fruit\n")

        assert main(["train", f"resume={tmp_path / 'run'}", "train.duration=4"]) == 3
    assert "data: the data has changed since the checkpoint was taken" in capsys.readouterr().err


@pytest.mark.parametrize("content", [None, "{{{"])
def test_a_run_that_lost_its_config_goes_on_by_its_checkpoints(
    content: str | None, data: list[str], tmp_path: Path
) -> None:
    assert train(tmp_path / "whole", *data, "checkpoint.keep=20") == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    stop_at(tmp_path / "resumed", 5)
    (tmp_path / "resumed" / "config.yaml").unlink()
    if content is not None:
        (tmp_path / "resumed" / "config.yaml").write_text(content)

    assert main(["train", f"resume={tmp_path / 'resumed'}"]) == 0
    assert_same_run(tmp_path / "resumed", tmp_path / "whole", 5)
