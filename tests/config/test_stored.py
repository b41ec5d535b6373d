from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config.jobs import TrainJob
from trainer.config.stored import config_text, job_from_config, job_from_text, load_stored_config, stored_config
from trainer.config.stored import with_overrides as changed
from trainer.errors import CheckpointError, ConfigError


@pytest.fixture
def config(composed: Callable[..., Any], elsewhere: Path) -> dict[str, Any]:
    """A complete configuration, as a run stores it."""
    (elsewhere / "a.csv").touch()
    _, values = composed("train", "data=files", "data.train=a.csv", "optimizer.lr=3e-5")
    assert isinstance(values, dict)
    return values


def test_a_stored_text_comes_back_as_it_was(config: dict[str, Any], tmp_path: Path) -> None:
    assert stored_config(config_text(config)) == config
    (tmp_path / "config.yaml").write_text(config_text(config), encoding="utf-8")
    assert load_stored_config(tmp_path) == config
    job = job_from_config(config)
    assert isinstance(job, TrainJob)
    assert (job.optimizer["lr"], job.train.batch_size, job.data["train"]) == (3e-5, 32, "a.csv")


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: 1", "a: [", "model: 1\nmodel: 2", "!!python/object/apply:os.system [ls]"]
)
def test_a_text_that_is_no_configuration(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.yaml: "):
        stored_config(text)


@pytest.mark.parametrize(
    ("name", "problem"),
    [("there", "holds neither config.yaml nor a checkpoint"), ("not_there", "there is no such folder")],
)
def test_a_folder_without_a_configuration(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match=f"^run: {problem}, got "):
        load_stored_config(tmp_path / name, key="run")


def test_overrides_of_a_stored_configuration(config: dict[str, Any]) -> None:
    job = job_from_text(config_text(config), trust=[], overrides=[("data.test", "b.csv"), ("loader.workers", 2)])
    assert (job.data["test"], job.data["train"], job.loader.workers) == ("b.csv", "a.csv", 2)
    assert config["loader"]["workers"] == 0
    with pytest.raises(ConfigError) as caught:
        changed(config, [("data.tst", "b.csv"), ("loader.worker", 2)])
    assert caught.value.messages == (
        "data.tst: there is no such key, got 'b.csv'. Did you mean data.test.",
        "loader.worker: there is no such key, got 2. Did you mean loader.workers.",
    )
    with pytest.raises(ConfigError, match=r"^loader\.workers: must be an integer, got 'x'"):
        job_from_text(config_text(config), trust=[], overrides=[("loader.workers", "x")])


def test_code_that_is_not_ours_must_be_trusted_by_the_user(config: dict[str, Any]) -> None:
    config["loss"] = {"_target_": "json.JSONDecoder"}
    config["trust"] = ["json"]
    with pytest.raises(CheckpointError, match=r"^loss\._target_: .*trust=\[json\]"):
        job_from_text(config_text(config), trust=[])
    assert job_from_text(config_text(config), trust=["json"]).loss == config["loss"]
    assert job_from_text(config_text(config), trust=None).loss == config["loss"]


def test_keys_that_are_newer_than_a_stored_text_have_their_defaults(config: dict[str, Any]) -> None:
    older = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    del older["prune"], older["train"]["patience"], older["loss"]["label_smoothing"], older["model"]["lora"]

    found = stored_config(config_text(older))
    assert found == config
    assert job_from_config(found).train.patience is None


def test_what_was_taken_out_of_a_part_that_needs_no_value_stays_out(config: dict[str, Any]) -> None:
    mine = config | {"loss": {"_target_": "json.Loss"}, "optimizer": {"_target_": "trainer.nowhere.Gone", "lr": 1.0}}
    found = stored_config(config_text(mine))
    assert found["loss"] == {"_target_": "json.Loss"}
    assert found["optimizer"]["lr"] == 1.0
