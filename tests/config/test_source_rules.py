"""What a source refuses when it is made is told before, and nothing else is."""

from typing import Any

import pytest

from trainer.builders.instantiate import instantiate
from trainer.config.catalogue import Catalogue, own_folder
from trainer.config.source_rules import faults
from trainer.errors import ConfigError

CATALOGUE = Catalogue((own_folder(),))
NEEDED: dict[str, dict[str, Any]] = {"files": {"train": "a.csv"}, "lines": {"train": "a.txt"}, "hub": {"path": "a/b"}}
NEEDED |= {"conll": {"train": "a.conll"}, "idx": {"folder": "a"}, "imagefolder": {"root": "."}}


def changed(option: str, changes: dict[str, Any]) -> dict[str, Any]:
    part = CATALOGUE.content("data", option) | NEEDED[option]
    return part | {
        key: part[key] | value if isinstance(part[key], dict) and isinstance(value, dict) else value
        for key, value in changes.items()
    }


@pytest.mark.parametrize(
    ("option", "changes", "told"),
    [
        ("files", {"label": "text"}, "data.label: must be another column than data.text, got 'text'."),
        ("files", {"separator": ";;"}, "data.separator: must be one character or null, got ';;'."),
        ("files", {"quote": "\n"}, "data.quote: must stand within a line, got '\\n'."),
        ("files", {"list_separator": ""}, "data.list_separator: must not be empty, got ''."),
        ("files", {"columns": {"words": ["a", "b"]}}, "data.columns.words: must be one column, got ['a', 'b']."),
        ("files", {"columns": {"value": ["a", "a"]}}, "data.columns.value: must be different columns, got ['a', 'a']."),
        ("files", {"columns": {"features": []}}, "data.columns.features: must not be empty, got []."),
        ("hub", {"columns": {"text": ""}}, "data.columns.text: must not be empty, got ''."),
        ("hub", {"splits": {"train": None}}, "data.splits.train: must be the name of a split, got None."),
        ("conll", {"tag": 0}, "data.tag: must be another column than data.word, got 0."),
        ("conll", {"comment": "a\n"}, "data.comment: must stand within a line, got 'a\\n'."),
        ("conll", {"separator": ""}, "data.separator: must not be empty, got ''."),
        ("idx", {"folder": None}, "data.folder: is needed, or data.train.images and data.train.labels, got None."),
        ("idx", {"train": {"images": "a", "labels": "b"}}, "data.folder: must be null where files are named, got 'a'."),
        (
            "idx",
            {"folder": None, "train": {"images": "a", "labels": "b"}, "test": {"labels": "a"}},
            "data.test.images: is needed beside data.test.labels, got None.",
        ),
    ],
)
def test_each_fault_alone(option: str, changes: dict[str, Any], told: str) -> None:
    part = changed(option, changes)
    assert list(faults({"data": part})) == [told]
    with pytest.raises(ConfigError):
        instantiate("data", part)


@pytest.mark.parametrize(
    ("option", "changes"),
    [
        *((option, {}) for option in NEEDED),
        ("files", {"separator": "\t", "quote": None, "columns": {"value": ["a", "b"], "words": None}}),
        ("conll", {"separator": " | ", "comment": "# "}),
        ("idx", {"folder": None, "train": {"images": "a", "labels": "b"}}),
    ],
)
def test_what_is_allowed(option: str, changes: dict[str, Any]) -> None:
    part = changed(option, changes)
    assert list(faults({"data": part})) == []
    instantiate("data", part)


def test_files_that_are_no_files_and_sources_of_others() -> None:
    for value in ("", [], ["a.csv", ""]):
        (told,) = faults({"data": changed("files", {"validation": value})})
        assert told == f"data.validation: must not be empty, got {value!r}."
    assert list(faults({"data": {"_target_": "mine.Source", "text": "", "label": ""}})) == []
