import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from trainer.config.jobs import TrainJob
from trainer.config.stored import (
    _load,
    config_text,
    job_from_config,
    job_from_text,
    load_stored_config,
    parse_stored_config,
)
from trainer.config.stored import with_overrides as changed
from trainer.errors import CheckpointError, ConfigError


@pytest.fixture
def config(composed: Callable[..., Any], elsewhere: Path) -> dict[str, Any]:
    """A complete config, as a run stores it."""
    (elsewhere / "a.csv").touch()
    _, values = composed("train", "data=files", "data.train=a.csv", "optimizer.lr=3e-5")
    assert isinstance(values, dict)
    return values


def test_stored_config_round_trips(config: dict[str, Any], tmp_path: Path) -> None:
    assert parse_stored_config(config_text(config)) == config
    (tmp_path / "config.yaml").write_text(config_text(config), encoding="utf-8")
    assert load_stored_config(tmp_path) == config
    job = job_from_config(config)
    assert isinstance(job, TrainJob)
    assert (job.optimizer["lr"], job.train.batch_size, job.data["train"]) == (3e-5, 32, "a.csv")


def test_a_config_that_is_read_again_is_independent(config: dict[str, Any]) -> None:
    text = config_text(config)
    first = parse_stored_config(text)
    first["export"]["formats"].append("torchscript")
    first["train"]["duration"] = 1
    assert parse_stored_config(text) == config


@pytest.mark.parametrize(
    "text", ["", "- 1", "a: 1", "a: [", "model: 1\nmodel: 2", "!!python/object/apply:os.system [ls]"]
)
def test_invalid_stored_config_is_an_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"^config\.yaml: "):
        parse_stored_config(text)


@pytest.mark.parametrize(
    "written",
    [
        "{a: 1e3, b: 1_000, c: 2001-02-03, d: 12:30:45, e: .5, f: .inf, g: 0x1f, h: 0o17, i: 017, j: 1., k: -1E-3}",
        "{a: yes, b: No, c: on, d: y, e: null, f: ~, g: , h: 'null', i: \"yes\", j: !!str 1, k: !!float 1, l: '???'}",
        "[1, [2, {a: [], b: {}}], ' spaces ', \"\\x24{seed}\", '${seed}', '${oc.env:HOME}', \"\\U0001F600 é\"]",
        "{1: a, 2.5: b, true: c, null: d}",
        "{base: &base {x: 1, y: [2]}, merged: {<<: *base, y: 3}, alias: *base, again: *base}",
        "{text: |\n  one\n   two\n, folded: >-\n  one\n  two\n}",
        "!!set {a, b}",
        "!!binary aGVsbG8=",
        "!!python/object/apply:pathlib.Path [a, b]",
        "!!python/object/apply:os.system [ls]",
        "!!timestamp 2001-02-03",
        "{a: 1, a: 2}",
        "{a: {b: '${'}}",
        "*unknown",
    ],
)
def test_a_stored_text_is_read_as_omegaconf_reads_it(written: str) -> None:
    def read(load: Callable[[str], Any]) -> Any:
        try:
            return repr(load(f"seed: 1\nvalue: {written}\n"))
        except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
            return type(error)

    assert read(_load) == read(lambda text: OmegaConf.to_container(OmegaConf.create(text)))


def test_aliases_in_a_stored_text_are_values_of_their_own() -> None:
    values = _load("a: &a {x: [1]}\nb: *a\n")
    values["a"]["x"].append(2)
    assert values["b"] == {"x": [1]}


@pytest.mark.parametrize(
    ("name", "problem"),
    [("there", "contains neither config.yaml nor a checkpoint"), ("not_there", "no such folder")],
)
def test_folder_without_a_config_is_an_error(tmp_path: Path, name: str, problem: str) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match=f"^run: {problem}, got "):
        load_stored_config(tmp_path / name, key="run")


