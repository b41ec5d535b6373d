"""Trackers of a resumed run are on only if this user has started it, or names them."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from shutil import copytree

import pytest
import yaml

from tests.support.jobs import events, train, working_in, write_data
from trainer.cli import main
from trainer.config.command import check_command
from trainer.ownership import read_tracker_ids, write_tracker_ids

OFF = "logger.trackers: off, as you have not started this run; logger.trackers=[{}] turns them on"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("foreign")
    with working_in(folder):
        assert train(Path("run"), *write_data(folder), "train.duration=2") == 0
        yield Path("run")


def store_trackers(run: Path, names: list[str], *, offline: bool = False) -> None:
    """Write trackers into the config of a run, and into the checkpoints of a copy."""
    copies = run.glob("checkpoints/step-*/config.yaml") if run.is_absolute() else ()
    for file in (run / "config.yaml", *copies):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        config["logger"] |= {"trackers": names, "offline": offline}
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


@pytest.mark.parametrize("checkpoint", ["", "checkpoints/step-00000002"])
def test_trackers_of_a_stranger_are_off_unless_named(
    run: Path, checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Path(copytree(run, tmp_path / "run"))
    monkeypatch.setattr("trainer.config.validate.find_spec", lambda name: True)
    store_trackers(run, ["wandb", "mlflow"])
    (run / "trackers.json").write_text(json.dumps({"wandb": "mine", "seal": "0" * 64}), encoding="utf-8")

    def resumed(*overrides: str) -> tuple[list[str], tuple[str, ...]]:
        command = check_command("train", [f"resume={run / checkpoint}", *overrides])
        assert command.single is not None
        return command.single.config["logger"]["trackers"], command.notes

    off = OFF.format("wandb,mlflow")
    assert resumed() == ([], (off,))
    assert resumed("logger.offline=true") == ([], (off,))
    assert resumed("logger.trackers=[mlflow]") == (["mlflow"], ())
    store_trackers(run, ["wandb", "mlflow"], offline=True)  # nothing is sent
    assert resumed() == (["wandb", "mlflow"], ())
    assert resumed("logger.offline=false") == ([], (off,))
    store_trackers(run, ["wandb", "mlflow"])
    write_tracker_ids(run, {})
    assert resumed() == (["wandb", "mlflow"], ())


@pytest.mark.skipif(find_spec("wandb") is not None, reason="needs a machine without the package wandb")
def test_a_stranger_s_trackers_need_no_packages_here(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store_trackers(run, ["wandb"])
    assert main(["train", f"resume={run}", "train.duration=3"]) == 0
    assert capsys.readouterr().err.count(OFF.format("wandb")) == 1
    assert events(run)[-1]["event"] == "end"


def test_ids_are_read_only_as_this_user_wrote_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_tracker_ids(tmp_path) is None
    write_tracker_ids(tmp_path, {"wandb": "a"})
    assert read_tracker_ids(tmp_path) == {"wandb": "a"}
    assert (tmp_path / "state/trainer/key").stat().st_mode & 0o777 == 0o600
    file = tmp_path / "trackers.json"
    whole = json.loads(file.read_bytes())
    for changed in (
        whole | {"wandb": "b"},
        whole | {"mlflow": "a"},
        {"wandb": "a"},
        whole | {"seal": 1},
        [],
        whole | {"seal": "\ud800"},
    ):
        file.write_text(json.dumps(changed), encoding="utf-8")
        assert read_tracker_ids(tmp_path) is None
    file.write_text(json.dumps(whole), encoding="utf-8")
    assert read_tracker_ids(tmp_path) == {"wandb": "a"}
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))
    assert read_tracker_ids(tmp_path) is None
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))  # no key can be made there
    write_tracker_ids(tmp_path, {"wandb": "a"})
    assert read_tracker_ids(tmp_path) is None
