"""Which folder a run gets, and which run a path names."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.jobs import working_in
from trainer.commands.run_folders import (
    check_new_folder,
    claim_fixed_folder,
    create_run_folder,
    find_run_folder,
    select_checkpoint,
)
from trainer.config.sections import RunSection
from trainer.errors import CheckpointError


def test_runs_started_in_one_second_get_separate_folders(tmp_path: Path) -> None:
    with working_in(tmp_path):
        made = [create_run_folder(RunSection(name="trial", dir=None)) for _ in range(4)]

        assert len(set(made)) == 4
        assert all(folder.is_dir() and folder.parent == Path("runs") and "trial" in folder.name for folder in made)


def test_folder_of_a_run_is_not_used_for_a_new_run(tmp_path: Path) -> None:
    section = RunSection(name=None, dir=str(tmp_path / "run"))
    folder = create_run_folder(section)
    assert create_run_folder(section) == folder
    (folder / ".lock").touch()
    assert create_run_folder(section) == folder
    (folder / "checkpoints").mkdir()

    with pytest.raises(CheckpointError, match=r"run\.dir: already contains a run.*resume="):
        create_run_folder(section)
    assert claim_fixed_folder(section) == folder


def test_run_is_found_by_its_folder_and_by_its_checkpoints(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000003"
    checkpoint.mkdir(parents=True)

    for path in (tmp_path / "run", checkpoint.parent, checkpoint):
        assert find_run_folder(str(path)) == tmp_path / "run"


def test_newest_run_is_the_one_saved_last(tmp_path: Path) -> None:
    with working_in(tmp_path):
        for age, name in enumerate(["runs/b", "runs/multirun/day/0", "runs/a"]):
            (Path(name) / "checkpoints").mkdir(parents=True)
            os.utime(Path(name) / "checkpoints", (1000 - age, 1000 - age))

        assert find_run_folder(None) == Path("runs/b")


def test_errors_without_a_run(tmp_path: Path) -> None:
    with working_in(tmp_path):
        with pytest.raises(CheckpointError, match=r"run: there is no run under .*Train one"):
            find_run_folder(None)
        with pytest.raises(CheckpointError, match="run: no such folder, got 'nowhere'"):
            find_run_folder("nowhere")
        with pytest.raises(CheckpointError, match="run: contains no run"):
            find_run_folder(str(tmp_path))
        Path("artifacts").mkdir()
        Path("artifacts/manifest.json").write_text("{}")
        with pytest.raises(CheckpointError, match=r"run: is a folder of artifacts without its run, .* predict run=art"):
            find_run_folder("artifacts")


def test_folder_that_cannot_be_created_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(CheckpointError, match=r"run\.dir: cannot be created"):
        create_run_folder(RunSection(name=None, dir=str(tmp_path / "file" / "run")))


def test_folder_with_other_files_is_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1")

    for take in (create_run_folder, claim_fixed_folder):
        with pytest.raises(CheckpointError, match=r"contains files that are not from a run.*new or empty"):
            take(RunSection(name=None, dir=str(tmp_path)))
    assert (tmp_path / "config.yaml").read_text() == "mine: 1"


def test_runs_started_together_never_share_a_folder(tmp_path: Path) -> None:
    with working_in(tmp_path), ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: create_run_folder(RunSection(name=None, dir=None)), range(64)))

    assert len(set(made)) == 64


LINKS = (
    "report.html",
    ".lock",
    "metrics.jsonl",
    "eval/test.json",
    "eval",
    "model",
    "checkpoints/step-00000001/x",
    "new",
)


@pytest.mark.parametrize("name", LINKS)
def test_a_run_folder_with_a_link_is_refused(name: str, tmp_path: Path) -> None:
    run_dir, outside = tmp_path / "run", tmp_path / "outside"
    (run_dir / "checkpoints" / "step-00000001").mkdir(parents=True)
    (run_dir / ".lock").touch()
    outside.write_text("precious")
    assert find_run_folder(str(run_dir)) == run_dir

    link = run_dir / name
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    (tmp_path / "runs").symlink_to(tmp_path)  # a link to a run folder is one of the user's own
    fixed = RunSection(name="run", dir=str(run_dir))
    for find in (lambda: find_run_folder(str(tmp_path / "runs/run")), lambda: claim_fixed_folder(fixed)):
        with pytest.raises(CheckpointError, match="is a link, which a run folder may not contain"):
            find()


def test_a_folder_that_cannot_be_created_shows_before_the_run(tmp_path: Path) -> None:
    check_new_folder(RunSection(dir=str(tmp_path / "new" / "run")))
    assert not list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=r"^run\.dir: cannot be created \(.*\), got '/proc/x'\. Name another"):
        check_new_folder(RunSection(dir="/proc/x"))


@pytest.mark.parametrize(
    ("path", "expected"), [(None, "best"), ("runs/a", "best"), ("runs/a/checkpoints/step-00000007", "step-00000007")]
)
def test_path_of_a_checkpoint_selects_it(path: str | None, expected: str) -> None:
    assert select_checkpoint(path, "best") == expected