def test_a_damaged_config_is_reported_and_a_copy_is_used(
    config: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.yaml").write_text("}{")
    (tmp_path / "checkpoints" / "step-1").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-1" / "config.yaml").write_text(config_text(config))

    assert load_stored_config(tmp_path) == load_stored_config(tmp_path) == config
    assert caplog.text.count("The copy in a checkpoint is used") == 1
    assert str(tmp_path / "config.yaml") in caplog.text


def test_overrides_change_a_stored_config(config: dict[str, Any]) -> None:
    job = job_from_text(config_text(config), trust=[], overrides=[("data.test", "b.csv"), ("loader.workers", 2)])
    assert (job.data["test"], job.data["train"], job.loader.workers) == ("b.csv", "a.csv", 2)
    assert config["loader"]["workers"] == 0
    with pytest.raises(ConfigError) as caught:
        changed(config, [("data.tst", "b.csv"), ("loader.worker", 2)])
    assert caught.value.messages == (
        "data.tst: unknown key, got 'b.csv'. Did you mean data.test?",
        "loader.worker: unknown key, got 2. Did you mean loader.workers?",
    )
    with pytest.raises(ConfigError, match=r"^loader\.workers: must be an integer, got 'x'"):
        job_from_text(config_text(config), trust=[], overrides=[("loader.workers", "x")])


def test_unknown_keys_of_a_stored_config_are_not_looked_for_in_other_options(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(config, [("loss.gamma", 2)])

    (message,) = caught.value.messages
    assert message.startswith("loss.gamma: unknown key, got 2. Known: loss.")
    assert "loss=" not in message


def test_foreign_code_must_be_trusted_by_the_user(config: dict[str, Any]) -> None:
    config["loss"] = {"_target_": "json.JSONDecoder"}
    config["trust"] = ["json"]
    with pytest.raises(CheckpointError, match=r"^loss\._target_: .*trust=\[json\]"):
        job_from_text(config_text(config), trust=[])
    assert job_from_text(config_text(config), trust=["json"]).loss == config["loss"]
    assert job_from_text(config_text(config), trust=None).loss == config["loss"]


def test_keys_newer_than_a_stored_text_get_their_defaults(config: dict[str, Any]) -> None:
    older = {name: dict(part) if isinstance(part, dict) else part for name, part in config.items()}
    del older["prune"], older["train"]["patience"], older["loss"]["label_smoothing"], older["model"]["lora"]

    stored = parse_stored_config(config_text(older))
    assert stored == config
    assert job_from_config(stored).train.patience is None


def test_parts_of_unknown_targets_are_not_completed(config: dict[str, Any]) -> None:
    mine = config | {"loss": {"_target_": "json.Loss"}, "optimizer": {"_target_": "trainer.nowhere.Gone", "lr": 1.0}}
    stored = parse_stored_config(config_text(mine))
    assert stored["loss"] == {"_target_": "json.Loss"}
    assert stored["optimizer"]["lr"] == 1.0


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in itertools.pairwise("abcdefghi")
)
"""Each line repeats the one before it ten times."""


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "is nested more than 50 levels deep"),
        ("".join(f"{' ' * depth}a:\n" for depth in range(200)), "is nested more than 50 levels deep"),
        (
            "a: &a0 []\n" + "".join(f"b{n}: &a{n + 1} [*a{n}]\n" for n in range(99)),
            "is nested more than 50 levels deep",
        ),
        ("a: &a [*a]", "has more than 100000 values"),
        (BOMB, "has more than 100000 values"),
        ("9" * 5000, "Exceeds the limit"),
        ("null", "does not contain the config of a run"),
        ("model: 1", "is damaged: task: is missing"),
    ],
)
def test_text_that_is_no_config_is_refused(text: str, problem: str) -> None:
    with pytest.raises(CheckpointError) as error:
        parse_stored_config(text)
    assert problem in str(error.value)
    assert str(error.value).count("cannot be read") <= 1
