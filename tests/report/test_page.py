from html.parser import HTMLParser

from trainer.report.page import Section, page


class Tags(HTMLParser):
    """The tags of a page, and what any of them refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.references: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.references += [str(value) for name, value in attributes if name in ("src", "href", "onload")]
        if tag not in ("meta",) and tag not in ("line",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_stands_alone_and_is_closed_everywhere() -> None:
    text = page(
        "a run",
        [
            Section("table", ["key", "value"], [["x", 1.5], ["y", None]], marked=frozenset({"x"})),
            Section("curves", figures={"loss": {"raw": {0: 1.0, 1: 2.0}, "ema": {0: 1.0}}, "empty": {"raw": {}}}),
            Section("text", text="one\ntwo"),
        ],
    )
    tags = Tags(text)

    assert tags.open == []
    assert {"table", "svg", "pre", "figure"} <= tags.seen
    assert not {"script", "link", "img", "iframe"} & tags.seen
    assert tags.references == []
    assert "url(" not in text
    assert "http" not in text


def test_what_is_shown_is_escaped_and_numbers_are_for_persons() -> None:
    text = page("<i>", [Section("rows", ["k"], [["<script>", 0.123456, True, 3]])])

    assert "<i>" not in text
    assert "&lt;script&gt;" in text
    assert '<td class="number">0.1235</td>' in text
    assert "true" in text


def test_what_has_no_content_is_left_out() -> None:
    text = page("a run", [Section("nothing", ["column"]), Section("no values", figures={"loss": {"x": {}}})])

    assert "nothing" not in text
    assert "no values" not in text
