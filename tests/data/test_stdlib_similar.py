from collections.abc import Callable

import pytest
from datasets import concatenate_datasets

from trainer.data.splits import assign_split
from trainer.data.stdlib_similar import StdlibSimilar, summary_and_rest

Library = Callable[[dict[str, str]], None]
ROLES = ("text", "positive")


def test_docstring_is_split_after_its_first_sentence() -> None:
    for text, summary, rest in (
        ("One line only", "One line only", ""),
        ("A summary.\n\n  Indented rest.\n\nMore.", "A summary.", "Indented rest.\n\nMore."),
        ("A summary\nof two lines\n \nThe rest", "A summary\nof two lines", "The rest"),
        ("First sentence. Second one.", "First sentence.", "Second one."),
        ("Is it so? Yes", "Is it so?", "Yes"),
        ("Some, i.e. Two of e.g. three", "Some, i.e. Two of e.g. three", ""),
        ("Version 1.5 of sys.version", "Version 1.5 of sys.version", ""),
    ):
        assert summary_and_rest(text) == (summary, rest)


def test_pairs_have_four_words_and_share_no_text(library: Library) -> None:
    docs = [
        "A summary of four. Followed by four words.",
        "A summary of four. Followed by four others.",
        "Another summary of four. Followed by four words.",
        "Too short.  But followed by enough",
        "Long enough to stay. But not this",
        "没有 空格 也 可以.\n\n这 是 其余 的",
    ]
    library({"json.py": "\n".join(f"def f{n}():\n    {text!r}" for n, text in enumerate(docs))})

    splits = StdlibSimilar().load(ROLES)

    rows = [row for row in concatenate_datasets(list(splits.values())) if "filler" not in row["text"]]
    assert sorted((row["text"], row["positive"]) for row in rows) == [
        ("A summary of four.", "Followed by four words."),
        ("没有 空格 也 可以.", "这 是 其余 的"),
    ]
    for split, samples in splits.items():
        for text, positive in zip(samples["text"], samples["positive"], strict=True):
            assert assign_split(f"{text} {positive}", {"validation": 0.1, "test": 0.1}) == split


def test_row_has_its_file_and_line(library: Library) -> None:
    library({"json.py": "\n\ndef f():\n    'The very first of all. The rest of all that.'"})
    source = StdlibSimilar()

    rows = concatenate_datasets(list(source.load(ROLES).values()))

    (row,) = [row for row in rows if row["text"].startswith("The very")]
    assert source.describe_row("train", row["row"]) == "json.py, line 3"
    assert source.describe_role("positive") == "the column positive of data=stdlib_similar"
    assert source.fingerprint == StdlibSimilar().fingerprint


@pytest.mark.slow
def test_library_has_thousands_of_pairs() -> None:
    splits = StdlibSimilar().load(ROLES)

    assert 2000 < sum(map(len, splits.values())) < 5000
    assert min(map(len, splits.values())) > 150
