import ast
from collections import Counter
from collections.abc import Callable

import pytest
from datasets import concatenate_datasets

from trainer.data.splits import assign_split
from trainer.data.stdlib_docs import StdlibDocs
from trainer.data.stdlib_pairs import StdlibPairs, signature

Library = Callable[[dict[str, str]], None]
ROLES = ("text", "text_pair", "label")


def test_signature_is_the_line_of_the_source() -> None:
    for line in (
        "def dump(obj, fp, /, *, skipkeys=False, **kw)",
        "async def run(self, *args: int) -> None",
        "def f()",
    ):
        (function,) = ast.parse(f"{line}:\n    pass").body

        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        assert signature(function) == line


def test_every_function_has_its_own_and_another_signature(library: Library) -> None:
    library({"json.py": "class C:\n    'No function at all'\n    def f(self):\n        'One of its methods'\n"})

    splits = StdlibPairs().load(ROLES)

    samples = concatenate_datasets(list(splits.values()))
    assert Counter(samples["label"]) == {"match": 101, "mismatch": 101}
    own = {row["text"]: row["text_pair"] for row in samples if row["label"] == "match"}
    assert own["One of its methods"] == "def f(self)"
    assert own["What the filler 7 does. Of no use to 7 at all."] == "def filler7(x7)"
    for row in samples:
        assert (own[row["text"]] == row["text_pair"]) == (row["label"] == "match")
    others = Counter(row["text_pair"] for row in samples if row["label"] == "mismatch")
    assert others.keys() <= set(own.values())
    assert max(others.values()) < 8
    for split, rows in splits.items():
        assert {assign_split(text, {"validation": 0.1, "test": 0.1}) for text in rows["text"]} == {split}


def test_equal_signature_is_never_a_mismatch(library: Library) -> None:
    library({"json.py": "\n".join(f"def f(x):\n    'Number {n} of the same'" for n in range(300))})

    rows = concatenate_datasets(list(StdlibPairs().load(ROLES).values()))

    same = [row for row in rows if "same" in row["text"]]
    assert len(same) == 600
    assert all((row["text_pair"] == "def f(x)") == (row["label"] == "match") for row in same)


def test_pairs_are_the_same_on_every_call_and_know_their_line(library: Library) -> None:
    library({})
    source = StdlibPairs()

    first, second = source.load(ROLES), StdlibPairs().load(ROLES)

    assert {split: rows.to_dict() for split, rows in first.items()} == {
        split: rows.to_dict() for split, rows in second.items()
    }
    row = first["train"][0]
    number = int(row["text"].split()[3])
    assert source.describe_row("train", row["row"]) == f"cmd.py, line {2 * number + 1}"
    assert source.describe_role("text_pair") == "the column text_pair of data=stdlib_pairs"
    assert source.fingerprint != StdlibDocs().fingerprint


@pytest.mark.slow
def test_common_signature_does_not_reveal_the_label() -> None:
    samples = concatenate_datasets(list(StdlibPairs().load(ROLES).values()))

    assert len(samples) > 8000
    counts = Counter(zip(samples["label"], samples["text_pair"], strict=True))
    common = [pair for (label, pair), _ in counts.most_common() if label == "match"][:20]
    matches, mismatches = (sum(counts[label, pair] for pair in common) for label in ("match", "mismatch"))
    assert matches == pytest.approx(mismatches, rel=0.25)
