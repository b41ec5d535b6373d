import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.jobs import working_in
from trainer.commands.folders import existing_run_folder, fixed_run_folder, named_checkpoint, new_run_folder
from trainer.config.sections import RunSection
from trainer.errors import CheckpointError


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path) -> None:
    with working_in(tmp_path):
        made = [new_run_folder(RunSection(name="trial", dir=None)) for _ in range(4)]

        assert len(set(made)) == 4
        assert all(folder.is_dir() and folder.parent == Path("runs") and "trial" in folder.name for folder in made)


def test_a_folder_that_holds_a_run_is_not_taken_twice(tmp_path: Path) -> None:
    section = RunSection(name=None, dir=str(tmp_path / "run"))
    folder = new_run_folder(section)
    assert new_run_folder(section) == folder
    (folder / ".lock").touch()
    assert new_run_folder(section) == folder
    (folder / "checkpoints").mkdir()

    with pytest.raises(CheckpointError, match=r"run\.dir: holds a run already.*resume="):
        new_run_folder(section)
    assert fixed_run_folder(section) == folder


def test_a_run_is_found_by_itself_and_by_its_checkpoints(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)

    for path in (tmp_path / "run", checkpoint.parent, checkpoint):
        assert existing_run_folder(str(path)) == tmp_path / "run"


def test_the_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    with working_in(tmp_path):
        for age, name in enumerate(["runs/b", "runs/multirun/day/0", "runs/a"]):
            (Path(name) / "checkpoints").mkdir(parents=True)
            os.utime(Path(name) / "checkpoints", (1000 - age, 1000 - age))

        assert existing_run_folder(None) == Path("runs/b")


def test_where_there_is_no_run(tmp_path: Path) -> None:
    with working_in(tmp_path):
        with pytest.raises(CheckpointError, match=r"run: there is no run under .*Train one"):
            existing_run_folder(None)
        with pytest.raises(CheckpointError, match="run: no such folder, got 'nowhere'"):
            existing_run_folder("nowhere")
        with pytest.raises(CheckpointError, match="run: holds no run"):
            existing_run_folder(str(tmp_path))


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match=r"run\.name: cannot be made|run\.dir: cannot be made"):
        new_run_folder(RunSection(name=None, dir=str(tmp_path / "file" / "run")))


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")

    for take in (new_run_folder, fixed_run_folder):
        with pytest.raises(CheckpointError, match=r"holds something else than a run.*new or empty"):
            take(RunSection(name=None, dir=str(tmp_path)))
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


def test_runs_that_start_together_never_share_a_folder(tmp_path: Path) -> None:
    with working_in(tmp_path), ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: new_run_folder(RunSection(name=None, dir=None)), range(64)))

    assert len(set(made)) == 64


@pytest.mark.parametrize(
    ("path", "expected"), [(None, "best"), ("runs/a", "best"), ("runs/a/checkpoints/step-00000007", "step-00000007")]
)
def test_a_path_of_a_checkpoint_names_it(path: str | None, expected: str) -> None:
    assert named_checkpoint(path, "best") == expected
