from pathlib import Path

import pytest

from trainer.config.catalogue import catalogue, own_folder, search_folder, working_folder
from trainer.errors import ConfigError


def write(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_the_first_folder_wins_and_the_others_add(tmp_path: Path) -> None:
    ours, mine = tmp_path / "ours", tmp_path / "mine"
    write(ours, "train.yaml", "defaults:\n  - loss: a\n")
    write(ours, "loss/a.yaml", "defaults: [b]\n_target_: json.A\ngamma: 1\n")
    write(mine, "loss/a.yaml", "_target_: json.Other\n")
    write(mine, "loss/b.yaml", "_target_: json.B\n")
    write(mine, "model/part/c.yaml", "")
    write(mine, "hydra/output/d.yaml", "")
    found = catalogue([ours, None, mine, tmp_path / "nowhere"])
    assert found.groups() == ["loss", "model/part"]
    assert found.options("loss") == ["a", "b"]
    assert found.content("loss", "a") == {"_target_": "json.A", "gamma": 1}
    assert found.content("model/part", "c") == found.content("loss", "z") == {}
    assert found.option_of("loss", "json.B") == "b"
    assert found.option_of("loss", "json.Other") is None
    assert found.defaults("train") == [{"loss": "a"}]
    assert found.defaults("nothing") == []


def test_entries_of_a_search_path(tmp_path: Path) -> None:
    assert search_folder(f"file://{tmp_path}") == search_folder(str(tmp_path)) == tmp_path
    found = search_folder("pkg://hydra.conf")
    assert found is not None
    assert (found / "hydra" / "output").is_dir()
    assert search_folder("pkg://no_such_package.conf") is None


def test_our_own_folder_is_not_joined_twice(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert working_folder() is None
    (elsewhere / "conf").mkdir()
    assert working_folder() == elsewhere / "conf"
    monkeypatch.chdir(own_folder().parent)
    assert working_folder() is None


def test_a_file_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    write(tmp_path, "loss/a.yaml", "{{{")

    with pytest.raises(ConfigError, match=r"loss/a\.yaml: cannot be read as YAML"):
        catalogue([tmp_path]).content("loss", "a")
