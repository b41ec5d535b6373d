import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.data.lines import Lines, read_texts
from trainer.data.splits import assign_split
from trainer.errors import DataError

pytestmark = pytest.mark.usefixtures("working_folder")

SHARES = {"validation": 0.1, "test": 0.1}


def lines(train: str | list[str], **changes: Any) -> Lines:
    arguments: dict[str, Any] = {"validation": None, "test": None, "documents": "line", "split": SHARES}
    return Lines(train, **arguments | {"cache_dir": "cache"} | changes)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_text_is_a_line_a_block_or_a_file(name: str) -> None:
    content = "\n第一行 \n  第二行\r\n \n\t\n第三行\n\n".encode("utf-8-sig")
    Path(name).write_bytes(gzip.compress(content, mtime=0) if name.endswith(".gz") else content)

    assert list(read_texts(Path(name), "line")) == [(2, "第一行 "), (3, "  第二行"), (6, "第三行")]
    assert list(read_texts(Path(name), "blank")) == [(2, "第一行 \n  第二行"), (6, "第三行")]
    assert list(read_texts(Path(name), "file")) == [(2, "第一行 \n  第二行\n \n\t\n第三行")]


def test_last_line_without_a_line_end_is_read() -> None:
    Path("a.txt").write_text("a\nb")

    assert [list(read_texts(Path("a.txt"), documents)) for documents in ("line", "blank", "file")] == [
        [(1, "a"), (2, "b")], [(1, "a\nb")], [(1, "a\nb")],
    ]  # fmt: skip


def test_shares_depend_on_the_text_and_rows_know_their_line() -> None:
    Path("a.txt").write_text("".join(f"第 {n} 行\n\n" for n in range(300)), encoding="utf-8")
    Path("b.txt").write_text("".join(f"第 {n} 行\n" for n in range(200, 400)), encoding="utf-8")
    source = lines(["a.txt", "b.txt"])

    splits = source.load(("text",))

    assert sum(map(len, splits.values())) == 500
    assert splits["train"].column_names == ["text", "row"]
    for split, rows in splits.items():
        for text, row in zip(rows["text"], rows["row"], strict=True):
            assert assign_split(text, SHARES) == split
            name, number = source.describe_row(split, row).split(", line ")
            assert Path(name).read_text(encoding="utf-8").splitlines()[int(number) - 1] == text


def test_splits_with_files_of_their_own() -> None:
    Path("a.txt").write_text("a\n")
    Path("b.txt").write_text("b\nc\n")

    source = lines("a.txt", validation="b.txt", split=SHARES | {"test": 0}, documents="blank")

    assert {split: rows["text"][:] for split, rows in source.load(("text", "label")).items()} == {
        "train": ["a"], "validation": ["b\nc"],
    }  # fmt: skip
    assert source.describe_role("label") == "the column label of data=lines"


def test_fingerprint_depends_on_content_and_arguments() -> None:
    Path("a.txt").write_text("a\n")
    Path("moved.md").write_text("a\n")
    Path("b.txt").write_text("b\n")

    assert lines("a.txt").fingerprint == lines("moved.md").fingerprint
    others = [lines("b.txt"), lines("a.txt", documents="file"), lines("a.txt", validation="b.txt")]
    assert len({source.fingerprint for source in [lines("a.txt"), *others]}) == 4


def test_unusable_file_is_one_message() -> None:
    truncated = gzip.compress(b"a text\n" * 99, mtime=0)[:-9]
    for name, content, message in (
        ("a.txt", b"\n \n", "a.txt: contains no text. Name another file."),
        ("a.txt", "你".encode("gb18030"), "a.txt, line 1: byte 0xc4 at offset 0 of the file is not UTF-8."),
        ("a.gz", truncated, "a.gz: cannot be read: "),
    ):
        Path(name).write_bytes(content)
        with pytest.raises(DataError, match="^" + re.escape(message)):
            lines(name).load(("text",))
