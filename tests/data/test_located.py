"""Files are found by path and by pattern; `tests/data/test_files.py` has what is refused."""

import re
from pathlib import Path

import pytest

from trainer.data.data_files import files_fingerprint, find_data_files
from trainer.errors import ConfigError, DataError


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("b.txt", "a.txt", "c.md"):
        Path(name).write_text(name)


def test_paths_stay_in_the_order_given_and_patterns_in_that_of_names() -> None:
    found = find_data_files({"train": ["c.md", "*.txt", "./b.txt"], "validation": None}, None)

    assert {split: [str(path) for path in paths] for split, paths in found.items()} == {
        "train": ["c.md", "a.txt", "b.txt"]
    }


def test_what_cannot_be_used_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^test: names no file, got \[\]\."):
        find_data_files({"train": "a.txt", "test": []}, None)
    with pytest.raises(
        DataError,
        match=r"^c\.md: unsupported file format\. Supported formats: \.txt; data=lines reads text files",
    ):
        find_data_files({"train": "c.md"}, [".txt"])
    with pytest.raises(DataError, match=r"^data\.test: names a file of data\.train too, got 'a\.txt'"):
        find_data_files({"train": "a.txt", "test": "*.txt"}, None)
    with pytest.raises(DataError, match=re.escape("a folder, got '.'. Name the files in it: *.txt.")):
        find_data_files({"train": "."}, None)


def test_a_fingerprint_follows_contents_order_and_what_is_known() -> None:
    def of(*names: str, known: object = 0, split: str = "train") -> str:
        return files_fingerprint({split: [Path(name) for name in names]}, known, lambda path: path.suffix)

    Path("copy.txt").write_text("a.txt")
    different = {of("a.txt"), of("b.txt"), of("a.txt", "b.txt"), of("b.txt", "a.txt"), of("a.txt", known=1)}

    assert of("copy.txt") == of("a.txt") != of("a.txt", split="test")
    assert len(different) == 5
    with pytest.raises(DataError, match=r"^nowhere\.txt: cannot be read: No such file"):
        of("nowhere.txt")
