import re
from pathlib import Path

import pytest

from trainer.data.data_files import files_fingerprint, find_data_files
from trainer.errors import DataError

pytestmark = pytest.mark.usefixtures("working_folder")


@pytest.fixture(autouse=True)
def _files(working_folder: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        Path(name).write_text(name)


def test_files_keep_the_given_order_and_patterns_are_sorted_by_name() -> None:
    Path("d[1].txt").touch()
    paths = find_data_files({"train": ["c.md", "[ab].txt", "./b.txt", "d[1].txt"], "validation": None}, None)

    assert {split: [str(path) for path in files] for split, files in paths.items()} == {
        "train": ["c.md", "a.txt", "b.txt", "d[1].txt"]
    }


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("data/trian.csv", "data.train: no such file, got 'data/trian.csv'. Did you mean data/train.csv?"),
        ("nowhere/a.csv", "data.train: no such file, got 'nowhere/a.csv'. Paths are relative to /"),
        ("data/*.tsv", "data.train: no such file, got 'data/*.tsv'."),
        ("data", "data.train: expected a file, not a folder, got 'data'. Name the files in it: data/*.csv."),
        ("c.md", "c.md: unsupported file format. Supported formats: .csv; data=lines reads text files"),
    ],
)
def test_unusable_path_is_one_message(name: str, message: str) -> None:
    Path("data").mkdir()
    Path("data/train.csv").touch()

    with pytest.raises(DataError, match="^" + re.escape(message)):
        find_data_files({"train": ["data/train.csv", name]}, [".csv"])


def test_file_in_two_splits_is_rejected(working_folder: Path) -> None:
    with pytest.raises(DataError, match=r"^data\.test: names a file of data\.train too, got "):
        find_data_files({"train": "a.txt", "test": str(working_folder / "*.txt")}, None)


def test_fingerprint_depends_on_contents_order_splits_and_settings() -> None:
    def fingerprint(*names: str, settings: object = 0, split: str = "train") -> str:
        return files_fingerprint({split: [Path(name) for name in names]}, settings, lambda path: path.suffix)

    Path("copy.txt").write_text("a.txt")
    different = {
        fingerprint("a.txt"),
        fingerprint("b.txt"),
        fingerprint("a.txt", "b.txt"),
        fingerprint("b.txt", "a.txt"),
        fingerprint("a.txt", settings=1),
        fingerprint("a.txt", split="test"),
    }

    assert fingerprint("copy.txt") == fingerprint("a.txt")
    assert len(different) == 6
    with pytest.raises(DataError, match=r"^nowhere\.txt: cannot be read: No such file"):
        fingerprint("nowhere.txt")


def test_links_out_of_the_folder_of_a_pattern_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    for name in ("data/a/1.csv", "else/2.csv"):
        Path(name).parent.mkdir(parents=True)
        Path(name).write_text("")
    Path("data/b").symlink_to(Path("else").absolute())
    Path("data/a/3.csv").symlink_to("1.csv")
    assert len(find_data_files({"train": "data/*/*.csv"}, [".csv"])["train"]) == 3
    place = Path("else/2.csv").absolute()
    message = f"data.train: followed links out of data to 1 place; the first is data/b/2.csv, which is {place}"
    assert caplog.messages == [message]
    caplog.clear()
    find_data_files({"train": "data/b/2.csv"}, [".csv"])  # the user names the link
    assert not caplog.messages
