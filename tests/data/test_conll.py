import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.data.conll import Conll
from trainer.data.splits import assign_split
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = ("words", "tags")


@pytest.fixture(autouse=True)
def _validation_file(working_folder: Path) -> None:
    Path("held.conll").write_text("held O\n")


def conll(train: str | list[str] = "a.conll", **changes: Any) -> Conll:
    arguments: dict[str, Any] = {"validation": "held.conll", "test": None, "split": SHARES | {"test": 0}}
    columns: dict[str, Any] = {"word": 0, "tag": -1, "separator": None, "comment": None, "cache_dir": "cache"}
    return Conll(train, **arguments | columns | changes)


def sentences(source: Conll) -> list[tuple[list[str], list[str]]]:
    train = source.load(ROLES)["train"]
    return list(zip(train["words"], train["tags"], strict=True))


ENGLISH = """-DOCSTART- -X- O O

EU NNP I-NP B-ORG
rejects VBZ I-VP O

-DOCSTART- -X- O O
Peter NNP I-NP B-PER\r
Blackburn\tNNP  I-NP I-PER
"""


@pytest.mark.parametrize("name", ["a.conll", "a.txt.gz"])
def test_sentences_end_at_blank_lines_and_documents(name: str) -> None:
    Path(name).write_bytes(gzip.compress(ENGLISH.encode(), mtime=0) if name.endswith("gz") else ENGLISH.encode())
    Path("held.conll").write_text("held NN O O\n")
    source = conll(name)

    assert sentences(source) == [(["EU", "rejects"], ["B-ORG", "O"]), (["Peter", "Blackburn"], ["B-PER", "I-PER"])]
    rows = source.load(ROLES)["train"]["row"][:]
    assert [source.describe_row("train", row) for row in rows] == [f"{name}, line 3", f"{name}, line 7"]
    assert sentences(conll(name, tag=1))[0] == (["EU", "rejects"], ["NNP", "VBZ"])


def test_last_sentence_needs_no_blank_line() -> None:
    Path("a.conll").write_text("我 O\n爱 O\n\n你 O\n好 O", encoding="utf-8-sig")

    assert sentences(conll()) == [(["我", "爱"], ["O", "O"]), (["你", "好"], ["O", "O"])]


def test_columns_may_be_separated_by_tabs_and_comments_are_skipped() -> None:
    Path("a.conll").write_text("# text = New York #1\n1\tNew York\tB\n2\t#1\tO\n\n# c\n")
    Path("held.conll").write_text("1\theld\tO\n")

    assert sentences(conll(separator="\t", word=1, comment="# ")) == [(["New York", "#1"], ["B", "O"])]


def test_shares_depend_on_the_words_only() -> None:
    Path("a.conll").write_text("".join(f"number O\n{n % 150} {n % 7}\n\n" for n in range(300)))

    splits = conll(validation=None, split=SHARES).load(ROLES)

    assert sum(map(len, splits.values())) == 300
    for split, rows in splits.items():
        assert {assign_split(" ".join(words), SHARES) for words in rows["words"]} == {split}


def test_columns_are_the_requested_roles() -> None:
    Path("a.conll").write_text("a O\n")
    source = conll()

    assert source.load(("words",))["train"].column_names == ["words", "row"]
    assert source.load(("tags", "words"))["train"].column_names == ["words", "tags", "row"]
    assert source.describe_role("tags") == "data.tag=-1"
    assert source.describe_role("text") == "the column text of data=conll"


def test_fingerprint_depends_on_content_and_arguments() -> None:
    Path("a.conll").write_text("a b O\n")
    Path("b.conll").write_text("a b O\n")

    assert conll().fingerprint == conll("b.conll").fingerprint
    others = [conll("held.conll", validation="a.conll"), conll(tag=1), conll(separator=" "), conll(comment="#")]
    assert len({source.fingerprint for source in [conll(), *others]}) == 5


@pytest.mark.parametrize(
    ("content", "changes", "message"),
    [
        ("a O\nb\n", {}, "a.conll, line 2: expected 2 columns as in the lines before, got 1. Check data.separator"),
        ("a O\n\nb x O\n", {}, "a.conll, line 3: expected 2 columns as in the lines before, got 3."),
        ("a O\n", {"tag": 2}, "a.conll, line 1: data.tag=2 is out of range: the line has 2 columns."),
        ("a O\n", {"word": -3}, "a.conll, line 1: data.word=-3 is out of range: the line has 2 columns."),
        ("word\n", {}, "a.conll, line 1: data.word=0 and data.tag=-1 are the same column: the line has 1"),
        ("a\t\n", {"separator": "\t"}, "a.conll, line 1, data.tag=-1: is empty."),
        ("\n\n-DOCSTART- O\n", {}, "a.conll: contains no sentence."),
    ],
)
def test_unusable_file_is_one_message(content: str, changes: dict[str, Any], message: str) -> None:
    Path("a.conll").write_text(content)

    with pytest.raises(DataError, match="^" + re.escape(message)):
        conll(**changes).load(ROLES)


def test_arguments_out_of_range_are_rejected() -> None:
    for key, value in (("tag", 0), ("separator", ""), ("separator", "a\n"), ("comment", "\n"), ("split", {})):
        with pytest.raises(ConfigError, match=f"^{key}: must "):
            conll(**{key: value})
