"""The loss of a job and its teacher."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.jobs import TINY, events, train, working_in, write_data
from tests.test_conf import job_of
from trainer.builders.checkpointed import load_checkpointed_model
from trainer.builders.data import build_encoded, build_task
from trainer.builders.loss import load_teacher
from trainer.cli import main
from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.errors import ConfigError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[str], Path]]:
    """Train a teacher; return the overrides of its data and its run folder."""
    folder = tmp_path_factory.mktemp("teacher")
    with working_in(folder):
        data = [*write_data(folder), "train.duration=6"]
        assert train(folder / "teacher", *data, "model.dim=32") == 0
        yield data, folder / "teacher"


def test_the_teacher_is_the_best_checkpoint(teacher_run: tuple[list[str], Path]) -> None:
    data, folder = teacher_run
    job = job_of(*data, *TINY)
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False)
    batch = Batches(encoded.splits["train"], task, "packed", 0)[BatchIndices(0, (0, 1, 2))]
    teach = load_teacher(str(folder), task, CPU, [])
    best = load_checkpointed_model(folder, None, checkpoint="best", weights="auto", device="cpu")

    output = teach(batch.inputs)
    assert torch.equal(output, best.model(**batch.inputs))
    assert not output.requires_grad


def test_a_student_learns_from_its_teacher(teacher_run: tuple[list[str], Path], tmp_path: Path) -> None:
    data, folder = teacher_run
    run = tmp_path / "student"

    assert train(run, *data, "loss=kl_distillation", f"loss.teacher={folder}") == 0
    losses = [event["loss"] for event in events(run, "train")]
    assert len(losses) == 6
    assert (run / "eval/test.json").exists()
    # With the whole weight on the labels it is cross entropy, whoever teaches.
    labels_only, no_teacher = tmp_path / "labels_only", tmp_path / "no_teacher"
    assert train(labels_only, *data, "loss=kl_distillation", f"loss.teacher={folder}", "loss.weight=0.0") == 0
    assert train(no_teacher, *data) == 0
    first = [events(path, "train")[0]["loss"] for path in (labels_only, no_teacher)]
    assert first[0] == pytest.approx(first[1], rel=1e-6)
    assert losses[0] != pytest.approx(first[0], rel=1e-3)


def test_a_teacher_of_another_task_is_an_error(teacher_run: tuple[list[str], Path], tmp_path: Path) -> None:
    data, folder = teacher_run
    job = job_of(*data, *TINY, "task.vocab_size=150")
    task = build_task(job)
    build_encoded(job, task, fitted=False)

    with pytest.raises(ConfigError, match=r"loss\.teacher: was trained with a different tokenizer, got "):
        load_teacher(str(folder), task, CPU, [])
    with pytest.raises(ConfigError, match=r"loss\.teacher: contains no run, got "):
        load_teacher(str(tmp_path / "nowhere"), task, CPU, [])
    with pytest.raises(ConfigError, match=r"loss\.teacher: must be a run folder, got null"):
        load_teacher(None, task, CPU, [])


def distilled(data: list[str], teacher: Path, run: Path, *options: str) -> int:
    return train(run, *data, "loss=kl_distillation", f"loss.teacher={teacher}", "checkpoint.every=1", *options)


def test_resume_with_a_changed_teacher_is_an_error(teacher_run: tuple[list[str], Path], tmp_path: Path) -> None:
    data, folder = teacher_run
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(folder, teacher)
    assert distilled(data, teacher, run) == 0
    assert main(["train", f"resume={run}", "train.duration=7"]) == 0

    shutil.rmtree(teacher)
    assert train(teacher, *data, "model.dim=32", "seed=1") == 0
    assert main(["train", f"resume={run}", "train.duration=8"]) == 3


def test_eval_and_export_do_not_need_the_teacher(teacher_run: tuple[list[str], Path], tmp_path: Path) -> None:
    data, folder = teacher_run
    teacher, run = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(folder, teacher)
    assert distilled(data, teacher, run) == 0
    with_teacher = json.loads((run / "eval/test.json").read_text())
    shutil.rmtree(teacher)

    assert main(["eval", f"run={run}"]) == 0
    assert json.loads((run / "eval/test.json").read_text())["accuracy"] == with_teacher["accuracy"]
    assert main(["export", f"run={run}", "export.formats=[torchscript]"]) == 0


def test_a_teacher_with_a_loss_head_teaches_its_scores(teacher_run: tuple[list[str], Path], tmp_path: Path) -> None:
    data, _ = teacher_run
    teacher = tmp_path / "teacher"
    assert train(teacher, *data, "loss=hierarchical_softmax", "loss.in_features=16") == 0
    job = job_of(*data, *TINY)
    task = build_task(job)
    encoded = build_encoded(job, task, fitted=False)
    batch = Batches(encoded.splits["train"], task, "packed", 0)[BatchIndices(0, (0, 1, 2))]

    output = load_teacher(str(teacher), task, CPU, [])(batch.inputs)
    assert output.shape == (3, 3)
    torch.testing.assert_close(output.exp().sum(-1), torch.ones(3))
    assert distilled(data, teacher, tmp_path / "run") == 0
