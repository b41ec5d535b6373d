"""Checks of pages as a browser and a screen reader see them."""

import re
from html.parser import HTMLParser

VOID = {"meta", "img", "br"}


class Tags(HTMLParser):
    """The tags of a page, its headings, and the addresses that it refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.headings: list[int] = []
        self.references: list[str] = []
        self.handlers: list[str] = []
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

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(text: str) -> Tags:
    """Check that a page is well-formed, runs nothing, loads nothing, and has its headings in order."""
    tags = Tags(text)
    assert tags.open == []
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & tags.seen
    assert all(address.startswith("data:image/") for address in tags.references)
    assert tags.handlers == []
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert tags.headings.count(1) == 1
    assert tags.headings[0] == 1
    assert all(after <= before + 1 for before, after in zip(tags.headings, tags.headings[1:], strict=False))
    return tags
