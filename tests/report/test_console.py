import io
import logging
import math
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from trainer.report.console import Display, Lines, Pace, number, open_console, screen, table, time_left
from trainer.report.logs import run_logs
from trainer.report.reports import Reports

TRAIN = {"loss": 2.3412, "lr": 1.2e-4, "grad_norm": 0.9, "samples_per_second": 812.4}
HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"


def terminal(*, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ={"TERM": "xterm-256color"})


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(console: Console) -> list[str]:
    """The lines that a terminal shows after what was written to it."""
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
    def test_auto_is_plain_where_there_is_no_terminal(self) -> None:
        assert isinstance(screen("auto", Console(file=io.StringIO()), total_steps=9), Lines)

    def test_auto_is_rich_on_a_terminal(self) -> None:
        assert isinstance(screen("auto", terminal(), total_steps=9), Display)

    def test_auto_is_plain_on_a_terminal_that_cannot_move_its_cursor(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        assert isinstance(screen("auto", console, total_steps=9), Lines)

    def test_a_choice_is_a_choice(self) -> None:
        assert isinstance(screen("plain", terminal(), total_steps=9), Lines)
        assert isinstance(screen("rich", Console(file=io.StringIO()), total_steps=9), Display)
        assert screen("none", terminal(), total_steps=9) is None

    def test_rich_takes_any_output_for_a_terminal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        assert open_console("rich").is_terminal
        assert not open_console("auto").is_terminal


class TestLines:
    def test_one_aligned_line_for_each_event(self, capsys: pytest.CaptureFixture[str]) -> None:
        with Reports(screen("plain", open_console("plain"), total_steps=930)) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 12.5, "lr": 0.02})
            values = {"split": "validation", "weights": "ema", "loss": 1.5, "accuracy": 0.819}
            reports.log("eval", step=100, epoch=1.3, values=values)
            path = "runs/a-name/checkpoints/step-00000100"
            reports.log("checkpoint", step=100, epoch=1.3, values={"path": path, "best": True, "metric": None})
            reports.log("checkpoint", step=200, epoch=2.6, values={"path": path, "best": False})
            reports.log("end", step=930, epoch=12.0, values={"formats": ["onnx", "torchscript"], "seed": 7})
        lines = re.sub(r"left \d+:\d\d:\d\d", "left H:MM:SS", capsys.readouterr().out)
        assert lines.splitlines() == [
            "start         0/930  epoch   0.00  cpu",
            "train        50/930  epoch   0.65  loss    2.3412  lr 1.200e-04  grad_norm    0.9000  samples/s       812"
            "  left H:MM:SS",
            "train       100/930  epoch   1.30  loss   12.5000  lr    0.0200  grad_norm    0.9000  samples/s       812"
            "  left H:MM:SS",
            "eval        100/930  epoch   1.30  validation  ema  loss    1.5000  accuracy    0.8190",
            "checkpoint  100/930  epoch   1.30  runs/a-name/checkpoints/step-00000100  best",
            "checkpoint  200/930  epoch   2.60  runs/a-name/checkpoints/step-00000100",
            "end         930/930  epoch  12.00  onnx, torchscript  seed         7",
        ]

    def test_neither_width_nor_markup_changes_a_line(self) -> None:
        console = Console(file=io.StringIO(), width=20)
        path = "runs/[bold]name[/bold]/:smile:/" + "x" * 100
        Lines(console, 9).log("checkpoint", step=1, epoch=0.1, values={"path": path})
        assert written(console).splitlines() == [f"checkpoint  1/9  epoch   0.10  {path}"]


