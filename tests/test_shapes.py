"""Documents are checked against their shape, and the message names the field."""

import ast
import json
import os
import zlib
from pathlib import Path

import pytest

import trainer
from trainer.shapes import DocumentError, check_seal, parse_json, read_bytes, seal, to_json, to_sealed_json

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
        ({"step": 2**64}, "step: contains the integer of 65 bits, which is out of range"),
        ({"rest": "\ud800"}, 'rest: contains half of a character in "\\ud800"'),
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
        (b'{"a": NaN}', "a: contains the number nan"),
        (b'{"a": [-Infinity]}', "a[0]: contains the number -inf"),
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


def test_json_that_others_read_has_null_for_nan() -> None:
    document = {"auroc": float("nan"), "parts": [{"loss": float("inf")}, (1.5, -float("inf"))], "name": "NaN"}
    text = to_json(document, indent=1)
    assert json.loads(text, parse_constant=pytest.fail) == {
        "auroc": None,
        "parts": [{"loss": None}, [1.5, None]],
        "name": "NaN",
    }
    check_seal(json.loads(to_sealed_json(document), parse_constant=pytest.fail))


def test_a_document_of_an_earlier_version_with_nan_keeps_its_seal() -> None:
    fields = '"auroc": NaN, "split": "test"'
    text = f'{{{fields}, "checksum": "{zlib.crc32(f"{{{fields}}}".encode()):08x}"}}'
    check_seal(parse_json(text))
    with pytest.raises(DocumentError, match="checksum"):
        check_seal(parse_json(text.replace("test", "best")))


EXACT = "a checkpoint gives back equal numbers, also infinite ones"
DIGEST = "is hashed"
MESSAGE = "is shown in a message"
FINITE = "has no floats"
JSON_WRITERS = {
    "builders/loss.py": EXACT,
    "builders/model.py": EXACT,
    "builders/training.py": EXACT,
    "capture.py": EXACT,
    "checkpoint/manifest.py": FINITE,
    "checkpoint/optimizer_state.py": "only tries",
    "checkpoint/tensors.py": FINITE,
    "commands/eval.py": "compares with a file of an earlier version",
    "commands/sweep.py": "makes plain data of a config",
    "commands/doctor_probe.py": "is read by the process that has started it",
    "config/sweep.py": "makes the text of an override",
    "data/encode.py": DIGEST,
    "data/quality.py": DIGEST,
    "data/table.py": MESSAGE,
    "export/formats/weights.py": "transformers reads infinite numbers of a config as it writes them",
    "export/bundle/generate.py": FINITE,
    "distributed/launch.py": "is read by processes of its own",
    "model/weights.py": MESSAGE,
    "report/events.py": "writes texts for NaN, and refuses it",
    "shapes.py": "is the writer",
    "task/supervised.py": DIGEST,
}
"""Modules that make JSON without `to_json`, each with the reason."""


def test_all_json_is_made_by_one_function() -> None:
    package = Path(trainer.__file__).parent
    makers = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ("json.dumps", "json.dump", "json.JSONEncoder")
    }
    assert makers == JSON_WRITERS.keys()
