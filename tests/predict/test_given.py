"""Files, folders and texts told apart."""

from pathlib import Path

import pytest

from trainer.errors import ConfigError
from trainer.predict.given import Given, read_given


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a file of each kind."""
    monkeypatch.chdir(tmp_path)
    for name in ("zh.csv", "notes.md", "texts.txt"):
        (tmp_path / name).touch()
    (tmp_path / "gallery").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "text",
        "a text.",
        "zh.cs is no file",
        "3.14",
        "Yes.",
        "a.\nb",
        "今天天气很好。",
        "no\0path",
        "e.g.",
        '{"a":"b/c.csv"}',
        "x" * 5000 + ".csv",
    ],
)
def test_a_text_is_a_text(text: str) -> None:
    assert read_given(text, None, None) == Given(text, None, None)


def test_files_and_folders_that_are_there_are_read(folder: Path) -> None:
    assert read_given("zh.csv", "texts.txt", "out.jsonl") == Given(Path("zh.csv"), Path("texts.txt"), Path("out.jsonl"))
    assert read_given("gallery", None, "-") == Given(Path("gallery"), None, None)
    assert read_given("-", None, None) == read_given(None, None, None) == Given(None, None, None)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("zh.cs", "Did you mean zh.csv. A text that looks like a file's name comes by standard input: input=-."),
        ("./zh.csv.gz", "Did you mean zh.csv."),
        ("gallary/", "Did you mean gallery."),
        ("rows.xlsx", "Paths are relative to"),
        ("gone/zh", "Paths are relative to"),
        ("数据/文件.csv", "Paths are relative to"),
    ],
)
def test_what_looks_like_a_file_and_is_none_is_no_text(text: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match="comes by standard input: input=-") as caught:
        read_given(text, None, None)
    assert caught.value.messages[0].startswith(f"input: no such file, got '{text}'. {remedy}")


def test_all_faults_come_together() -> None:
    with pytest.raises(ConfigError) as caught:
        read_given("notes.md", "txets.txt", "gone/out.csv")
    assert [message.split(",")[0] for message in caught.value.messages] == [
        "input: is a file of no known kind",
        "corpus: no such file",
        "output: its folder is not there",
    ]
    with pytest.raises(ConfigError, match=r"^corpus: must be a file, got 'a text'"):
        read_given("x", "a text", None)
    Path("texts.csv").touch()
    with pytest.raises(ConfigError, match=r"^output: is the corpus, got './texts\.csv'"):
        read_given("x", "texts.csv", "./texts.csv")
