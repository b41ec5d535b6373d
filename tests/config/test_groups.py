from pathlib import Path

import pytest

from trainer.config.groups import groups_in, own_folder, search_folder, working_folder
from trainer.errors import ConfigError


def write(folder: Path, name: str, text: str) -> None:
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")


def test_first_folder_takes_precedence(tmp_path: Path) -> None:
    ours, mine = tmp_path / "ours", tmp_path / "mine"
    write(ours, "train.yaml", "defaults:\n  - loss: a\n")
    write(ours, "loss/a.yaml", "defaults: [b]\n_target_: json.A\ngamma: 1\n")
    write(mine, "loss/a.yaml", "_target_: json.Other\n")
    write(mine, "loss/b.yaml", "_target_: json.B\n")
    write(mine, "model/part/c.yaml", "")
    write(mine, "hydra/output/d.yaml", "")
    groups = groups_in([ours, None, mine, tmp_path / "nowhere"])
    assert groups.names() == ["loss", "model/part"]
    assert groups.options("loss") == ["a", "b"]
    assert groups.content("loss", "a") == {"_target_": "json.A", "gamma": 1}
    assert groups.content("model/part", "c") == groups.content("loss", "z") == {}
    assert groups.option_of("loss", "json.B") == "b"
    assert groups.option_of("loss", "json.Other") is None
    assert groups.defaults("train") == [{"loss": "a"}]
    assert groups.defaults("nothing") == []


def test_entries_of_a_search_path(tmp_path: Path) -> None:
    assert search_folder(f"file://{tmp_path}") == search_folder(str(tmp_path)) == tmp_path
    groups = search_folder("pkg://hydra.conf")
    assert groups is not None
    assert (groups / "hydra" / "output").is_dir()
    assert search_folder("pkg://no_such_package.conf") is None


def test_own_folder_is_not_a_working_folder(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert working_folder() is None
    (elsewhere / "conf").mkdir()
    assert working_folder() == elsewhere / "conf"
    monkeypatch.chdir(own_folder().parent)
    assert working_folder() is None


def test_invalid_yaml_names_its_file(tmp_path: Path) -> None:
    write(tmp_path, "loss/a.yaml", "{{{")

    with pytest.raises(ConfigError, match=r"loss/a\.yaml: cannot be read as YAML"):
        groups_in([tmp_path]).content("loss", "a")
