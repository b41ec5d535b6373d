"""The console: numbers and tables for people, and readers that go away."""

import io
import math
import os
import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from tests.support.processes import PATIENCE
from trainer.report.console import format_number, open_console, print_sentence, print_table


def terminal(*, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm-256color"})


def drawn(console: Console) -> list[str]:
    return re.sub(r"\x1b\[[\d;]*m", "", written(console)).splitlines()


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_rich_treats_any_output_as_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    assert open_console("rich").is_terminal
    assert not open_console("auto").is_terminal


def test_a_sentence_is_broken_between_words_on_a_terminal_only() -> None:
    text = "note: no latency of 1 of 1 shapes: [something] else used the processor :smile:"
    terminal, file = (
        Console(file=io.StringIO(), width=40, force_terminal=each, markup=False, emoji=False) for each in (True, False)
    )
    print_sentence(terminal, text)
    print_sentence(file, text)
    assert written(file) == f"{text}\n"
    shown = Text.from_ansi(written(terminal)).plain.splitlines()
    assert len(shown) == 3
    assert max(map(len, shown)) <= 40
    assert " ".join(line.strip() for line in shown) == text


class TestNumber:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [
            (3, "3"),
            (123456789, "123456789"),
            (0.0, "0"),
            (0.819, "0.8190"),
            (-12.34567, "-12.3457"),
            (0.01, "0.0100"),
            (0.001, "1.000e-03"),
            (9999.0, "9999.0000"),
            (65536.0, "6.554e+04"),
            (math.nan, "nan"),
            (-math.inf, "-inf"),
        ],
    )
    def test_known_formats(self, value: float, shown: str) -> None:
        assert format_number(value) == shown

    @given(value=st.floats(-1e300, 1e300, allow_subnormal=False))
    def test_format_is_short_and_within_half_a_percent(self, value: float) -> None:
        assert math.isclose(float(format_number(value)), value, rel_tol=5e-3)
        assert len(format_number(value)) <= 11