class TestDisplay:
    def test_it_shows_the_newest_numbers_and_keeps_other_events_above(self) -> None:
        console = terminal()
        with Reports(screen("rich", console, total_steps=930)) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("eval", step=50, epoch=0.65, values={"split": "validation", "weights": "raw", "loss": 1.5})
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 2.25})
        start, evaluation, bar, numbers, rest = shown(console)
        assert start == "start    0/930  cpu"
        assert evaluation == "eval   50/930  validation  raw  loss    1.5000"
        assert re.fullmatch(r"━+[╸╺]?━+ 100/930 epoch 1\.30  left \d+:\d\d:\d\d", bar)
        assert numbers == "loss    2.2500  lr 1.200e-04  grad_norm    0.9000  samples/s       812"
        assert rest == ""

    def test_a_resumed_run_starts_where_it_stopped(self) -> None:
        console = terminal()
        with Reports(screen("rich", console, total_steps=930)) as reports:
            reports.log("resume", step=400, epoch=4.0, values={})
        assert re.search(r"━ 400/930 epoch 4\.00  left \?$", shown(console)[1])

    def test_an_exception_leaves_the_terminal_as_it_was(self) -> None:
        console, streams = terminal(), (sys.stdout, sys.stderr)
        during: list[tuple[bool, bool, bool]] = []

        def run(reports: Reports) -> None:
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
            during.append((HIDE_CURSOR in written(console), SHOW_CURSOR in written(console), sys.stdout is streams[0]))
            raise KeyError("the run")

        with pytest.raises(KeyError), Reports(screen("rich", console, total_steps=9)) as reports:
            run(reports)
        assert during == [(True, False, False)]
        assert written(console).endswith(SHOW_CURSOR)
        assert shown(console)[-1] == ""
        assert (sys.stdout, sys.stderr) == streams

    def test_the_terminal_is_untouched_before_the_first_event(self) -> None:
        console = terminal()
        with Reports(screen("rich", console, total_steps=9)):
            assert written(console) == ""
        assert written(console) == ""

    def test_log_records_and_prints_stay_above_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        console = terminal()
        monkeypatch.setattr(sys, "stdout", console.file)
        display = screen("rich", console, total_steps=9)
        with run_logs(tmp_path / "trainer.log", console, quiet=False), Reports(display) as reports:
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

    def test_results_are_printed_below_it_when_the_run_has_ended(self) -> None:
        console = terminal()
        with Reports(screen("rich", console, total_steps=9)) as reports:
            reports.log("train", step=9, epoch=1.0, values=TRAIN)
            reports.log("end", step=9, epoch=1.0, values={})
            console.print("results")
        assert shown(console)[-2:] == ["results", ""]
        assert written(console).count(SHOW_CURSOR) == 1

    def test_a_narrow_terminal_folds_nothing(self) -> None:
        console = terminal(width=40)
        with Reports(screen("rich", console, total_steps=9)) as reports:
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
        bar, numbers, rest = shown(console)
        assert len(bar) <= 40
        assert numbers == "loss    2.3412  lr 1.200e-04  grad_norm…"
        assert rest == ""


class TestPace:
    def test_time_left_is_the_average_speed_over_what_is_to_do(self) -> None:
        assert time_left(100, 300, 60.0) == "0:03:00"
        assert time_left(3, 0, 60.0) == "0:00:00"
        assert time_left(1, 3600, 25.0) == "1 day, 1:00:00"

    def test_the_steps_of_an_earlier_process_do_not_count(self) -> None:
        pace = Pace(total_steps=100)
        pace.see(90)
        assert pace.left(90) == "?"
        pace.see(100)
        assert pace.left(100) == "0:00:00"


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
    def test_it_reads_well(self, value: float, shown: str) -> None:
        assert number(value) == shown

    @given(value=st.floats(-1e300, 1e300, allow_subnormal=False))
    def test_it_is_within_half_a_percent_and_short(self, value: float) -> None:
        assert math.isclose(float(number(value)), value, rel_tol=5e-3)
        assert len(number(value)) <= 11


class TestTable:
    ROWS = (("model.onnx", 0.25, 12), ("runs/" + "x" * 90, None, 7))

    def test_elsewhere_it_is_aligned_text_that_nothing_cuts(self) -> None:
        console = Console(file=io.StringIO(), width=20)
        table(console, "artifacts", ["file", "difference", "[ms]"], self.ROWS)
        long = "runs/" + "x" * 90
        assert written(console).splitlines() == [
            "artifacts",
            f"  {'file':<95}  difference  [ms]",
            f"  {'model.onnx':<95}      0.2500    12",
            f"  {long:<95}                 7",
        ]

    def test_on_a_terminal_all_of_a_long_cell_is_there(self) -> None:
        console = terminal(width=60)
        table(console, "artifacts", ["file", "difference", "ms"], self.ROWS)
        text = written(console)
        assert text.count("x") == 90 + len("onnx") - 3
        assert "0.2500" in text

    def test_markup_in_a_cell_is_text(self) -> None:
        console = terminal()
        table(console, "labels", ["name"], [("[bold]",)])
        assert "[bold]" in written(console)

    def test_without_rows_the_columns_are_shown(self) -> None:
        console = Console(file=io.StringIO())
        table(console, "artifacts", ["file", "ms"], [])
        assert written(console).splitlines() == ["artifacts", "  file  ms"]
