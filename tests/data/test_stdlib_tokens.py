import ast
from collections import Counter
from collections.abc import Callable

import pytest
from datasets import List, Value, concatenate_datasets

from trainer.data.stdlib_tokens import StdlibTokens, documented_parameters, tag_words

Library = Callable[[dict[str, str]], None]
ROLES = ("words", "tags")

CLASSES = {"OrderedDict", "Message", "HTTPServer", "FTP"}
MODULES = {"json", "json.decoder", "collections", "time", "os", "os.path"}


def entities(text: str, *parameters: str) -> list[tuple[str, str]]:
    """Return (type, words without white space between them) of each entity in BIO tags."""
    words, tags = tag_words(text, parameters, CLASSES, MODULES)
    found: list[tuple[str, str]] = []
    for word, tag in zip(words, tags, strict=True):
        if tag.startswith("B-"):
            found.append((tag[2:], word))
        elif tag.startswith("I-"):
            assert found[-1][0] == tag[2:]
            found[-1] = (tag[2:], found[-1][1] + word)
    return found


def test_names_are_found_with_their_type() -> None:
    for text, found in (
        ("Write obj to fp.", [("parameter", "obj"), ("parameter", "fp")]),
        ("Call obj.write, not objects", [("parameter", "obj")]),
        ("See json.decoder for more", [("module", "json.decoder")]),
        ("os.path.join of os.path.", [("module", "os.path"), ("module", "os.path")]),
        ("the time module, in time", [("module", "time")]),
        ("of module `json`", [("module", "json")]),
        ("A collections.OrderedDict", [("class", "collections.OrderedDict")]),
        ("An OrderedDict or OrderedDict.items", [("class", "OrderedDict"), ("class", "OrderedDict")]),
        ("Message for a Message object", [("class", "Message")]),
        ("FTP instances use FTP", [("class", "FTP")]),
        ("e.g. nothing of this, i.e. 1.5", []),
    ):
        assert entities(text, "obj", "fp") == found, text


def test_words_are_runs_of_letters_and_single_characters() -> None:
    words, tags = tag_words("Don't *open* a_file\n中文:1.5", [], [], [])

    assert words == ["Don", "'", "t", "*", "open", "*", "a_file", "中文", ":", "1", ".", "5"]
    assert tags == ["O"] * 12


def test_parameters_belong_to_the_function_or_the_class() -> None:
    function, outer, empty = ast.parse(
        "def f(self, a, /, b, *args, c=1, **kw): pass\n"
        "class A:\n    def g(self, y): pass\n    def __init__(self, x): pass\n"
        "class B: pass"
    ).body

    assert documented_parameters(function) == {"b", "args", "c", "kw"}
    assert documented_parameters(outer) == {"x"}
    assert documented_parameters(empty) == documented_parameters(ast.parse("")) == set()


def test_docstrings_of_a_library_are_tagged(library: Library) -> None:
    decoder = """class JSONDecoder:
    'Raises ValueError for broken text'
    def decode(self, text):
        'Decode text by json.decoder.JSONDecoder'
"""
    library({"json/__init__.py": "", "json/decoder.py": decoder})
    source = StdlibTokens()

    splits = source.load(ROLES)

    samples = concatenate_datasets(list(splits.values()))
    assert samples.features["words"] == samples.features["tags"] == List(Value("string"))
    found = {" ".join(row["words"]): row["tags"] for row in samples}
    assert found["Raises ValueError for broken text"] == ["O", "B-class", "O", "O", "O"]
    tags = ["O", "B-parameter", "O", "B-class", "I-class", "I-class", "I-class", "I-class"]
    assert found["Decode text by json . decoder . JSONDecoder"] == tags
    (row,) = [row["row"] for row in samples if row["words"][0] == "Raises"]
    assert source.describe_row("train", row) == "json/decoder.py, line 1"
    assert source.describe_role("tags") == "the column tags of data=stdlib_tokens"


@pytest.mark.slow
def test_library_has_thousands_of_each_type() -> None:
    splits = StdlibTokens().load(ROLES)

    samples = concatenate_datasets(list(splits.values()))
    assert all(len(row["words"]) == len(row["tags"]) for row in samples)
    counts = Counter(tag for tags in samples["tags"] for tag in tags)
    assert counts.keys() == {"O", "B-parameter", "B-class", "I-class", "B-module", "I-module"}
    assert counts["B-parameter"] > 5000
    assert min(counts["B-class"], counts["B-module"]) > 500
