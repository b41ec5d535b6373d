"""Metrics that a job adds to those of its task: reported, monitored, and refused where they do not fit."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torchmetrics import Metric

from tests.support.jobs import assert_resumes, checkpoint_files, events, train, working_in, write_roles
from trainer.builders.data import build_encoded, build_task
from trainer.builders.metrics import build_metrics, check_metrics
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.jobs import TrainJob
from trainer.config.metrics import metric_name
from trainer.errors import ConfigError
from trainer.protocols import Task
from trainer.task.regression import Regression

AUROC = "{_target_: torchmetrics.AUROC, name: area}"
ADDED = f"metrics=[auroc,mcc,top_2_accuracy,{AUROC}]"


class Largest(Metric):
    """A user's metric: the largest output, for a task whose outputs are numbers."""

    full_state_update = False
    higher_is_better = True
    value: Tensor

    def __init__(self, scale: float, num_outputs: int) -> None:
        super().__init__()
        self.scale, self.num_outputs = scale, num_outputs
        self.add_state("value", default=torch.tensor(-torch.inf, dtype=torch.float64), dist_reduce_fx="max")

    def update(self, output: Tensor, target: Tensor) -> None:
        assert output.shape == target.shape
        self.value = torch.maximum(self.value, target.max().double())

    def compute(self) -> Tensor:
        return self.value * self.scale


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("metrics")
    with working_in(folder):
        yield [*write_roles(folder), "train.duration=8", "train.eval_every=4", "loader.eval_batch_size=8"]


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that adds metrics and monitors one of them."""
    folder = tmp_path_factory.mktemp("run") / "run"
    assert train(folder, *data, ADDED, "checkpoint.monitor=auroc", "checkpoint.every=4") == 0
    return folder


def fitted(data: list[str], *overrides: str) -> tuple[TrainJob, Task]:
    single = check_command("train", [*data, *overrides]).single
    assert single is not None
    assert isinstance(single.job, TrainJob)
    task = build_task(single.job)
    build_encoded(single.job, task, fitted=False)
    return single.job, task


def test_added_metrics_are_reported_and_monitored(run: Path, data: list[str], tmp_path: Path) -> None:
    (first, *_, last) = events(run, "eval")
    assert list(first)[5:] == ["loss", "accuracy", "macro_f1", "area", "auroc", "mcc", "top_2_accuracy"]
    assert first["area"] == pytest.approx(first["auroc"], abs=1e-6)
    score = json.loads((run / "eval/test.json").read_text(encoding="utf-8"))
    assert score["auroc"] == last["auroc"]
    state = json.loads((run / "checkpoints/step-00000008/state.json").read_text(encoding="utf-8"))
    assert state["score"]["name"] == "auroc"

    plain = tmp_path / "plain"
    assert train(plain, *data, "checkpoint.every=4") == 0
    for file in ("model.safetensors", "optimizer.safetensors", "ema.safetensors"):
        assert checkpoint_files(plain, 8)[file] == checkpoint_files(run, 8)[file]


def test_a_run_resumes_with_its_metrics_and_with_others(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", f"resume={run}"]) == 3
    assert "metrics.3._target_: a stored config may name metrics only without their class" in capsys.readouterr().err
    assert_resumes(run, 4, "trust=[torchmetrics.AUROC]")
    resumed = run.with_name("run-resumed-4")
    changed = ["metrics=[auroc,weighted_f1]", "train.duration=9", "trust=[torchmetrics.AUROC]"]
    assert main(["train", f"resume={resumed}", *changed]) == 0
    assert "weighted_f1" in events(resumed, "eval")[-1]


def test_eval_adds_other_metrics_to_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["eval", f"run={run}", "trust=[torchmetrics.AUROC]", "split=validation", "device=cpu"]
    assert main([*command, "metrics=[cohen_kappa,accuracy]"]) == 0
    assert "cohen_kappa" in capsys.readouterr().out
    assert main([*command, "metrics=[kappa]"]) == 2
    assert capsys.readouterr().err == ("metrics.0: there is no such metric, got 'kappa'. Did you mean cohen_kappa?\n")


def test_a_users_metric_gets_values_in_the_units_of_the_data(data: list[str]) -> None:
    entry: dict[str, Any] = {"_target_": "tests.builders.test_metrics.Largest", "scale": 2.0}
    job, task = fitted(data, "task=regression")
    job = replace(job, metrics=[entry, "max_error"])
    check_metrics(job, task)
    metrics = build_metrics(job, task)
    metrics.update(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))
    assert isinstance(task, Regression)
    (mean,), (std,) = task.regression_target.mean, task.regression_target.std
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values["largest"] == pytest.approx(2 * (mean + std))
    assert values["max_error"] == pytest.approx(std)


@pytest.mark.parametrize(
    ("overrides", "messages"),
    [
        (["metrics=[auroch]"], ["metrics.0: there is no such metric, got 'auroch'. Did you mean auroc?"]),
        (
            ["metrics=[top_K_accuracy,1,{name: x}]"],
            [
                "metrics.0: needs a number above 0 in place of K",
                "metrics.1: must be a metric",
                "metrics.2: must be a metric",
            ],
        ),
        (["metrics=[mape]"], ["metrics.0: is a metric of numbers, but the targets of the task are classes"]),
        (
            ["task=regression", "metrics=[auroc]"],
            ["metrics.0: is a metric of classes or sets of labels, but the targets of the task are numbers"],
        ),
        (["task=token_classification", "metrics=[auroc]"], ["but the targets of the task are tags"]),
        (["task=causal_lm", "model=decoder", "metrics=[mcc]"], ["but the targets of the task are tokens"]),
        (
            ["task=multilabel_classification", "metrics=[cohen_kappa]"],
            ["but the targets of the task are sets of labels"],
        ),
        (["metrics=[auroc,auroc]"], ["metrics: two metrics have the same name, got 'auroc'"]),
        (["metrics=[{_target_: torchmetrics.Accuracy}]"], ["metrics.0.name: is the name of a value that the task"]),
        (["metrics=[{_target_: torchmetrics.AUROC, name: a b}]"], ["metrics.0.name: must be a word"]),
        (["metrics=[{_target_: no_such.Metric}]"], ["metrics.0._target_: there is no package no_such"]),
        (["checkpoint.monitor=auroc"], ["checkpoint.monitor: must be a metric", "Add it to metrics"]),
        (["metrics=[auroc]", "checkpoint.monitor=aurok"], ["checkpoint.monitor", "Did you mean auroc"]),
    ],
)
def test_errors_before_torch(data: list[str], overrides: list[str], messages: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        check_command("train", [*data, *overrides])
    for message in messages:
        assert message in str(error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("top_9_accuracy", "metrics.0: has more classes at the top than there are (3)"),
        ({"_target_": "torchmetrics.AUROC", "average": "none"}, "must compute one number, but computes a tensor"),
        (
            {"_target_": "torchmetrics.AUROC", "average": "none"},
            "torchmetrics.AUROC'. Set average: macro, for example.",
        ),
        ({"_target_": "torchmetrics.ConfusionMatrix"}, "torchmetrics.ConfusionMatrix'. Name another metric."),
        ({"_target_": "torchmetrics.StatScores"}, "torchmetrics.StatScores'. Name another metric."),
        ({"_target_": "builtins.dict"}, "metrics.0._target_: must make a torchmetrics.Metric, but makes dict"),
        ({"_target_": "torchmetrics.MeanSquaredError"}, "metrics.0: does not work for this task (RuntimeError"),
        ({"_target_": "torch.nn.Identity"}, "metrics.0._target_: must make a torchmetrics.Metric, but makes Identity"),
        ({"_target_": "torchmetrics.NoSuch"}, "metrics.0._target_: there is no NoSuch in torchmetrics"),
    ],
)
def test_errors_before_the_rows_are_encoded(data: list[str], entry: Any, message: str) -> None:
    job, task = fitted(data)
    with pytest.raises(ConfigError) as error:
        check_metrics(replace(job, metrics=[entry]), task)
    assert message in str(error.value)


def test_remedies_work_when_they_are_carried_out(data: list[str]) -> None:
    job, task = fitted(data)
    for entry in (
        {"_target_": "torchmetrics.AUROC", "average": "macro"},
        {"_target_": "torchmetrics.CalibrationError", "n_bins": 3},
        {"_target_": "torchmetrics.AUROC", "sync_on_compute": False},
    ):
        check_metrics(replace(job, metrics=[entry]), task)
    for wrong in ("top_K_accuracy", "top_0_accuracy", "top_k_accuracy", "topaccuracy", "xyz"):
        with pytest.raises(ConfigError) as error:
            check_command("train", [*data, f"metrics=[{wrong}]"])
        remedy = str(error.value).partition("got ")[2].partition(". ")[2]
        names = re.findall(r"\w+", remedy.partition(":")[2] if "Known" in remedy else remedy)
        advised = [name for name in names if name.endswith("accuracy") or "Known" in remedy]
        assert advised, remedy
        for name in advised:
            check_command("train", [*data, f"metrics=[{name}]"])


def test_names_of_classes() -> None:
    names = {"AUROC": "auroc", "F1Score": "f1_score", "MeanSquaredError": "mean_squared_error", "my": "my"}
    assert {name: metric_name({"_target_": f"a.b.{name}"}) for name in names} == names
