import re
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.data.split_cache import cache_key, cached_folder, write_index
from trainer.errors import DataError


def test_folder_is_filled_once_and_complete_or_not_at_all(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise DataError("broken")

    with pytest.raises(DataError, match="broken"):
        cached_folder(str(tmp_path), "source", "key", fail)
    assert list((tmp_path / "source").iterdir()) == []

    folder = cached_folder(str(tmp_path), "source", "key", lambda folder: (folder / "whole").touch())
    assert cached_folder(str(tmp_path), "source", "key", fail) == folder == tmp_path / "source" / "key"
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "whole"]


def test_folder_of_a_faster_process_is_used(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "mine").touch()
        (tmp_path / "source" / "key").mkdir()
        (tmp_path / "source" / "key" / "theirs").touch()
        write_index(tmp_path / "source" / "key")

    folder = cached_folder(str(tmp_path), "source", "key", write)

    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "theirs"]
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["key"]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["rows.arrow", "index.json"])
@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_text("null")])
def test_damaged_folder_is_written_again(
    name: str, damage: Callable[[Path], object], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def write(folder: Path) -> None:
        (folder / "rows.arrow").write_text("many rows")

    folder = cached_folder(str(tmp_path), "source", "key", write)
    damage(folder / name)
    assert cached_folder(str(tmp_path), "source", "key", write) == folder
    assert (folder / "rows.arrow").read_text() == "many rows"
    (message,) = caplog.messages
    assert message.startswith(f"cache: {folder} is damaged")
    cached_folder(str(tmp_path), "source", "key", write)
    assert len(caplog.messages) == 1


def test_cache_is_private(tmp_path: Path) -> None:
    folder = cached_folder(str(tmp_path), "source", "key", lambda folder: (folder / "rows.arrow").touch())
    modes = {path.name: path.stat().st_mode & 0o777 for path in (folder.parent, folder, *folder.iterdir())}
    assert modes == {"source": 0o700, "key": 0o700, "index.json": 0o600, "rows.arrow": 0o600}


def test_cache_key_depends_on_roles_version_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {cache_key("a", roles, *more) for roles in (["text"], ["text", "label"], []) for more in ((), ("/data",))}

    with monkeypatch.context() as context:
        context.setattr("trainer.data.split_cache.__version__", "0.0.1")  # whose warnings may be others
        keys.add(cache_key("a", ["text"]))
    assert len(keys) == 7
    assert all(re.fullmatch(r"a-[0-9a-f]{12}", key) for key in keys)
