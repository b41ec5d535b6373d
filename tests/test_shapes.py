"""Documents are checked against their shape, and the message names the field."""

import json
import os
from pathlib import Path

import pytest

from trainer.shapes import DocumentError, check_seal, parse_json, read_bytes, seal

SHAPE = {
    "step": int,
    "loss": float,
    "names": [str],
    "limits": [int, (int, None)],
    "files": {str: {"size": int}},
    "score": ({"value": float}, None),
    "note?": str,
    "exact": bool,
    "rest": object,
}
GOOD = {
    "step": 3,
    "loss": 1,
    "names": ["a"],
    "limits": [1, None],
    "files": {"x.y": {"size": 1, "more": "allowed"}},
    "score": {"value": 0.5},
    "exact": True,
    "rest": [{}],
}


def test_a_document_of_the_shape_is_returned() -> None:
    assert parse_json(json.dumps(GOOD), SHAPE) == GOOD
    assert parse_json(json.dumps(GOOD | {"score": None, "note": ""}).encode(), SHAPE)["score"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 1.0}, "step: must be an integer, got 1.0"),
        ({"step": True}, "step: must be an integer, got true"),
        ({"loss": "1"}, 'loss: must be a number, got "1"'),
        ({"names": {"a": 1}}, "names: must be a list, got {"),
        ({"names": ["a", None]}, "names[1]: must be a text, got null"),
        ({"limits": [1]}, "limits: must have 2 items, got [1]"),
        ({"limits": [1, "2"]}, 'limits[1]: must be an integer or null, got "2"'),
        ({"files": {"x.y": {}}}, "files.x.y.size: is missing"),
        ({"files": {"x": [1]}}, "files.x: must be an object, got [1]"),
        ({"score": 0.5}, "score: must be an object or null, got 0.5"),
        ({"score": {"value": None}}, "score.value: must be a number, got null"),
        ({"note": None}, "note: must be a text, got null"),
        ({"exact": 1}, "exact: must be true or false, got 1"),
        ({"step": 2**64}, "contains the integer of 65 bits, which is out of range"),
        ({"rest": "\ud800"}, 'contains half of a character in "\\ud800"'),
        ({"rest": {"\ud800": 1}}, 'contains half of a character in "\\ud800"'),
        ({"names": "long" * 1000}, f'names: must be a list, got "{"long" * 14}lon…'),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(DocumentError) as error:
        parse_json(json.dumps(GOOD | changes), SHAPE)
    assert str(error.value).startswith(message)
    missing = {name: value for name, value in GOOD.items() if name not in changes}
    if len(missing) < len(GOOD):
        with pytest.raises(DocumentError, match=r"^\w+: is missing$"):
            parse_json(json.dumps(missing), SHAPE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not JSON"),
        (b'{"a": 1', "is not JSON"),
        (b"\xff\xfe{}", "is not UTF-8 text"),
        (b"null", "must be an object, got null"),
        (b"[" * 100_000, "is nested too deeply"),
        (b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}", "is nested more than 100 levels deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON (Exceeds the limit"),
        (b'{"a": NaN}', "contains the number nan"),
        (b'{"a": [-Infinity]}', "contains the number -inf"),
    ],
)
def test_bytes_that_are_no_document_are_refused(data: bytes, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        parse_json(data, {str: object}, finite=True)
    assert str(error.value).startswith(message)


def test_a_seal_holds_every_field() -> None:
    sealed = seal({"a": [1, 0.1, "ä"], "b": None})
    check_seal(json.loads(json.dumps(sealed)))
    assert seal(sealed) == sealed
    for changed in (sealed | {"b": 0}, sealed | {"c": 1}, {"a": sealed["a"], "b": None}, {"checksum": "00000000"}):
        with pytest.raises(DocumentError, match="does not match its own checksum"):
            check_seal(changed)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(DocumentError, match="is not a regular file"):
            read_bytes(path)
    file = tmp_path / "file"
    file.write_bytes(b"12345")
    assert read_bytes(file, 5) == b"12345"
    with pytest.raises(DocumentError, match="has 5 bytes, more than any document"):
        read_bytes(file, 4)
