"""Text on the screen: nothing that a terminal obeys, and no secrets."""

import io
import json
import logging
from pathlib import Path

import pytest
import rich.console

from trainer.display import (
    counted,
    displayable,
    escape_controls,
    is_secret,
    list_some,
    mask_secrets,
    masked_config,
    masked_yaml,
    shorten_apart,
)
from trainer.errors import format_error
from trainer.report.charts import Line, draw_lines
from trainer.report.console import open_console, print_table
from trainer.report.logs import log_to_file_and_screen
from trainer.report.page import Figure, Page, Section, Table, Tile, render_page

HOSTILE = "[bold]a[/] \x1b[31mred\x07 \u202egnp.exe\u2069 b\rc\x9b1m \udc80 https://me:hunter2@host/x?token=hunter2"
SHOWN = r"[bold]a[/] \u001b[31mred\u0007 \u202egnp.exe\u2069 b\rc\u009b1m \udc80 https://***@host/x?token=***"


@pytest.mark.parametrize(
    ("number", "words", "of", "shown"),
    [
        (1, ("row",), None, "1 row"),
        (0, ("row", "has"), None, "0 rows have"),
        (1_200, ("query", "is"), None, "1,200 queries are"),
        (2, ("key",), None, "2 keys"),
        (2, ("box", "contains"), None, "2 boxes contain"),
        (1, ("class", "has"), 6, "1 of 6 classes has"),
        (6, ("class", "does"), 6, "6 of 6 classes do"),
        (1, ("class", "was"), 1, "1 of 1 class was"),
    ],
)
def test_numbers_have_the_right_noun_and_verb(number: int, words: tuple[str, ...], of: int | None, shown: str) -> None:
    assert counted(number, *words, of=of) == shown


def test_controls_are_escaped_and_secrets_masked() -> None:
    assert displayable(HOSTILE) == SHOWN
    assert displayable("a\tb\nc") == "a\tb\nc"
    assert displayable("a\nb", keep_lines=False) == r"a\nb"
    joined = "Zürich 名前 e\u0301 👩\u200d👧 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert escape_controls(joined) == joined


def test_an_escaped_json_document_keeps_its_meaning() -> None:
    document = {"text": HOSTILE.replace("\udc80", "")}
    assert json.loads(escape_controls(json.dumps(document, ensure_ascii=False))) == document


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("https://user:pa@ss@host/a", "https://***@host/a"),
        ("s3://key@bucket", "s3://***@bucket"),
        ("/tmp/https:/user:pass@host/x", "/tmp/https:/***@host/x"),
        ("https://host/?a=1&access_token=x&b=2", "https://host/?a=1&access_token=***&b=2"),
        ("data.api_key=x", "data.api_key=***"),
        ("+logger.hf_token='a b'", "+logger.hf_token='***'"),
        ("got {'password': 'x', 'n': 1}.", "got {'password': '***', 'n': 1}."),
        ('{"aws_secret_access_key": "x\\"y"}', '{"aws_secret_access_key": "***"}'),
        ("token=x: no such file", "token=***: no such file"),
        # no secrets
        ("max_tokens=5 tokenizer=x pad_token=[PAD] {'mask_token': 'x'}", None),
        ("data.token: unknown key", None),
        ("me@host.example and a://b/c@d", None),
    ],
)
def test_secrets_in_texts(text: str, masked: str | None) -> None:
    assert mask_secrets(text) == (text if masked is None else masked)


def test_masking_takes_time_in_proportion_to_the_length() -> None:
    for text in ("1" * 300_000, "token" * 60_000, "a." * 150_000, "://" + "a" * 300_000, "'" * 100_000):
        assert mask_secrets(text) == text
        assert masked_yaml(text) == text


def test_secrets_in_configs() -> None:
    config = {"a": {"API_KEY": "x", "url": "s3://u:p@b", "tokens": 3}, "private_key": ["x", None], "password": None}
    assert masked_config(config) == {
        "a": {"API_KEY": "***", "url": "s3://***@b", "tokens": 3},
        "private_key": ["***", None],
        "password": None,
    }
    assert masked_yaml("a:\n  api_key: x\n  token: null\n  pad_token: x\n") == (
        "a:\n  api_key: ***\n  token: null\n  pad_token: x\n"
    )
    assert is_secret("logger.wandb.apikey")
    assert format_error("logger.token", "must be text", value=5) == "logger.token: must be text, got ***."


@pytest.mark.parametrize("style", ["plain", "rich"])
def test_every_way_to_the_screen(
    style: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The report of a parallel test run cannot contain the surrogate, so pytest must not record the log.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    console = open_console(style)  # type: ignore[arg-type]
    assert isinstance(console, rich.console.Console)
    console.width = 400
    with log_to_file_and_screen(tmp_path / "log", console, quiet=False) as open_log:
        open_log()
        console.out(HOSTILE)
        print_table(console, HOSTILE, ["column", HOSTILE], [[HOSTILE, 1.0], ["two\nlines", None]])
        logging.getLogger("trainer").warning("%s\n2030-01-01 WARNING forged", HOSTILE)
    output = capsys.readouterr()
    shown = io.StringIO()
    rich.console.Console(file=shown, width=400).print(rich.text.Text.from_ansi(output.out + output.err))
    for text in (shown.getvalue(), (tmp_path / "log").read_text()):
        lines = [line for line in text.splitlines() if "gnp.exe" in line]
        assert lines
        assert all(SHOWN in line for line in lines)
    assert r"two\nlines" in output.out
    assert "\n    2030-01-01 WARNING forged" in (tmp_path / "log").read_text()


def test_the_page() -> None:
    line = Line(HOSTILE, {1: 2.0}, has_dots=True)
    figure = Figure(HOSTILE, draw_lines([line], HOSTILE, x_title=HOSTILE, mark=(1, HOSTILE)), [line, line], HOSTILE)
    table = Table(HOSTILE, [HOSTILE], [[HOSTILE]])
    section = Section(HOSTILE, HOSTILE, [line, line], [HOSTILE], [figure], [table])
    page = render_page(Page(HOSTILE, HOSTILE, HOSTILE, [Tile(HOSTILE, HOSTILE, HOSTILE)], [section]))
    assert "hunter2" not in page
    assert escape_controls(page) == page


def test_names_that_shortening_makes_equal_differ() -> None:
    names = [*(f"Class number {number} of a long-named family of things" for number in (417, 418)), "short", "x" * 30]
    assert shorten_apart(names, 16) == ["…417 of a long-…", "…418 of a long-…", "short", f"{'x' * 10}…{'x' * 5}"]


def test_long_lists_end_with_the_number_of_the_others() -> None:
    names = ["one", "two", "three"]
    assert list_some(names, 3) == "one, two, three"
    assert list_some(names, 2) == "one, two and 1 more"
    assert list_some(names, 1, "; ") == "one and 2 more"
    assert list_some([], 1) == ""
