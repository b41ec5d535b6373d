"""Checks of pages as a browser and a screen reader see them."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


TEXTS = {"h1", "h2", "h3", "summary", "title", "figcaption"}
"""Elements that a screen reader announces by their text."""


def find_faults(tag: str, attributes: dict[str, str | None], parent: list[str]) -> list[str]:
    """Return what a screen reader or a keyboard could not use in a tag, by the names of axe's rules."""
    rules = {
        "html-has-lang": tag == "html" and not attributes.get("lang"),
        "image-alt": tag == "img" and not attributes.get("alt"),
        "svg-img-alt": tag == "svg" and (attributes.get("role") != "img" or not attributes.get("aria-label")),
        "region-name": attributes.get("role") == "region" and not attributes.get("aria-label"),
        "scrollable-region-focusable": attributes.get("class") == "scroll" and attributes.get("tabindex") != "0",
        "table-in-scrollable-region": tag == "table" and parent != ["div"],
        "scope-attr-valid": tag == "th" and attributes.get("scope") not in ("col", "row"),
        "summary-first-in-details": tag == "summary" and parent != ["details"],
        "meta-viewport": attributes.get("name") == "viewport" and "maximum-scale" in str(attributes.get("content")),
    }
    return [f"{tag}: {rule}" for rule, is_broken in rules.items() if is_broken]


class Tags(HTMLParser):
    """The tags of a page, its headings, and the addresses that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.headings: list[int] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
        self.faults: list[str] = []
        self.empty: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.headings += [int(tag[1])] if re.fullmatch(r"h\d", tag) else []
        self.references += [str(value) for name, value in attributes if name in ("src", "href", "action", "data")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]
        self.faults += find_faults(tag, dict(attributes), self.open[-1:])
        if tag in TEXTS:
            self.empty.append(tag)

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.empty.clear()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in TEXTS and self.empty:
            self.faults.append(f"{self.empty.pop()} without a text")


def check_page(text: str) -> Tags:
    """Check that a page is well-formed, runs nothing, loads nothing, and has its headings in order."""
    tags = Tags(text)
    assert tags.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & tags.seen
    assert all(address.startswith("data:image/") for address in tags.references)
    assert tags.handlers == []
    assert tags.faults == [], tags.faults
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert tags.headings.count(1) == 1
    assert tags.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(tags.headings, tags.headings[1:], strict=False))
    return tags
