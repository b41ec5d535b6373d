"""The pages of the documentation as a site: its navigation, its links, and what its pages load."""

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def entries(navigation: Any) -> Iterator[str]:
    """Yield the pages of a navigation, which has pages, pages with a name, and sections."""
    if isinstance(navigation, str):
        yield navigation
    else:
        for entry in navigation.values() if isinstance(navigation, dict) else navigation:
            yield from entries(entry)


def prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_navigation_has_every_page_once() -> None:
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in PAGES if page.is_relative_to(ROOT / "docs")]
    assert sorted(entries(navigation)) == sorted(pages)


@pytest.mark.parametrize("start", ["README.md", "docs/README.md", "docs/tutorials/README.md"])
def test_a_page_that_lists_pages_has_all_of_them(start: str) -> None:
    text = (ROOT / start).read_text(encoding="utf-8")
    linked = {((ROOT / start).parent / target).resolve() for target in re.findall(r"\]\(([^)#:]+)", text)}
    folder = ROOT / ("docs/tutorials" if "tutorials" in start else "docs")
    translations = set() if start == "docs/README.md" else set(folder.glob("*.zh.md"))
    assert {*folder.glob("*.md"), *folder.glob("*/README.md")} - translations - {folder / "README.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_a_heading_and_never_out_of_the_site(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", prose(page.read_text(encoding="utf-8"))):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), f"{target}#{anchor}"
        if page.is_relative_to(ROOT / "docs"):
            assert file.is_relative_to(ROOT / "docs"), f"{target} is not in the site"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_text_is_taken_for_a_tag_or_for_emphasis(page: Path) -> None:
    text = re.sub(r"<!--.*?-->|`[^`\n]+`|^    .*$", "", prose(page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    assert re.findall(r".*<\w.*|.*(?<![\w\\])_\w+_(?!\w).*", text) == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, which builds without a warning."""
    pytest.importorskip("zensical", reason="pip install 'trainer[docs]'", exc_type=ImportError)
    folder = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", folder / "docs")
    shutil.copy(ROOT / "zensical.toml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "site"


@pytest.mark.interop
def test_a_page_that_is_opened_as_a_file_has_a_search_and_asks_no_server(site: Path, browser: Any) -> None:
    page = browser.new_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    start = (site / "reference/train.html").as_uri()
    page.goto(start)
    page.keyboard.press("Control+k")
    page.wait_for_function("document.activeElement !== document.body")
    page.keyboard.insert_text("Inoue 2019")
    for _ in range(100):  # until the first result is there to be opened
        page.wait_for_timeout(200)
        page.keyboard.press("Enter")
        if page.url != start:
            break

    assert page.url == f"{(site / 'training.html').as_uri()}#dropout-of-the-head"
    assert requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?([^\s\">]+)", text)
        loaded += re.findall(r"<link\b[^>]*\bhref=\"?([^\s\">]+)", text)
        assert loaded
        for address in loaded:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            assert (page.parent / address.partition("?")[0]).exists() or page.name == "404.html", address
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", style.read_text(encoding="utf-8"))
