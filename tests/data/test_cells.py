import json
import runpy
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from trainer.data.cells import (
    IMAGE_SUFFIXES,
    REMEDIES,
    ROLE_NOUNS,
    as_text,
    cell_parser,
    describe_incomplete_rows,
    encode_png,
    image_digest,
    is_number,
    join_columns,
    parse_number,
    split_key,
)
from trainer.export.bundle import rows

NAN, INFINITY = float("nan"), float("inf")


def test_cells_become_strings() -> None:
    for value in ("None", "", " 好 "):
        assert as_text(value) == value
    numbers = {7: "7", 2**70: str(2**70), True: "1", False: "0", 2.0: "2", 0.5: "0.5", INFINITY: "inf"}
    for number, text in numbers.items():
        assert as_text(number) == text
    assert as_text(NAN) is as_text(None) is None


def test_conversations_become_texts() -> None:
    parse = cell_parser("text", "|")
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello\nyou", "weight": 1}]
    assert parse(messages) == "user: Hi\nassistant: Hello\nyou"
    assert parse([{"from": "human", "value": "Hi"}]) == "human: Hi"
    for text in ('["a"]', json.dumps(messages), "[]"):
        assert parse(text) == text
    for part, message in (({"role": "tool", "content": None}, "content"), ({"role": 1, "content": "a"}, "role")):
        with pytest.raises(ValueError, match=f"the {message} of message 2 must be a text"):
            parse([messages[0], part])


def test_several_columns_become_one_text() -> None:
    names = ["instruction", "input", "output"]
    assert join_columns(["Add.", "1 2", 3.0], names) == "instruction: Add.\ninput: 1 2\noutput: 3"
    assert join_columns(["Say hi.", " ", None], names) == "instruction: Say hi."
    assert join_columns([NAN, "", None], names) is None
    conversation = [[{"role": "user", "content": "Hi"}], None, "Hello"]
    assert join_columns(conversation, names) == "user: Hi\noutput: Hello"
    exported = runpy.run_path(str(Path(rows.__file__)))
    for cells in (["Add.", "1 2", 3.0], ["Say hi.", " ", None], [None, "", None], conversation, [True, 0.5, "[1]"]):
        joined = exported["pick"](dict(zip(names, cells, strict=True)), {"text": names})["text"]
        assert joined == (join_columns(cells, names) or "")
    assert exported["as_document"]([{"from": "human", "value": "Hi"}] * 2) == "human: Hi\nhuman: Hi"


@pytest.mark.parametrize("value", [["a"], {"a": 1}, b"a", "\ud83d"])
def test_values_that_are_not_text_are_rejected(value: object) -> None:
    with pytest.raises(ValueError, match=r"expected a string|surrogate"):
        as_text(value)


def test_numbers_and_their_texts_are_parsed() -> None:
    cells = {"1": 1.0, " -2.5e3 ": -2500.0, ".5": 0.5, "+7": 7.0, 3: 3.0, True: 1.0, Decimal("1.25"): 1.25}
    for cell, number in cells.items():
        assert parse_number(cell) == number
    for empty in (None, "", " \t", NAN, "NaN"):
        assert parse_number(empty) is None


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1_000", "expected a number, got '1_000'"),
        ("1,5", "expected a number, got '1,5'"),
        ([1], "expected a number, got list"),
        ("-inf", "expected a finite number, got '-inf'"),
        (INFINITY, "expected a finite number, got inf"),
        ("x" * 99, "expected a number, got '" + "x" * 56 + "..."),
    ],
)
def test_cells_that_are_not_finite_numbers_are_rejected(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match="expected a") as caught:
        parse_number(cell)

    assert str(caught.value) == message
    assert is_number(cell) == ("finite" in message)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_number_survives_its_text(value: float) -> None:
    assert parse_number(repr(value)) == parse_number(value) == value
    assert is_number(repr(value))


