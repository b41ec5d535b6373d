from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, Recorded, working_in, write_data
from tests.test_conf import job_of
from trainer.builders.data import build_encoded, build_task
from trainer.builders.training import (
    build_training,
    build_utilization,
    check_names,
    count_steps,
)
from trainer.builders.validation import select_monitor
from trainer.config.jobs import TrainJob
from trainer.data.encode import Encoded
from trainer.distributed.ranks import Ranks
from trainer.errors import ConfigError
from trainer.loop import fit
from trainer.model.text_encoder import TextEncoder
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
        select_monitor(job.checkpoint.monitor, job, task)
    for override, *expected in [
        ("checkpoint.monitor=null", "accuracy", True),
        ("checkpoint.monitor=macro_f1", "macro_f1", True),
        ("checkpoint.monitor=loss", "loss", False),
    ]:
        monitor, find_direction = select_monitor(job_of(override).checkpoint.monitor, job, task)
        assert [monitor, find_direction()] == expected


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


@pytest.mark.parametrize(
    ("overrides", "passes"),
    [
        ((), 1),
        (("task=masked_lm",), 1),
        (("task=causal_lm", "model=decoder"), 1),
        (("perturb=pgd", "perturb.moves=2", "perturb.start=1"), 3),
        (("perturb=r_drop", "perturb.start=1", "model.dropout=0.1"), 2),
    ],
    ids=["texts", "masked", "decoder", "pgd", "r_drop"],
)
def test_utilization_is_logged_if_the_peak_is_known_and_changes_no_weight(
    overrides: tuple[str, ...], passes: int, data: list[str]
) -> None:
    job = job_of(*data, *TINY, "train.duration=3", "checkpoint.every=100", "train.eval_every=100", *overrides)
    weights, logged = [], []
    for is_known in (False, True):
        report = Recorded()
        with ExitStack() as stack:
            built = build_training(job, "", RunOutputs(report), None, stack)
            run = built.run
            if is_known:
                peaks = {"cpu": {"fp32": 1e12}}
                used = build_utilization(built.task, run.model, "fp32", "cpu", run.ranks, peaks)
                run = replace(run, utilization=used)
            fit(run, built.state, lambda: False)
        weights.append(run.model.state_dict())
        logged.append([values for event, _, values in report.events if event == "train"])

    assert not any("mfu" in values for values in logged[0])
    for values, factor in zip(logged[1], (1, passes, passes), strict=True):
        samples, tokens = values["samples_per_second"], values["tokens_per_second"]
        expected = factor * used.flops.per_second(samples, tokens) / 1e12  # type: ignore[union-attr]
        assert values["mfu"] == pytest.approx(expected, rel=1e-12)
        assert values["mfu"] > 0
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name])


def test_images_are_counted_by_the_sizes_that_the_task_knows(tmp_path: Path) -> None:
    keys = ("task=image_classification", "data=digits", "model=convnet", "loader.limit=40", "device=cpu")
    with working_in(tmp_path), ExitStack() as stack:
        built = build_training(job_of(*keys), "", RunOutputs(Recorded()), None, stack)
        peaks = {"cpu": {"fp32": 1e12}}
        used = build_utilization(built.task, built.run.model, "fp32", "cpu", built.run.ranks, peaks)

    assert built.run.utilization is None
    assert used is not None
    assert used.mfu(1e6, 0.0) == pytest.approx(1e6 * used.flops.image / 1e12)
    # The first layer: 9 products and sums for each of 16 channels and 8 x 8 pixels, and much more in the other layers.
    assert used.flops.image > 3 * 2 * 9 * 16 * 64


def test_utilization_of_several_devices_is_a_share_of_the_sum_of_their_peaks(data: list[str]) -> None:
    class Others(Ranks):
        """Three processes with equal devices, as this one sees them."""

        def sum(self, *values: float) -> list[float]:
            return [3.0 * value for value in values]

    job, task, _ = prepared(data)
    model = TextEncoder(200, 3, 16, dim=16, depth=1, heads=2, hidden=16, dropout=0.1, pooling="mean")
    peaks = {"gpu": {"fp32": 1e12}}
    one, three = (build_utilization(task, model, job.precision, "gpu", ranks, peaks) for ranks in (Ranks(), Others()))

    assert one is not None
    assert three is not None
    assert three.peak == 3 * one.peak
    assert build_utilization(task, model, "bf16", "gpu", Others(), peaks) is None
