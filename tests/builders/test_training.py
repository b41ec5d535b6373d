from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, Recorded, working_in, write_data
from tests.test_conf import job_of
from trainer.builders.data import build_encoded, build_task
from trainer.builders.training import build_device, build_training, check_names, count_steps, select_monitor
from trainer.config.jobs import TrainJob
from trainer.data.encode import Encoded
from trainer.errors import ConfigError
from trainer.protocols import Task
from trainer.run import RunOutputs

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> Iterator[list[str]]:
    with working_in(tmp_path):
        yield write_data(tmp_path)


def prepared(data: list[str], *overrides: str) -> tuple[TrainJob, Task, Encoded]:
    job = job_of(*data, *TINY, *overrides)
    task = build_task(job)
    return job, task, build_encoded(job, task, fitted=False)


def test_a_missing_device_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"device: is not available on this machine, got 'cuda:99'.*device=cpu"):
        build_device("cuda:99")
    assert (build_device("auto").type == "cuda") == torch.cuda.is_available()


def test_each_of_several_processes_needs_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    for name in ("cuda:0", "mps"):
        with pytest.raises(ConfigError, match=f"device: names a single device.*3 processes.*'{name}'"):
            build_device(name)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"devices: this machine has 2 CUDA devices.*got 3"):
        build_device("auto")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert build_device("cuda") == torch.device("cuda", 1)


def test_all_import_errors_are_reported_before_the_data_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = job_of("loss._target_=torch.nn.MSELos", "optimizer._target_=torch.optim.Addam", "data=files", "data.train=no")
    with pytest.raises(ConfigError) as caught:
        build_training(job, "", RunOutputs(Recorded()), None, ExitStack())
    loss, optimizer = caught.value.messages
    assert loss.startswith("loss._target_: ")
    assert "MSELoss" in loss
    assert optimizer.startswith("optimizer._target_: ")
    assert "Adam" in optimizer
    assert caplog.records == []  # no log lines of Hydra's own


def test_an_unknown_metric_suggests_the_nearest_one(data: list[str]) -> None:
    job, task, _ = prepared(data)
    job = replace(job, checkpoint=replace(job.checkpoint, monitor="acuracy"))

    with pytest.raises(ConfigError, match=r"checkpoint\.monitor: .*got 'acuracy'. Did you mean accuracy"):
        select_monitor(job, task)
    assert select_monitor(job_of("checkpoint.monitor=loss"), task) == ("loss", False)
    assert select_monitor(job_of(), task) == ("accuracy", True)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.duration=3ep", "train.eval_every=0.5ep", "checkpoint.every=50%"], (24, 4, 12)),
        (["train.duration=10", "train.eval_every=10%", "checkpoint.every=7st"], (10, 1, 7)),
    ],
)
def test_durations_are_converted_to_steps(overrides: list[str], expected: tuple[int, int, int]) -> None:
    steps = count_steps(job_of(*overrides), steps_per_epoch=8)

    assert (steps.total, steps.eval_every, steps.save_every) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.freeze=[blocks.99]"],
        ["model.freeze=[{match: blocks.99, until: 50%}]"],
        ["model.lora={targets: [blocks.99]}"],
        ["optimizer.overrides=[{match: blocks.99, lr: 0.1}]"],
        ["prune=l1", "prune.targets=[blocks.99]"],
    ],
)
def test_wrong_names_are_reported_before_the_data_is_encoded(
    data: list[str], overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path / "cache"))
    job = job_of(*data, *TINY, *overrides)

    with ExitStack() as stack, pytest.raises(ConfigError, match=r"blocks\.99"):
        build_training(job, "", RunOutputs(Recorded()), None, stack)
    assert not list(tmp_path.glob("cache/encoded/*/index.json"))
    assert not list(tmp_path.glob("cache/encoded/*/train.arrow"))


def test_checking_names_changes_no_random_number_and_logs_nothing(
    data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    job, task, _ = prepared(data, "model.freeze=[blocks.0]")
    caplog.clear()
    before = torch.get_rng_state()

    check_names(job, task)

    assert torch.equal(torch.get_rng_state(), before)
    assert not caplog.records
