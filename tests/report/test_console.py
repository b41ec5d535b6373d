"""The screen: plain lines, the progress display, and tables."""

import io
import logging
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainer.report.console import (
    Display,
    Lines,
    Pace,
    estimate_time,
    format_number,
    open_console,
    open_screen,
    print_table,
)
from trainer.report.events import Reports
from trainer.report.logs import log_to_file_and_screen

TRAIN = {"loss": 2.3412, "lr": 1.2e-4, "grad_norm": 0.9, "samples_per_second": 812.4}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal(*, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm-256color"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(console: Console) -> list[str]:
    """Return the lines that a terminal shows after what was written to it."""
    lines, row, column = [""], 0, 0
    for code, command, text in re.findall(r"\x1b\[\??([\d;]*)([A-Za-z])|([^\x1b])", written(console)):
        if command == "A":
            row -= int(code)
        elif command == "K":
            assert code == "2"
            lines[row] = ""
        elif text == "\r":
            column = 0
        elif text == "\n":
            row, column = row + 1, 0
            lines.extend([""] * (row == len(lines)))
        elif text:
            lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + 1 :]
            column += 1
        else:
            assert command in "mhl"
    return [line.rstrip() for line in lines]


class TestScreen:
    def test_auto_is_plain_without_a_terminal(self) -> None:
        assert isinstance(open_screen("auto", Console(file=io.StringIO()), total_steps=9), Lines)

    def test_auto_is_rich_on_a_terminal(self) -> None:
        assert isinstance(open_screen("auto", terminal(), total_steps=9), Display)

    def test_auto_is_plain_on_a_dumb_terminal(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        assert isinstance(open_screen("auto", console, total_steps=9), Lines)

    def test_explicit_styles_are_used(self) -> None:
        assert isinstance(open_screen("plain", terminal(), total_steps=9), Lines)
        assert isinstance(open_screen("rich", Console(file=io.StringIO()), total_steps=9), Display)
        assert open_screen("none", terminal(), total_steps=9) is None

    def test_rich_treats_any_output_as_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert open_console("rich").is_terminal
        assert not open_console("auto").is_terminal


class TestLines:
    def test_events_are_aligned_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Reports(open_screen("plain", open_console("plain"), total_steps=930)) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 12.5, "lr": 0.02})
            values = {"split": "validation", "weights": "ema", "loss": 1.5, "accuracy": 0.819}
            reports.log("eval", step=100, epoch=1.3, values=values)
            path = "runs/a-name/checkpoints/step-00000100"
            reports.log("checkpoint", step=100, epoch=1.3, values={"path": path, "best": True, "metric": None})
            reports.log("checkpoint", step=200, epoch=2.6, values={"path": path, "best": False})
            reports.log("end", step=930, epoch=12.0, values={"formats": ["onnx", "torchscript"], "seed": 7})
        lines = re.sub(r"eta \d+:\d\d:\d\d", "eta H:MM:SS", capsys.readouterr().out)
        assert lines.splitlines() == [
            "start         0/930  epoch   0.00  cpu",
            "train        50/930  epoch   0.65  loss    2.3412  lr 1.200e-04  grad_norm    0.9000  samples/s       812"
            "  eta H:MM:SS",
            "train       100/930  epoch   1.30  loss   12.5000  lr    0.0200  grad_norm    0.9000  samples/s       812"
            "  eta H:MM:SS",
            "eval        100/930  epoch   1.30  validation  ema  loss    1.5000  accuracy    0.8190",
            "checkpoint  100/930  epoch   1.30  runs/a-name/checkpoints/step-00000100  best",
            "checkpoint  200/930  epoch   2.60  runs/a-name/checkpoints/step-00000100",
            "end         930/930  epoch  12.00  onnx, torchscript  seed         7",
        ]

    def test_width_and_markup_do_not_change_a_line(self) -> None:
        console = Console(file=io.StringIO(), width=20)
        path = "runs/[bold]name[/bold]/:smile:/" + "x" * 100
        Lines(console, 9).log("checkpoint", step=1, epoch=0.1, values={"path": path})
        assert written(console).splitlines() == [f"checkpoint  1/9  epoch   0.10  {path}"]


