"""`trainer train loss=X` for every loss there is, on a task whose targets it takes."""

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
    "shares": [],
}
"""The tasks over texts of each kind of target; images alone have shares, which `test_resume` trains on."""

OWN = {
    "kl_distillation": ["loss.teacher=teacher"],
    "hierarchical_softmax": ["loss.in_features=16"],
    "adaptive_softmax": ["loss.in_features=16", "loss.cutoffs=[1]"],
}


def kinds(loss: str) -> tuple[str, ...]:
    target = groups_in([own_folder()]).content("loss", loss)["_target_"]
    found: tuple[str, ...] = attribute(target, "targets")
    return found


JOBS = [(loss, *task) for loss in LOSSES for kind in kinds(loss) for task in TASKS[kind]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("losses")
    with working_in(folder):
        made = [*write_roles(folder), "train.duration=3"]
        assert train(folder / "teacher", *made) == 0
        yield made


def test_every_loss_says_what_targets_it_takes() -> None:
    assert len(LOSSES) == 15
    assert {kind for loss in LOSSES for kind in kinds(loss)} == TASKS.keys()


@pytest.mark.parametrize("job", JOBS, ids=" ".join)
def test_trains_and_is_evaluated(job: tuple[str, ...], data: list[str], tmp_path: Path) -> None:
    loss, *task = job
    chosen = [f"loss={loss}", *(word for part in task for word in part.split()), *OWN.get(loss, [])]
    assert train(tmp_path / "run", *chosen, *data) == 0

    found = json.loads((tmp_path / "run/eval/test.json").read_text())
    assert math.isfinite(found["loss"])
    assert found["loss"] > 0


@pytest.mark.parametrize("loss", LOSSES)
def test_a_task_with_other_targets_is_refused_with_what_fits(loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    unfit = "task=regression" if "values" not in kinds(loss) else "task=text_classification"
    kind = "values" if unfit == "task=regression" else "class"

    assert main(["train", unfit, f"loss={loss}", *OWN.get(loss, [])]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith(f"loss: takes {' or '.join(kinds(loss))} targets, the task has {kind}, got ")
    fitting = told.partition("These fit: ")[2].rstrip(".").split(", ")
    assert set(fitting) == {other for other in LOSSES if kind in kinds(other)}
