import pytest

from trainer.data import stdlib
from trainer.data.stdlib_spans import StdlibSpans, find_calls, find_spans

TEXT = "Call json.dumps(obj, cls=json.JSONEncoder) or open(path(name)) as f(x. See the module json."


def test_calls_end_at_their_own_parenthesis() -> None:
    found = [TEXT[start:end] for start, end in find_calls(TEXT)]
    assert found == ["json.dumps(obj, cls=json.JSONEncoder)", "open(path(name))", "path(name)"]
    assert list(find_calls(f"f({'x' * 97})")) == [(0, 100)]
    assert list(find_calls(f"f({'x' * 98})")) == []


def test_spans_may_be_in_each_other() -> None:
    found = find_spans(TEXT, ("obj", "cls", "name"), ("JSONEncoder",), ("json",))
    assert [(TEXT[start:end], label) for start, end, label in found] == [
        ("json.dumps(obj, cls=json.JSONEncoder)", "call"),
        ("json", "module"),
        ("obj", "parameter"),
        ("cls", "parameter"),
        ("json.JSONEncoder", "class"),
        ("json", "module"),
        ("open(path(name))", "call"),
        ("path(name)", "call"),
        ("name", "parameter"),
        ("json", "module"),
    ]


def test_rows_are_texts_with_spans_of_every_label(monkeypatch: pytest.MonkeyPatch) -> None:
    # Finding the spans of the whole library takes seconds.
    monkeypatch.setattr(stdlib, "_TOPIC", {"asyncio": "networking", "email": "internet", "unittest": "development"})
    source = StdlibSpans()
    rows = source.load(("text", "spans"))["validation"]
    assert rows.column_names == ["text", "spans", "row"]
    spans = [(row["text"], span) for row in rows for span in row["spans"]]
    assert {span["label"] for _, span in spans} == {"call", "parameter", "class", "module"}
    assert all(text[span["start"] : span["end"]].strip() == text[span["start"] : span["end"]] for text, span in spans)
    assert any(not row["spans"] for row in rows)
    assert source.describe_role("spans") == "the column spans of data=stdlib_spans"