SPAN = {"start": 0, "end": 4, "label": "a"}
CELLS: list[tuple[str, Any, Any]] = [
    ("text", " a ", " a "),
    ("text", "  ", None),
    ("positive", 5, "5"),
    ("label", "", None),
    ("label", " ", " "),
    ("label", 1.0, "1"),
    ("labels", "b | a||b", ["b", "a"]),
    ("labels", '["b", "a|c"]', ["b", "a|c"]),
    ("labels", "[2, 1]", ["2", "1"]),
    ("labels", "[]", []),
    ("labels", "[a|b]", ["[a", "b]"]),
    ("labels", "[1, 0]", ["1", "0"]),
    ("words", '["[", "a b"]', ["[", "a b"]),
    ("tags", '["O","B-x"]', ["O", "B-x"]),
    ("words", "[1]|[[2]]", ["[1]", "[[2]]"]),
    ("labels", ["b", 1, None], ["b", "1"]),
    ("labels", None, []),
    ("labels", "", []),
    ("words", "New York|is", ["New York", "is"]),
    ("words", [], None),
    ("words", "", None),
    ("words", ["你", "好"], ["你", "好"]),
    ("tags", ["B-A B", "O"], ["B-A B", "O"]),
    ("spans", [{"start": 0, "end": 4, "label": "a", "id": 7}], [SPAN]),
    ("spans", '[{"start_idx": 0, "end_idx": 4, "type": "a"}]', [SPAN]),
    ("spans", [{"start_offset": 0, "end_offset": 4, "label": "a"}], [SPAN]),
    ("spans", [[0, 4, "a"]], [SPAN]),
    ("spans", {"start": [0, 2], "end": [4, 3], "label": ["a", 1]}, [SPAN, {"start": 2, "end": 3, "label": "1"}]),
    ("spans", {"start": [], "end": [], "label": []}, []),
    ("spans", "[]", []),
    ("spans", " ", None),
    ("spans", None, None),
    ("value", ["1.5", 2], [1.5, 2.0]),
    ("value", [[1, 2]], [1.0, 2.0]),
    ("value", ["1", ""], None),
    ("value", [[]], None),
    ("value", [None], None),
    ("group", 7.0, "7"),
    ("time", "7.5", 7.5),
    ("stratify", 3.0, "3"),
    ("score", "4.5", 4.5),
    ("score", None, None),
    ("image", "a.png", {"bytes": None, "path": "a.png"}),
    ("image", b"PNG", {"bytes": b"PNG", "path": None}),
    ("image", {"bytes": b"PNG", "path": "a.png"}, {"bytes": b"PNG", "path": "a.png"}),
    ("image", {"bytes": None, "path": None}, None),
    ("image", "", None),
]


def test_cell_becomes_the_value_of_its_role() -> None:
    for role, cell, value in CELLS:
        assert cell_parser(role, "|")(cell) == value, (role, cell)
    assert cell_parser("tags", " ")(" O  B-A\tO ") == ["O", "B-A", "O"]