class TestTable:
    ROWS = (("model.onnx", 0.25, 12), ("runs/" + "x" * 90, None, 7))

    def test_without_a_terminal_it_is_aligned_text_of_any_width(self) -> None:
        console = Console(file=io.StringIO(), width=20)
        print_table(console, "artifacts", ["file", "difference", "[ms]"], self.ROWS)
        long = "runs/" + "x" * 90
        assert written(console).splitlines() == [
            "artifacts",
            f"  {'file':<95}  difference  [ms]",
            f"  {'model.onnx':<95}      0.2500    12",
            f"  {long:<95}                 7",
        ]

    def test_characters_of_two_columns_are_aligned(self) -> None:
        console = Console(file=io.StringIO())
        print_table(console, "classes", ["name", "rows"], [("评价", 1), ("label", 2)])
        assert written(console).splitlines()[1:] == ["  name   rows", "  评价      1", "  label     2"]

    def test_a_long_piece_gets_an_ellipsis_on_a_terminal(self) -> None:
        console = terminal(width=60)
        print_table(console, "artifacts", ["file", "difference", "ms"], self.ROWS)
        lines = drawn(console)
        assert max(map(len, lines)) == 60
        assert [line for line in lines if "runs/" in line] == [f"│ runs/{' ' * 33} │            │  7 │"]
        (shown,) = re.findall("x+…x+", written(console))
        assert len(shown) == 38
        assert "0.2500" in written(console)

    def test_texts_are_wrapped_at_boundaries_and_numbers_are_never_broken(self) -> None:
        console = terminal(width=44)
        rows = [["trainer.scheduler.linear_with_warmup", "0.8123 (0.7912 to 0.8345)", "lr=0.001, a/b"]]
        print_table(console, "title", ["", "score", "changes"], rows)
        cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in drawn(console) if line.startswith("│")]
        assert [[cell for cell in column if cell] for column in zip(*cells, strict=True)] == [
            ["trainer.", "scheduler.", "linear_", "with_warmup"],
            ["0.8123", "(0.7912 to", "0.8345)"],
            ["lr=0.001, a/", "b"],
        ]

    def test_columns_that_do_not_fit_follow_with_the_first_one(self) -> None:
        console = terminal(width=30)
        print_table(console, "title", ["name", *"abcd"], [["x", 0.25, 0.5, 12345.0, 0.75], ["y", *[None] * 4]])
        headers = [line.strip("┃ ").split(" ┃ ") for line in drawn(console) if line.startswith("┃")]
        assert [[cell.strip() for cell in header] for header in headers] == [["name", "a", "b"], ["name", "c", "d"]]
        assert max(map(len, drawn(console))) <= 30
        for number in ("0.2500", "0.5000", "1.234e+04", "0.7500"):
            assert f" {number} " in written(console)

    @given(
        rows=st.lists(st.tuples(st.text("ab_. /中", max_size=30), st.floats(-1e6, 1e6), st.text("x1.e ")), max_size=3),
        width=st.integers(24, 90),
    )
    def test_no_table_is_wider_than_the_terminal(self, rows: list[tuple[str, float, str]], width: int) -> None:
        console = terminal(width=width)
        print_table(console, "t", ["a name", "value", "some_text"], rows, names=[0])
        assert max(map(cell_len, drawn(console))) <= width
        for _, value, _ in rows:
            assert f" {format_number(value)} " in written(console)

    @pytest.mark.parametrize(("width", "length"), [(120, 60), (60, 22)])
    def test_names_are_shortened_to_what_the_terminal_leaves(self, width: int, length: int) -> None:
        row = ["a" * 100 + "b" * 100, 0.25, "c" * 22]
        console = terminal(width=width)
        print_table(console, "title", ["name", "value", "text"], [row], names=[0])
        (shown,) = re.findall(r"a+…b*", written(console).replace("\n", ""))
        assert len(shown) == length
        assert "c" * 22 in written(console)

        plain = Console(file=io.StringIO(), width=width)
        print_table(plain, "title", ["name", "value", "text"], [row], names=[0])
        assert f"{'a' * 39}…{'b' * 20}  0.2500" in written(plain)

    def test_only_headers_are_broken_if_the_cells_fit(self) -> None:
        console = terminal(width=70)
        names = ["artifact", "max difference", "decision agreement", "metric (PyTorch)"]
        print_table(console, "artifacts", names, [["model.torchscript.pt", 1.234e-6, 0.98765, 0.9837]])
        for cell in ("model.torchscript.pt", "1.234e-06", "0.9877", "0.9837"):
            assert f" {cell} " in written(console)

    def test_long_headers_are_broken_behind_underscores(self) -> None:
        console = terminal(width=40)
        print_table(console, "scores", ["top_5_accuracy", "mean_squared_error", "split"], [[0.9, 1.5, "validation"]])
        shown = re.sub(r"\x1b\[[\d;]*m", "", written(console))
        for part in (" top_5_ ", " accuracy ", " squared_ ", " 0.9000 ", " validation "):
            assert part in shown

    def test_markup_in_a_cell_is_text(self) -> None:
        console = terminal()
        print_table(console, "labels", ["name"], [("[bold]",)])
        assert "[bold]" in written(console)

    def test_columns_are_shown_without_rows(self) -> None:
        console = Console(file=io.StringIO())
        print_table(console, "artifacts", ["file", "ms"], [])
        assert written(console).splitlines() == ["artifacts", "  file  ms"]


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("screen = open_console('plain', outlives_reader=True); screen.out('a'); screen.out('b')", 0),
        (
            "import logging; from trainer.report import logs; log = logging.getLogger();"
            "log.addHandler(logs._screen_handler(open_console('plain'), 0)); log.error('a'); log.error('b')",
            0,
        ),
        ("cli._run = lambda _: open_console('plain').out('a'); raise SystemExit(cli.main(['diff']))", 141),
    ],
)
def test_a_closed_pipe_ends_a_verb_quietly_but_not_a_training_run(code: str, exit_code: int) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    program = f"from trainer import cli; from trainer.report.console import open_console; {code}"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, timeout=PATIENCE, check=False
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (exit_code, b"")


def test_a_notebook_gets_lines_of_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shell = type("ZMQInteractiveShell", (), {})()  # what rich takes for a notebook
    monkeypatch.setattr("rich.console.get_ipython", lambda: shell, raising=False)
    open_console("auto").out("a line")
    assert capsys.readouterr().out == "a line\n"
