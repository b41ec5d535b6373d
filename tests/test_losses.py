"""`trainer train loss=X` for every loss, on tasks whose targets it supports."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.jobs import train, working_in, write_roles
from trainer.cli import main
from trainer.config.groups import groups_in, own_folder
from trainer.config.signatures import attribute

LOSSES = groups_in([own_folder()]).options("loss")
TASKS = {
    "class": [[]],
    "multi_hot": [["task=multilabel_classification"]],
    "values": [["task=regression"]],
    "views": [[f"task=sentence_embedding task.supervision={how}"] for how in ("none", "pairs", "triplets")],
    "similarity": [["task=sentence_embedding task.supervision=scored"]],
    "spans": [["task=span_classification"]],
    "shares": [],
}
"""Text tasks for each type of target; only image tasks have shares, which `test_resume` trains on."""

OWN = {
    "kl_distillation": ["loss.teacher=teacher"],
    "hierarchical_softmax": ["loss.in_features=16"],
    "adaptive_softmax": ["loss.in_features=16", "loss.cutoffs=[1]"],
}


def supported_targets(loss: str) -> tuple[str, ...]:
    target = groups_in([own_folder()]).content("loss", loss)["_target_"]
    targets: tuple[str, ...] = attribute(target, "targets")
    return targets


def needs_sequences(loss: str) -> bool:
    return bool(attribute(groups_in([own_folder()]).content("loss", loss)["_target_"], "needs_sequences"))


JOBS = [
    (loss, *task)
    for loss in LOSSES
    for target in supported_targets(loss)
    for task in (["task=token_classification"],) * needs_sequences(loss) or TASKS[target]
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("losses")
    with working_in(folder):
        made = [*write_roles(folder), "train.duration=3"]
        assert train(folder / "teacher", *made) == 0
        yield made


def test_every_loss_declares_its_targets() -> None:
    assert len(LOSSES) == 17
    assert {target for loss in LOSSES for target in supported_targets(loss)} == TASKS.keys()


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_loss_trains_and_is_evaluated(job: tuple[str, ...], data: list[str], tmp_path: Path) -> None:
    loss, *task = job
    chosen = [f"loss={loss}", *(word for part in task for word in part.split()), *OWN.get(loss, [])]
    assert train(tmp_path / "run", *chosen, *data) == 0

    values = json.loads((tmp_path / "run/eval/test.json").read_text())
    assert math.isfinite(values["loss"])
    assert values["loss"] > 0


@pytest.mark.parametrize("loss", ["focal", "mse", "info_nce"])
def test_a_task_with_other_targets_is_an_error_that_lists_the_losses_that_fit(
    loss: str, capsys: pytest.CaptureFixture[str]
) -> None:
    task, target = ("text_classification", "class") if loss == "mse" else ("regression", "values")

    assert main(["train", f"task={task}", f"loss={loss}"]) == 2
    (message,) = capsys.readouterr().err.splitlines()
    assert message.startswith("loss: ")
    assert f"got '{loss}'" in message
    fitting = message.rpartition("Use one of ")[2].rstrip(".").split(", ")
    assert set(fitting) == {
        other for other in LOSSES if target in supported_targets(other) and not needs_sequences(other)
    }
