"""The standard library of the running interpreter; all assertions are true on every supported version."""

import inspect
import json
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, List, Value, concatenate_datasets

from trainer.data.splits import assign_split, normalize_whitespace
from trainer.data.stdlib_docs import StdlibDocs
from trainer.errors import DataError

Library = Callable[[dict[str, str]], None]


@pytest.fixture(scope="module")
def splits() -> dict[str, Dataset]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return StdlibDocs().load(("text", "label"))


@pytest.fixture(scope="module")
def samples(splits: dict[str, Dataset]) -> Dataset:
    return concatenate_datasets(list(splits.values()))


def test_library_has_thousands_of_samples_in_15_topics(samples: Dataset) -> None:
    counts = Counter(samples["label"])

    assert 5000 < len(samples) < 7500  # some systems package tkinter separately
    assert len(counts) == 15
    assert min(counts, key=counts.__getitem__) == "crypto"
    assert 60 < counts["crypto"] < 80


def test_texts_are_distinct_and_have_four_words(samples: Dataset) -> None:
    texts = [normalize_whitespace(text) for text in samples["text"]]

    assert len(set(texts)) == len(texts)
    assert min(len(text.split()) for text in texts) == 4


def test_splits_depend_on_the_text_and_contain_every_topic(splits: dict[str, Dataset]) -> None:
    total = sum(map(len, splits.values()))

    assert list(splits) == ["train", "validation", "test"]
    for split, samples in splits.items():
        assert {assign_split(text, {"validation": 0.1, "test": 0.1}) for text in samples["text"]} == {split}
        assert len(set(samples["label"])) == 15
        assert len(samples) == pytest.approx(total * (0.8 if split == "train" else 0.1), rel=0.1)


def test_objects_have_their_topic_and_tests_are_left_out(samples: Dataset) -> None:
    objects = dict(
        zip(samples["name"], zip(samples["label"], samples["kind"], samples["text"], strict=True), strict=True)
    )

    assert objects["json.decoder.JSONDecoder.decode"] == (
        "internet",
        "function",
        inspect.getdoc(json.JSONDecoder.decode),
    )
    assert objects["json"] == ("internet", "module", inspect.getdoc(json))
    assert objects["cmd.Cmd"][:2] == ("gui", "class")
    assert not any(name.startswith(("test.", "idlelib.", "pip.")) or ".test." in name for name in objects)


def test_row_has_its_file_and_line(splits: dict[str, Dataset]) -> None:
    sample = next(sample for sample in splits["train"] if sample["name"] == "json.decoder.JSONDecoder")

    place = StdlibDocs().describe_row("train", sample["row"])

    file, line = place.split(", line ")
    source = Path(sysconfig.get_path("stdlib"), file).read_text(encoding="utf-8").splitlines()
    assert file == "json/decoder.py"
    assert source[int(line) - 1].startswith("class JSONDecoder")
    assert splits["train"].features["row"].dtype == "int64"


def test_tests_duplicates_and_short_docstrings_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    many = "\n".join(f"def f{n}():\n    'What the function {n} does'" for n in range(100))
    for name, source in {
        "json/__init__.py": many,
        "json/tests/case.py": "'A test of the package'",
        "asyncio/tasks.py": "def again():\n    'What  the function\\n 7 does'",
        "zipfile.py": "'Only three words'",
        "idlelib/run.py": "'An application, not a library'",
        "re/_parser.py": "'One of the engine'",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)

    splits = StdlibDocs().load(("text", "label"))

    samples = concatenate_datasets(list(splits.values()))
    assert Counter(samples["label"]) == {"internet": 99, "networking": 1, "text": 1}
    assert set(samples["name"]) == {f"json.f{n}" for n in range(100) if n != 7} | {"asyncio.tasks.again", "re._parser"}
    assert {split: rows.to_dict() for split, rows in StdlibDocs().load(("text", "label")).items()} == {
        split: rows.to_dict() for split, rows in splits.items()
    }


def test_labels_are_topic_type_and_access(library: Library) -> None:
    methods = {"__init__": "What it is made of", "_f": "What it does inside"}
    lines = ["class C:", "    'What the class is for'"]
    lines += [line for name, text in methods.items() for line in (f"    def {name}(self):", f"        {text!r}")]
    library({"json/__init__.py": "\n".join(lines), "_weakrefset.py": "'Of weak references only'"})

    samples = concatenate_datasets(list(StdlibDocs().load(("text", "labels")).values()))

    assert samples.features["labels"] == List(Value("string"))
    by_name = dict(zip(samples["name"], samples["labels"], strict=True))
    assert {name: labels for name, labels in by_name.items() if "filler" not in name} == {
        "json.C": ["internet", "class", "public"],
        "json.C.__init__": ["internet", "method", "public"],
        "json.C._f": ["internet", "method", "private"],
        "_weakrefset": ["types", "module", "private"],
    }
    assert by_name["cmd.filler7"] == ["gui", "function", "public"]


def test_requested_roles_do_not_change_the_splits(splits: dict[str, Dataset], library: Library) -> None:
    assert list(splits["train"].features) == ["text", "label", "name", "kind", "row"]
    assert splits["train"]["row"][:] == sorted(splits["train"]["row"][:])
    library({})
    some, more = (StdlibDocs().load(roles)["train"] for roles in (("text",), ("labels", "label", "text")))
    assert more.remove_columns("labels").to_dict() == some.to_dict()


def test_fingerprint_depends_on_the_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    (tmp_path / "json").mkdir()
    file = tmp_path / "json" / "decoder.py"
    file.write_text("a = 1")
    first = StdlibDocs().fingerprint

    assert StdlibDocs().fingerprint == first
    file.write_text("a = 11")
    assert StdlibDocs().fingerprint != first


def test_interpreter_without_sources_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python311.zip"))

    with pytest.raises(DataError, match=r"python311\.zip: does not contain the sources .* data=files"):
        StdlibDocs().load(("text", "label"))


def test_columns_are_named_for_messages() -> None:
    assert StdlibDocs().describe_role("label") == "the column label of data=stdlib_docs"
