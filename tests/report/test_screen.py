"""The screen of a training run: plain lines, and the display on a terminal."""

import io
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from rich.console import Console
from rich.text import Text

from tests.support.processes import PATIENCE
from tests.support.terminal import Terminal
from trainer import progress, signals
from trainer.report.console import open_console
from trainer.report.events import Reports
from trainer.report.live import LiveLines, is_notebook
from trainer.report.logs import log_to_file_and_screen
from trainer.report.screen import Course, Display, Lines, Pace, estimate_time, open_screen, wrap_fields
from trainer.run import Validation
from trainer.state import Score

TRAIN = {"loss": 2.3412, "lr": 1.2e-4, "grad_norm": 0.9, "samples_per_second": 812.4}
MORE = {"tokens_per_second": 51234.4, "mfu": 0.4312, "memory": 1_500_000_000}
EVAL = {"split": "validation", "weights": "raw", "loss": 1.5, "accuracy": 0.8, "macro_f1": 0.7, "top_5_accuracy": 0.97}

ACCURACY = Validation({}, "validation", "accuracy", lambda: True)


@pytest.fixture(autouse=True)
def _drawn_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.report.live._INTERVAL", 0.0)


class Screen(io.StringIO):
    """The output of a console, shown by a terminal."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.terminal = Terminal(width)
        variables = {"TERM": "xterm-256color"}
        self.console = Console(file=self, force_terminal=True, width=width, height=30, _environ=variables)

    def write(self, text: str) -> int:
        self.terminal.write(text)
        return super().write(text)

    def resize(self, width: int) -> None:
        self.terminal.resize(width)
        self.console.width = width

    @property
    def lines(self) -> list[str]:
        """The rows up to the last one that is not empty."""
        return "\n".join(self.terminal.lines()).rstrip("\n").split("\n")


def course(total_steps: int = 930, **values: Any) -> Course:
    return Course(total_steps, total_steps / 77.5, "accuracy", ACCURACY.score, **values)


def open_on(screen: Screen, total_steps: int = 930, **values: Any) -> Display:
    display = open_screen("rich", screen.console)
    assert isinstance(display, Display)
    display.start_training(course(total_steps, **values))
    return display


def train(display: Display | Lines, step: int, **values: object) -> None:
    display.log("train", step=step, epoch=step / 77.5, values={**TRAIN, **values})


def evaluate(display: Display | Lines, step: int, **values: object) -> None:
    display.log("eval", step=step, epoch=step / 77.5, values={**EVAL, **values})


class TestStyle:
    def test_auto_is_plain_without_a_terminal(self) -> None:
        assert isinstance(open_screen("auto", Console(file=io.StringIO())), Lines)

    def test_auto_is_rich_on_a_terminal(self) -> None:
        assert isinstance(open_screen("auto", Screen(80).console), Display)

    def test_auto_is_plain_on_a_dumb_terminal(self) -> None:
        console = Console(file=io.StringIO(), force_terminal=True, _environ={"TERM": "dumb"})
        assert isinstance(open_screen("auto", console), Lines)

    def test_explicit_styles_are_used(self) -> None:
        assert isinstance(open_screen("plain", Screen(80).console), Lines)
        assert isinstance(open_screen("rich", Console(file=io.StringIO())), Display)
        assert open_screen("none", Screen(80).console) is None


class TestLines:
    def test_events_are_aligned_lines(self, capsys: pytest.CaptureFixture[str]) -> None:
        screen = Lines(open_console("plain"))
        screen.start_training(course())
        with Reports(screen) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 12.5, "lr": 0.02} | MORE)
            values = {"split": "validation", "weights": "ema", "loss": 1.5, "accuracy": 0.819}
            reports.log("eval", step=100, epoch=1.3, values=values)
            path = "runs/a-name/checkpoints/step-00000100"
            reports.log("checkpoint", step=100, epoch=1.3, values={"path": path, "best": True, "metric": None})
            reports.log("checkpoint", step=200, epoch=2.6, values={"path": path, "best": False})
            reports.log("end", step=930, epoch=12.0, values={"formats": ["onnx", "torchscript"], "seed": 7})
        lines = re.sub(r"eta \d+:\d\d:\d\d", "eta H:MM:SS", capsys.readouterr().out)
        more = "  tokens/s     51234  mfu    0.4312  memory    1.5 GB"
        assert lines.splitlines() == [
            "start         0/930  epoch   0.00  cpu",
            "train        50/930  epoch   0.65  loss    2.3412  lr 1.200e-04  grad_norm    0.9000  samples/s       812"
            "  eta H:MM:SS",
            "train       100/930  epoch   1.30  loss   12.5000  lr    0.0200  grad_norm    0.9000  samples/s       812"
            f"{more}  eta H:MM:SS",
            "eval        100/930  epoch   1.30  validation  ema  loss    1.5000  accuracy    0.8190",
            "checkpoint  100/930  epoch   1.30  runs/a-name/checkpoints/step-00000100  best by accuracy",
            "checkpoint  200/930  epoch   2.60  runs/a-name/checkpoints/step-00000100",
            "end         930/930  epoch  12.00  onnx, torchscript  seed         7",
        ]

    def test_width_and_markup_do_not_change_a_line(self) -> None:
        output = io.StringIO()
        lines = Lines(Console(file=output, width=20))
        lines.start_training(course(9))
        path = "runs/[bold]name[/bold]/:smile:/" + "x" * 100
        lines.log("checkpoint", step=1, epoch=0.1, values={"path": path})
        assert output.getvalue().splitlines() == [f"checkpoint  1/9  epoch   0.10  {path}"]

    def test_phases_are_lines_and_long_loops_are_reported_now_and_then(self, monkeypatch: pytest.MonkeyPatch) -> None:
        output, now = io.StringIO(), [0.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        with progress.shown_on(Lines(Console(file=output))):
            with progress.phase("loading PyTorch"):
                pass
            with progress.phase("computing", is_brief=True):
                pass
            for _ in progress.track(range(12), "quick", 12):
                now[0] += 0.1
            with progress.phase("scoring"):
                for _ in progress.track(range(30), "evaluating", 30):
                    now[0] += 1
        printed = ["loading PyTorch", "scoring", *(f"scoring: evaluating {done}/30" for done in (2, 12, 22))]
        assert output.getvalue().splitlines() == printed


class TestDisplay:
    def test_newest_numbers_are_below_a_table_of_evaluations(self) -> None:
        screen = Screen(100)
        with Reports(open_on(screen)) as reports:
            reports.log("start", step=0, epoch=0.0, values={"device": "cpu"})
            reports.log("train", step=50, epoch=0.65, values=TRAIN)
            reports.log("eval", step=50, epoch=0.65, values=EVAL)
            reports.log("eval", step=50, epoch=0.65, values=EVAL | {"weights": "ema", "accuracy": 0.7})
            reports.log("checkpoint", step=50, epoch=0.65, values={"best": True})
            reports.log("train", step=100, epoch=1.3, values=TRAIN | {"loss": 2.25} | MORE)
            header, raw, ema, bar, numbers, more, best = screen.lines
        assert header == "  step   epoch  weights        loss    accuracy    macro_f1  top_5_accuracy"
        assert raw == "*   50    0.65      raw      1.5000      0.8000      0.7000          0.9700"
        assert ema == "    50    0.65      ema      1.5000      0.7000      0.7000          0.9700"
        assert re.fullmatch(r"━{30}  100/930  epoch 1\.29/12  eta \d+:\d\d:\d\d", bar)
        assert numbers == "loss 2.2500  smoothed 2.2932  lr 1.200e-04  grad_norm 0.9000  samples/s 812"
        assert more == "tokens/s 51234  mfu 0.4312  memory 1.5 GB"
        assert best == "best accuracy 0.8000 at step 50 (raw)  saved at step 50"

    @pytest.mark.parametrize("width", [9, 30, 40, 79, 80, 140])
    def test_no_line_is_broken_at_any_width(self, width: int) -> None:
        screen = Screen(width)
        display = open_on(screen)
        display.log("start", step=0, epoch=0.0, values={})
        for step in (50, 100):
            train(display, step, **MORE)
            evaluate(display, step, loss=-1.234e-3)
            display.show_phases([progress.Phase("evaluating", 40, 12)])
            display.log("early_end", step=step, epoch=0.65, values={"best_step": 5, "seed": 3})
        display.close()
        assert not screen.terminal.has_broken_lines
        rows = [line.split() for line in screen.lines if line.lstrip("* ").startswith(("step", "50 ", "100 "))]
        if width >= 20:
            assert [len(row) - (row[0] == "*") for row in rows] == [len(rows[0])] * 3
        if width >= 30:
            assert "accuracy" in rows[0]

    def test_more_columns_fit_a_wide_terminal(self) -> None:
        values = {f"metric_{number}": number / 10 for number in range(9)}
        headers = {}
        for width in (40, 80, 140):
            screen = Screen(width)
            display = open_on(screen)
            display.log("start", step=0, epoch=0.0, values={})
            evaluate(display, 50, **values)
            headers[width] = screen.lines[0].split()
        assert headers[40] == ["step", "weights", "loss", "accuracy"]
        assert headers[80] == ["step", "weights", "loss", "accuracy", "macro_f1", "top_5_accuracy", "metric_0"]
        assert set(headers[80]) < set(headers[140])
        assert len(headers[140]) == 12

    @pytest.mark.parametrize(("wide", "narrow"), [(140, 80), (140, 30), (80, 33), (60, 20)])
    def test_a_resized_terminal_keeps_no_remains(self, wide: int, narrow: int) -> None:
        screen = Screen(wide)
        display = open_on(screen)
        display.log("start", step=0, epoch=0.0, values={})
        train(display, 50, **MORE)
        evaluate(display, 50)
        screen.resize(narrow)
        train(display, 60, **MORE)
        screen.resize(wide)
        train(display, 70, **MORE)
        bars = [line for line in screen.lines if "/930" in line]
        assert len(bars) == 1
        assert "70/930" in bars[0]
        assert sum("smoothed" in line for line in screen.lines) == 1
        assert sum("best accuracy" in line for line in screen.lines) == 1

    def test_a_resumed_run_starts_at_its_step_with_its_best_score(self) -> None:
        screen = Screen(80)
        display = open_on(screen, best=Score("accuracy", 0.9, True, "ema"), best_step=380)
        display.log("resume", step=400, epoch=5.16, values={})
        evaluate(display, 450)
        _, row, bar, best = screen.lines
        assert row.startswith("   450 ")
        assert re.fullmatch(r"━{30}  450/930  epoch 5\.81/12  eta \d+:\d\d:\d\d", bar)
        assert best == "best accuracy 0.9000 at step 380 (ema)"

    def test_the_bar_moves_between_two_log_lines(self) -> None:
        screen = Screen(80)
        display = open_on(screen)
        display.log("start", step=0, epoch=0.0, values={})
        display.show_step(17)
        assert " 17/930 " in screen.lines[0]

    def test_the_bar_ends_with_training_and_phases_follow(self) -> None:
        screen = Screen(80)
        display = open_on(screen, 100)
        display.log("start", step=0, epoch=0.0, values={})
        train(display, 100)
        evaluate(display, 100)
        display.end_training()
        after = screen.lines
        with progress.shown_on(display), progress.phase("scoring the best weights"):
            evaluate(display, 100, split="test")
            for batch in progress.track(range(8), "evaluating", 8):
                if batch == 4:
                    assert screen.lines[-1] == f"{'━' * 30}  4/8  scoring the best weights: evaluating"
            assert screen.lines[-1] == "scoring the best weights"
        display.log("end", step=100, epoch=1.0, values={"formats": []})
        display.close()
        screen.console.print("results")
        *table, summary = after
        assert len(table) == 2
        assert re.fullmatch(r"trained 100 steps in \d:\d\d:\d\d  best accuracy 0\.8000 at step 100 \(raw\)", summary)
        assert screen.lines == [*after, "results"]

    def test_phases_before_training_leave_nothing(self) -> None:
        screen = Screen(80)
        display = Display(screen.console)
        with progress.shown_on(display), progress.phase("loading PyTorch"):
            assert screen.lines == ["loading PyTorch"]
        assert screen.lines == [""]

    def test_an_exception_restores_the_streams_and_keeps_the_last_state(self) -> None:
        screen, streams = Screen(80), (sys.stdout, sys.stderr)
        display = open_on(screen, 9)

        def run(reports: Reports) -> None:
            reports.log("start", step=0, epoch=0.0, values={})
            reports.log("train", step=1, epoch=0.1, values=TRAIN)
            raise KeyError("the run")

        with pytest.raises(KeyError), Reports(display) as reports, progress.shown_on(display):
            run(reports)
        assert screen.terminal.cursor_shown
        assert "?25l" not in screen.getvalue()  # a process that is killed leaves the cursor, too
        bar, numbers = screen.lines
        assert "1/9" in bar
        assert numbers.startswith("loss 2.3412")
        assert (sys.stdout, sys.stderr) == streams

    def test_log_records_and_prints_stay_above_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        screen = Screen(100)
        monkeypatch.setattr(sys, "stdout", screen)
        display = open_on(screen, 9)
        with log_to_file_and_screen(tmp_path / "trainer.log", screen.console, quiet=False), Reports(display) as reports:
            reports.log("start", step=0, epoch=0.0, values={})
            logging.getLogger("trainer").warning("the disk is nearly full")
            print("a library speaks")
            reports.log("train", step=2, epoch=0.2, values=TRAIN)
            record, line, bar, numbers = screen.lines
        assert record.endswith("WARNING  the disk is nearly full")
        assert line == "a library speaks"
        assert " 2/9 " in bar
        assert numbers.startswith("loss")

    def test_a_message_that_passes_the_console_by_is_not_overwritten(self, monkeypatch: pytest.MonkeyPatch) -> None:
        screen = Screen(80)
        monkeypatch.setattr("os.write", lambda _, text: screen.terminal.write(text.decode()))
        display = open_on(screen)
        display.log("start", step=0, epoch=0.0, values={})
        train(display, 50)
        signals.announce_stop()
        train(display, 60)
        train(display, 70)
        lines = screen.lines
        assert lines.count("Stopping after this step; press again to stop without saving") == 1
        assert [line.split()[1] for line in lines if "/930" in line] == ["50/930", "70/930"]

    def test_without_colors_a_bar_is_as_long_as_its_share(self) -> None:
        output = io.StringIO()
        variables = {"TERM": "xterm-256color", "NO_COLOR": "1"}
        display = Display(Console(file=output, force_terminal=True, width=80, _environ=variables))
        display.show_phases([progress.Phase("evaluating", 10, 5)])
        assert f"{'━' * 15}{' ' * 15}  5/10  evaluating" in output.getvalue()
        assert "\x1b[3" not in output.getvalue()


def test_a_notebook_gets_live_lines_in_one_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # A kernel's output claims to be a terminal, but shows codes that move the cursor as text.
    outputs: list[list[str]] = []

    class Output:
        def __init__(self, data: dict[str, str]) -> None:
            self.texts = [data["text/plain"]]
            outputs.append(self.texts)

        def update(self, data: dict[str, str], *, raw: bool) -> None:
            assert raw
            self.texts.append(data["text/plain"])

    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(
        sys.modules, "IPython.display", SimpleNamespace(display=lambda data, raw, display_id: Output(data))
    )
    display = open_screen("rich", open_console("plain"))
    assert display is not None
    display.start_training(Course(10, 1.0, "accuracy", ACCURACY.score))
    display.log("start", step=0, epoch=0.0, values={})
    display.log("eval", step=5, epoch=0.5, values={"split": "validation", "weights": "raw", "accuracy": 0.5})
    display.end_training()
    display.close()
    [texts] = outputs
    assert ["0/10" in texts[0], "5/10" in texts[-2], texts[-1]] == [True, True, ""]
    printed = capsys.readouterr().out
    assert "trained 5 steps" in printed
    assert "\x1b" not in printed + "".join(texts)
    shell.kernel = None
    assert not is_notebook()


def test_lines_are_drawn_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.report.live._INTERVAL", 100.0)
    screen = Screen(80)
    drawn: list[int] = []
    live = LiveLines(screen.console, lambda width: drawn.append(width) or [])  # type: ignore[func-returns-value]
    for _ in range(1000):
        live.draw(now=False)
    live.draw(now=True)
    live.close()
    assert drawn == [76, 76]


@pytest.mark.parametrize("prints_row", [False, True])
def test_a_message_in_the_middle_of_a_drawing_is_printed_again(
    prints_row: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen, drawn = Screen(80), 0
    monkeypatch.setattr("os.write", lambda _, text: screen.terminal.write(text.decode()))

    def content(width: int) -> list[Text]:
        nonlocal drawn
        drawn += 1
        if drawn == 2:
            signals.announce_stop()
        return [Text(f"drawing {drawn}"), Text("a"), Text("b")]

    live = LiveLines(screen.console, content)
    live.draw(now=True)
    for _ in range(3):
        if prints_row:
            screen.console.out("a row")
        live.draw(now=True)
    assert "Stopping after this step; press again to stop without saving" in screen.lines
    assert screen.lines[-3:] == [f"drawing {drawn}", "a", "b"]
    live.close()


@pytest.mark.parametrize(
    ("fields", "width", "lines"),
    [
        ([], 10, []),
        (["abc", "def", "ghij"], 8, ["abc  def", "ghij"]),
        (["a" * 12, "b"], 8, ["aaaaaaa…", "b"]),
        (["\x1b[31mred"], 20, [r"\u001b[31mred"]),
    ],
)
def test_fields_are_kept_whole(fields: list[str], width: int, lines: list[str]) -> None:
    assert wrap_fields(fields, width) == lines


class TestProgress:
    def test_a_forked_process_shows_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        shown: list[int] = []

        class Watcher:
            def show_phases(self, phases: Any) -> None:
                shown.append(len(phases))

        with progress.shown_on(Watcher()):
            with progress.phase("a"):
                pass
            monkeypatch.setattr("os.getpid", lambda: -1)
            with progress.phase("b"):
                pass
            assert [*progress.track("xy", "c", 2)] == ["x", "y"]
        assert shown == [1, 0]

    def test_an_abandoned_loop_ends_its_phase(self) -> None:
        titles: list[list[str]] = []

        class Watcher:
            def show_phases(self, phases: Any) -> None:
                titles.append([phase.title for phase in phases])

        with progress.shown_on(Watcher()), progress.phase("outer"):
            items = progress.track(range(9), "inner", 9)
            next(items)
            cast(Any, items).close()
        assert titles == [["outer"], ["outer", "inner"], ["outer"], []]


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


def test_a_phase_without_parts_moves_and_its_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.report.screen._TICK", 0.01)
    screen = Screen(80)
    display = Display(screen.console)
    with progress.shown_on(display):
        with progress.phase("writing model.onnx") as _:
            assert screen.lines == ["writing model.onnx"]
            (ticker,) = (thread for thread in threading.enumerate() if thread is display._ticker)
            monkeypatch.setattr("trainer.report.screen.time", Clock(100.0))
            wait_for(lambda: screen.lines == ["writing model.onnx  0:01:40"])
        assert screen.lines == [""]
        ticker.join()
        with progress.phase("encoding", 3) as advance:
            advance(1)
            assert display._ticker is None


class Clock:
    """The module `time`, some seconds later."""

    def __init__(self, later: float) -> None:
        self._later = later

    def monotonic(self) -> float:
        return time.monotonic() + self._later

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_fork_waits_for_a_drawing() -> None:
    display = Display(Screen(80).console)
    taken = threading.Event()

    def draw() -> None:
        with display._lock:
            taken.set()
            time.sleep(0.2)

    drawing = threading.Thread(target=draw)
    drawing.start()
    taken.wait()
    if (child := os.fork()) == 0:
        os._exit(0 if display._lock.acquire(blocking=False) else 1)
    drawing.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