@pytest.mark.parametrize(
    ("role", "cell", "message"),
    [
        ("text", ["a"], "expected a string, got list"),
        ("words", ["a", None], "one of the words or tags is empty"),
        ("words", ["a", ["b"]], "expected a string, got list"),
        ("tags", "O B-A", r"a tag contains white space, got 'O B-A'; check data\.list_separator"),
        ("spans", "0 4 a", "expected a JSON list of spans, got '0 4 a'"),
        ("spans", 4, "expected a list of spans, got int"),
        ("spans", "7", "expected a list of spans, got int"),
        ("spans", ["a"], "expected a start, an end and a label, got 'a'"),
        ("spans", [[0, 4]], r"expected a start, an end and a label, got \[0, 4\]"),
        ("spans", [["0", 4, "a"]], "the start and the end must be whole numbers of at least 0"),
        ("spans", [[-1, 4, "a"]], "the start and the end must be whole numbers of at least 0"),
        ("spans", [[True, 4, "a"]], "the start and the end must be whole numbers of at least 0"),
        ("spans", [{"start": 0, "label": "a"}], "the start and the end must be whole numbers"),
        ("spans", [[0, 4, " "]], "a span has no label"),
        ("value", ["x"], "expected a number, got 'x'"),
        ("group", " ", "the row has no group"),
        ("score", "x", "expected a number, got 'x'"),
        ("image", 1.5j, "expected a string, got complex"),
    ],
)
def test_cell_of_the_wrong_type_is_rejected(role: str, cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        cell_parser(role, "|")(cell)


def test_every_role_has_a_parser_a_noun_and_a_remedy() -> None:
    tested = {role for role, _, _ in CELLS} | {"features", "text_pair", "negative"}

    # A row without a group or a time is an error, so there is no noun for what it lacks.
    assert tested == REMEDIES.keys() == ROLE_NOUNS.keys() | {"group", "time", "stratify"}


def test_split_key_consists_of_the_inputs_only() -> None:
    assert split_key({"text": " a  b", "label": "x", "labels": ["y"], "value": [1.0], "score": 1.0}) == " a  b"
    assert split_key({"words": ["a", "b"], "tags": ["O", "O"]}) == "a b"
    assert split_key({"text": "a  b", "text_pair": "c"}) == split_key({"text": " a b", "text_pair": "c "}) == "a b\0c"
    assert split_key({"text": "a", "text_pair": "b c"}) != split_key({"text": "a b", "text_pair": "c"})
    assert split_key({"text": "anchor", "positive": "p", "negative": "n"}) == "anchor"
    assert split_key({"label": "x"}) == ""


def test_split_key_of_features_depends_on_their_values_only() -> None:
    key = split_key({"features": {"a": 1.0, "b": None, "c": "x  y"}})

    assert key == split_key({"features": {"c": "x  y", "a": "1", "b": None}})
    assert key == split_key({"features": {"a": "1.0", "b": "", "c": "x  y"}})
    assert key != split_key({"features": {"b": 1.0, "a": None, "c": "x  y"}})


def test_split_key_of_an_image_depends_on_its_content_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")

    key = split_key({"image": {"bytes": None, "path": str(tmp_path / "a.png")}})

    assert key == split_key({"image": {"bytes": b"content", "path": "elsewhere.png"}})
    assert key != split_key({"image": {"bytes": b"other", "path": None}})


def test_incomplete_rows_are_described_by_their_required_roles() -> None:
    assert describe_incomplete_rows(["text"]) == "rows without a text"
    assert describe_incomplete_rows(["text", "label"]) == "rows without a text or a label"
    roles = ["text", "text_pair", "score"]
    assert describe_incomplete_rows(roles) == "rows without a text, a second text or a score"
    assert describe_incomplete_rows(["features", "value", "labels"]) == "rows without a value"


@given(arrays(np.uint8, array_shapes(min_dims=2, max_dims=2, max_side=12)))
def test_png_keeps_every_pixel(pixels: np.ndarray) -> None:
    image = encode_png(pixels)

    with Image.open(BytesIO(image["bytes"])) as decoded:
        assert (decoded.format, decoded.mode) == ("PNG", "L")
        assert np.array_equal(np.asarray(decoded), pixels)
    assert image["path"] is None


def test_image_digest_depends_on_the_content_only(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"a")

    digest = image_digest({"bytes": None, "path": str(tmp_path / "a.png")})

    assert digest == image_digest({"bytes": b"a", "path": None}) != image_digest({"bytes": b"", "path": None})
    with pytest.raises(FileNotFoundError):
        image_digest({"bytes": None, "path": str(tmp_path / "b.png")})


def test_pillow_reads_every_image_suffix() -> None:
    Image.init()

    assert {Image.EXTENSION[suffix] for suffix in IMAGE_SUFFIXES} >= {"PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"}
