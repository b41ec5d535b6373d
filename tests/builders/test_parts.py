from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import TINY, Recorded, working_in, write_data
from tests.test_conf import job_of
from trainer.builders.data import build_encoded, build_task, loader_options
from trainer.builders.loss import build_loss
from trainer.builders.model import build_model, check_model
from trainer.builders.optimizer import build_optimizer, build_schedule
from trainer.builders.training import build_device, build_training, count_steps, select_monitor
from trainer.config.jobs import TrainJob
from trainer.data.batches import Batches
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


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"device: is not available on this machine, got 'cuda:99'.*device=cpu"):
        build_device("cuda:99")
    assert (build_device("auto").type == "cuda") == torch.cuda.is_available()


def test_parts_that_cannot_be_imported_are_told_together_before_the_data_is_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    job = job_of("loss._target_=torch.nn.MSELos", "optimizer._target_=torch.optim.Addam", "data=files", "data.train=no")
    with pytest.raises(ConfigError) as caught:
        build_training(job, "", RunOutputs(Recorded()), None, ExitStack())
    assert caught.value.messages == (
        "loss._target_: there is no MSELos in torch.nn, got 'torch.nn.MSELos'. Did you mean MSELoss.",
        "optimizer._target_: there is no Addam in torch.optim, got 'torch.optim.Addam'. Did you mean Adam.",
    )
    assert caplog.records == []  # Hydra says nothing of its own


def test_a_model_without_a_packed_path_says_what_to_do(data: list[str]) -> None:
    job, task, encoded = prepared(data)
    job = replace(job, model={"_target_": "torch.nn.Embedding", "num_embeddings": 9, "embedding_dim": 2})
    model = build_model(job, task, None, None)

    batches = Batches(encoded.splits["train"], task, "packed", job.seed)
    with pytest.raises(ConfigError, match=r"loader\.batching: torch\.nn\.Embedding does not accept this batch.*padded"):
        check_model(job, model, batches)


def test_a_model_that_cannot_read_token_by_token_is_told_before_it_is_trained(data: list[str]) -> None:
    job, task, encoded = prepared(data)
    job = replace(job, export=job.export | {"formats": ["onnx", "onnx_cache"]})
    batches = Batches(encoded.splits["train"], task, "packed", job.seed)
    with pytest.raises(ConfigError, match=r"export\.formats: this model cannot decode token by token.*or name a GPT-2"):
        check_model(job, build_model(job, task, None, None), batches)


def test_decay_spares_biases_norms_and_embeddings(data: list[str]) -> None:
    job, task, _ = prepared(data, "optimizer.weight_decay=0.5")
    model = build_model(job, task, None, None)
    optimizer = build_optimizer(job, model, build_loss(job, task, CPU))
    decay = {name: group["weight_decay"] for group in optimizer.param_groups for name in group["param_names"]}

    assert decay["model.head.weight"] == 0.5
    assert {decay[f"model.{name}"] for name in ("head.bias", "norm.weight", "token_embedding.weight")} == {0.0}
    assert decay.keys() == {f"model.{name}" for name, _ in model.named_parameters()}
    assert all(group["initial_lr"] == 0.001 for group in optimizer.param_groups)


@pytest.mark.parametrize(("warmup", "steps"), [("10%", 4), ("0.5ep", 4), ("3st", 3), ("6", 6)])
def test_a_warmup_is_a_duration(warmup: str, steps: int) -> None:
    schedule = build_schedule(job_of("scheduler=linear", f"scheduler.warmup={warmup}"), 8, 40)

    assert schedule(steps) == 1.0
    assert schedule(steps - 1) < 1.0
    assert schedule(40) == 0.0


def test_an_unknown_metric_names_the_nearest(data: list[str]) -> None:
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
def test_durations_become_steps(overrides: list[str], expected: tuple[int, int, int]) -> None:
    steps = count_steps(job_of(*overrides), steps_per_epoch=8)

    assert (steps.total, steps.eval_every, steps.save_every) == expected


def test_pinned_memory_follows_the_device_unless_it_is_said() -> None:
    def pinned(device: str, *overrides: str) -> Any:
        return loader_options(job_of(*overrides), torch.device(device), "packed").pin_memory

    assert (pinned("cpu"), pinned("cuda"), pinned("cuda", "loader.pin_memory=false")) == (False, True, False)