class TestDisplay:
    def test_newest_numbers_are_shown_below_other_events(self) -> None:
        console = terminal()
        with Reports(open_screen("rich", console, total_steps=930)) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("eval", step=50, epoch=0.65, values={"split": "validation", "weights": "raw", "loss": 1.5})
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 2.25})
        start, evaluation, bar, numbers, rest = shown(console)
        assert start == "start    0/930  cpu"
        assert evaluation == "eval   50/930  validation  raw  loss    1.5000"
        assert re.fullmatch(r"━+[╸╺]?━+ 100/930 epoch 1\.30  eta \d+:\d\d:\d\d", bar)
        assert numbers == "loss    2.2500  lr 1.200e-04  grad_norm    0.9000  samples/s       812"
        assert rest == ""

    def test_resumed_run_starts_at_its_step(self) -> None:
        console = terminal()
        with Reports(open_screen("rich", console, total_steps=930)) as reports:
            reports.log("resume", step=400, epoch=4.0, values={})
        assert re.search(r"━ 400/930 epoch 4\.00  eta \?$", shown(console)[1])

    def test_exception_restores_the_terminal(self) -> None:
        console, streams = terminal(), (sys.stdout, sys.stderr)
        during: list[tuple[bool, bool, bool]] = []

        def run(reports: Reports) -> None:
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
            during.append((HIDE_CURSOR in written(console), SHOW_CURSOR in written(console), sys.stdout is streams[0]))
            raise KeyError("the run")

        with pytest.raises(KeyError), Reports(open_screen("rich", console, total_steps=9)) as reports:
            run(reports)
        assert during == [(True, False, False)]
        assert written(console).endswith(SHOW_CURSOR)
        assert shown(console)[-1] == ""
        assert (sys.stdout, sys.stderr) == streams

    def test_terminal_is_untouched_before_the_first_event(self) -> None:
        console = terminal()
        with Reports(open_screen("rich", console, total_steps=9)):
            assert written(console) == ""
        assert written(console) == ""

    def test_log_records_and_prints_stay_above_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        console = terminal()
        monkeypatch.setattr(sys, "stdout", console.file)
        display = open_screen("rich", console, total_steps=9)
        with log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False), Reports(display) as reports:
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
            logging.getLogger("trainer").warning("the disk is nearly full")
            print("a library speaks")
            reports.log("train", step=2, epoch=0.2, values=TRAIN)
        record, line, bar, numbers, rest = shown(console)
        assert record.endswith("WARNING  the disk is nearly full")
        assert line == "a library speaks"
        assert " 2/9 " in bar
        assert numbers.startswith("loss")
        assert rest == ""

    def test_results_are_printed_below_the_display_after_the_end(self) -> None:
        console = terminal()
        with Reports(open_screen("rich", console, total_steps=9)) as reports:
            reports.log("train", step=9, epoch=1.0, values=TRAIN)
            reports.log("end", step=9, epoch=1.0, values={})
            console.print("results")
        assert shown(console)[-2:] == ["results", ""]
        assert written(console).count(SHOW_CURSOR) == 1

    def test_narrow_terminal_wraps_nothing(self) -> None:
        console = terminal(width=40)
        with Reports(open_screen("rich", console, total_steps=9)) as reports:
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
        bar, numbers, rest = shown(console)
        assert len(bar) <= 40
        assert numbers == "loss    2.3412  lr 1.200e-04  grad_norm…"
        assert rest == ""


class TestPace:
    def test_remaining_time_uses_the_average_speed(self) -> None:
        assert estimate_time(100, 300, 60.0) == "0:03:00"
        assert estimate_time(3, 0, 60.0) == "0:00:00"
        assert estimate_time(1, 3600, 25.0) == "1 day, 1:00:00"

    def test_steps_of_an_earlier_process_do_not_count(self) -> None:
        pace = Pace(total_steps=100)
        pace.observe(90)
        assert pace.eta(90) == "?"
        pace.observe(100)
        assert pace.eta(100) == "0:00:00"


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

    def test_long_cell_is_shown_in_full_on_a_terminal(self) -> None:
        console = terminal(width=60)
        print_table(console, "artifacts", ["file", "difference", "ms"], self.ROWS)
        text = written(console)
        assert text.count("x") == 90 + len("onnx") - 3
        assert "0.2500" in text

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
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, timeout=60, check=False
    )
    os.close(writer)

    assert (done.returncode, done.stderr) == (exit_code, b"")


def test_memory_is_shown_in_a_readable_unit() -> None:
    console = Console(file=io.StringIO(), width=200)
    screen = open_screen("plain", console, total_steps=10)
    assert screen is not None
    screen.log(
        "train",
        step=1,
        epoch=0.1,
        values={**TRAIN, "tokens_per_second": 51234.4, "mfu": 0.4312, "memory": 1_500_000_000},
    )

    assert re.search(r"tokens/s +51234 .*mfu +0\.4312 .*memory +1\.5 GB", written(console))
