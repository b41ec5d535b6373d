import re
from pathlib import Path

import pytest

from trainer.data.split_cache import cache_key, cached_folder
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
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_folder_of_a_faster_process_is_used(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "mine").touch()
        (tmp_path / "source" / "key").mkdir()
        (tmp_path / "source" / "key" / "theirs").touch()

    folder = cached_folder(str(tmp_path), "source", "key", write)

    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert [path.name for path in (tmp_path / "source").iterdir()] == ["key"]


def test_cache_key_depends_on_roles_and_more() -> None:
    keys = {cache_key("a", roles, *more) for roles in (["text"], ["text", "label"], []) for more in ((), ("/data",))}

    assert len(keys) == 6
    assert all(re.fullmatch(r"a-[0-9a-f]{12}", key) for key in keys)
