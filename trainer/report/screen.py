"""The screen of a training run: live lines and a growing table on a terminal and in a notebook, else lines."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from threading import Thread
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from trainer.display import displayable, shorten
from trainer.progress import Phase, shown_on
from trainer.report.console import ConsoleStyle, can_draw, format_fields, format_number
from trainer.report.live import LiveLines, NotebookLines, is_notebook
from trainer.signals import DRAWING
from trainer.validation_sets import VALIDATION, is_validation

if TYPE_CHECKING:
    from trainer.state import Score

_BAR = 30  # columns of a bar
_PATIENCE, _REMINDER = 2.0, 10.0
"""Seconds before the first and between further plain lines about the progress of a phase."""
_TICK = 1.0
"""Seconds between two drawings of a phase without parts."""

# A process that is forked during a drawing would inherit a locked console: a fork waits.
os.register_at_fork(before=DRAWING.acquire, after_in_parent=DRAWING.release, after_in_child=DRAWING.release)


@dataclass
class Course:
    """The length of a run and its best score.

    Attributes:
        total_steps: Optimizer steps of the whole run.
        total_epochs: The same in passes over the data.
        monitor: The metric that picks the best weights.
        score: Returns the score of the values of an evaluation and the name of its weights.
        best: The best score so far; None if there is none.
        best_step: Its step.
        split: The validation split of the metric.
    """

    total_steps: int
    total_epochs: float
    monitor: str
    score: Callable[[Mapping[str, Any], str], Score]
    best: Score | None = None
    best_step: int | None = None
    split: str = VALIDATION

    def observe(self, step: int, values: Mapping[str, Any]) -> bool:
        """Return whether an evaluation has the best score so far."""
        if self.monitor not in values or values.get("split", self.split) != self.split:
            return False
        score = self.score(values, values["weights"])
        if not score.is_better_than(self.best):
            return False
        self.best, self.best_step = score, step
        return True

    def describe_best(self) -> list[str]:
        """Return `best accuracy 0.8190 at step 400 (ema)`, or nothing if there is no score."""
        if self.best is None:
            return []
        return [
            f"best {self.best.name} {format_number(self.best.value)} at step {self.best_step} ({self.best.weights})"
        ]

    def progress(self, step: int) -> str:
        """Return `  50/930`, always of the same width."""
        return f"{step:>{len(str(self.total_steps))}}/{self.total_steps}"


def open_screen(style: ConsoleStyle, console: Console) -> Display | Lines | None:
    """Return what shows the events and phases of a run on the screen.

    Args:
        style: `auto` is `rich` on a terminal and `plain` elsewhere; `none` returns None.
        console: The screen; log records must be printed through it too (see `log_to_file_and_screen`).
    """
    if style == "none":
        return None
    return Display(console) if style == "rich" or (style == "auto" and can_draw(console)) else Lines(console)


@contextmanager
def phases_shown(console: Console) -> Iterator[None]:
    """Show the phases of the block on a terminal; elsewhere, nothing is printed."""
    with shown_on(Display(console) if can_draw(console) else None):
        yield


class Lines:
    """Prints one line per event, and one now and then for a phase that takes long."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._course: Course | None = None
        self._pace = Pace(0)
        self._depth = 0
        self._next = 0.0

    def start_training(self, course: Course) -> None:
        """Expect the events of a run."""
        self._course, self._pace = course, Pace(course.total_steps)

    def show_step(self, step: int) -> None:
        """Do nothing: steps are shown by events."""

    def end_training(self) -> None:
        """Do nothing: the end is an event."""

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        assert self._course is not None, "an event needs a run"
        self._pace.observe(step)
        if event == "checkpoint" and values.get("best") is True:
            values = {**values, "best": f"best by {self._course.monitor}"}
        fields = [f"{event:<10}", f"{self._course.progress(step)}  epoch {epoch:6.2f}", *format_fields(values)]
        if event == "train":
            fields.append(f"eta {self._pace.eta(step)}")
        self._console.out("  ".join(fields), highlight=False)

    def show_phases(self, phases: Sequence[Phase]) -> None:
        """Print a line at the start of a phase without parts, unless it is brief, and one every few seconds."""
        now, is_new = time.monotonic(), len(phases) > self._depth
        self._depth = len(phases)
        if is_new:
            self._next = now + _PATIENCE
        if not phases:
            return
        inner = phases[-1]
        starts_line = inner.total is None and not inner.is_brief
        if not starts_line if is_new else now < self._next:
            return
        if is_new or inner.done:
            count = "" if inner.total is None else f" {inner.done}/{inner.total}"
            self._console.out(": ".join(each.title for each in phases) + count, highlight=False)
            self._next = now + _REMINDER

    def close(self) -> None:
        """Do nothing; no resources are held."""


class Display:
    """A growing table of evaluations, and live lines below it.

    The live lines are a bar over the steps, the newest numbers and the best score, from the first event of a run to the
    end of training; and before, meanwhile and afterwards the phase that is under way. During a phase without parts, a
    thread draws its duration every second.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = DRAWING  # a checkpoint is reported by the thread that has written it
        self._ticker: Thread | None = None
        self._live = NotebookLines(self._content) if is_notebook() else LiveLines(console, self._content)
        self._phases: Sequence[Phase] = ()
        self._course: Course | None = None
        self._is_training = False
        self._pace = Pace(0)
        self._table = EvaluationTable()
        self._step = 0
        self._saved: int | None = None
        self._numbers: dict[str, object] = {}
        self._loss = SmoothedLoss()

    def start_training(self, course: Course) -> None:
        """Show the progress of a run from its first event on."""
        self._course, self._pace = course, Pace(course.total_steps)

    def show_step(self, step: int) -> None:
        """Show that a step is done."""
        with self._lock:
            self._step = step
            self._refresh(now=False)

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, object]) -> None:
        assert self._course is not None, "an event needs a run"
        with self._lock:
            self._is_training = self._is_training or (event in ("start", "resume"))
            self._pace.observe(step)
            self._step = max(step, self._step)
            if event == "train":
                self._numbers = self._loss.add_to(values)
            elif event == "checkpoint":
                self._saved = step
            elif event == "eval" and is_validation(values["split"]) and self._is_training:
                is_best = self._course.observe(step, values)
                for line in self._table.lines(self._course, step, epoch, values, is_best, self._console.width):
                    self._console.out(line, highlight=False)
            elif event not in ("start", "resume", "eval", "stop", "end"):  # shown by other lines and tables
                fields = [event, self._course.progress(step), *format_fields(values)]
                for line in wrap_fields(fields, self._console.width - 1):
                    self._console.out(line, highlight=False)
            self._refresh(now=event != "train")

    def show_phases(self, phases: Sequence[Phase]) -> None:
        """Show the innermost phase with a bar, if its length is known."""
        with self._lock:
            changed = [*map(id, phases)] != [*map(id, self._phases)]
            self._phases = tuple(phases)
            self._refresh(now=changed)
            if self._is_single_phase and self._ticker is None:
                self._ticker = Thread(target=self._tick, daemon=True)
                self._ticker.start()

    @property
    def _is_single_phase(self) -> bool:
        return bool(self._phases) and self._phases[-1].total is None

    def _tick(self) -> None:
        """Draw the duration of a phase without parts every second, until another one is under way."""
        while True:
            time.sleep(_TICK)
            with self._lock:
                if not self._is_single_phase:
                    self._ticker = None
                    return
                self._live.draw(now=True)

    def end_training(self) -> None:
        """Replace the live lines of training with a line that stays."""
        with self._lock:
            if self._is_training and self._course is not None:
                self._is_training = False
                fields = [f"trained {self._step} steps in {self._pace.elapsed()}", *self._course.describe_best()]
                for line in wrap_fields(fields, self._console.width - 1):
                    self._console.out(line, highlight=False)
                self._refresh(now=True)

    def close(self) -> None:
        """Leave the last state of training on the screen and release the terminal; a second call does nothing."""
        with self._lock:
            self._phases = ()
            last = self._content(self._console.width - 1) if self._is_training else []
            self._is_training = False
            self._live.close()
            for line in last:
                self._console.print(line)

    def _refresh(self, *, now: bool) -> None:
        if self._is_training or self._phases:
            self._live.draw(now=now)
        else:
            self._live.close()

    def _content(self, width: int) -> list[Text]:
        lines: list[Text] = []
        if self._phases:
            inner = self._phases[-1]
            title = ": ".join(phase.title for phase in self._phases)
            if inner.total is None:
                seconds = int(time.monotonic() - inner.start)
                duration = [str(timedelta(seconds=seconds))] if seconds >= _PATIENCE else []
                lines += map(Text, wrap_fields([title, *duration], width))
            else:
                lines += self._bar(inner.done, inner.total, [f"{inner.done}/{inner.total}", title], width)
        if self._is_training and self._course is not None:
            total, step = self._course.total_steps, self._step
            end = self._course.total_epochs
            epochs = f"epoch {step / max(1, total) * end:.2f}/{round(end, 2):g}"
            fields = [self._course.progress(step), epochs, f"eta {self._pace.eta(step)}"]
            lines += self._bar(step, total, fields, width)
            lines += map(Text, wrap_fields(format_fields(self._numbers, width=0), width))
            saved = [] if self._saved is None else [f"saved at step {self._saved}"]
            lines += map(Text, wrap_fields([*self._course.describe_best(), *saved], width))
        return lines

    def _bar(self, done: int, total: int, fields: Sequence[str], width: int) -> list[Text]:
        """Return a bar with fields behind it, on further lines if they do not fit."""
        share = min(1.0, done / total) if total else 1.0
        room = min(_BAR, width - len(fields[0]) - 2)
        if room < 1:
            return [Text(line) for line in wrap_fields(fields, width)]
        filled = round(room * share)
        first, *others = wrap_fields(fields, width, first=room + 2)
        has_color = self._console.color_system is not None and not self._console.no_color
        mark = "-" if self._console.options.ascii_only else "━"
        bar = Text().append(mark * filled, style="green" if has_color else "")
        bar.append((mark if has_color else " ") * (room - filled), style="bright_black" if has_color else "")
        return [bar.append(f"  {first}"), *map(Text, others)]


class EvaluationTable:
    """Rows of evaluations below a header; the columns are those that fit the terminal."""

    def __init__(self) -> None:
        self._header = ""

    def lines(
        self, course: Course, step: int, epoch: float, values: Mapping[str, Any], is_best: bool, width: int
    ) -> list[str]:
        """Return the row of an evaluation, after the header if it is new; `*` marks the best score so far."""
        _, is_named, name = str(values.get("split", "")).partition("/")
        cells = {"step": str(step), "epoch": f"{epoch:.2f}", **({"set": name} if is_named else {})}
        cells["weights"] = str(values["weights"])
        numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
        cells |= {displayable(name, keep_lines=False): format_number(value) for name, value in numbers.items()}
        least = dict.fromkeys(numbers, 10) | {"step": len(str(course.total_steps)), "epoch": 6, "weights": 7}
        widths = {name: max(least.get(name, 10), len(name)) for name in cells}
        priority = ["step", "set", course.monitor, "loss", "weights", *numbers, "epoch"]
        chosen, room = set[str](), width - 1
        for name in dict.fromkeys(each for each in priority if each in cells):
            if widths[name] + 2 <= room:
                room -= widths[name] + 2
                chosen.add(name)
        names = [name for name in cells if name in chosen]
        header = " " + "".join(f"  {name:>{widths[name]}}" for name in names)[1:]
        row = ("*" if is_best else " ") + "".join(f"  {cells[name]:>{widths[name]}}" for name in names)[1:]
        lines = [row] if header == self._header else [header, row]
        self._header = header
        return lines


class SmoothedLoss:
    """The exponential moving average of the logged losses, corrected for its start."""

    _DECAY = 0.9

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add_to(self, values: Mapping[str, object]) -> dict[str, object]:
        """Return the values of a training event with the smoothed loss behind the loss."""
        loss = values.get("loss")
        if not isinstance(loss, float):
            return dict(values)
        self._sum = self._DECAY * self._sum + (1 - self._DECAY) * loss
        self._weight = self._DECAY * self._weight + 1 - self._DECAY
        return {"loss": loss, "smoothed": self._sum / self._weight, **values}


class Pace:
    """The remaining time of a run, at its average speed in this process."""

    def __init__(self, total_steps: int) -> None:
        self._total_steps = total_steps
        self._first: tuple[int, float] | None = None

    def observe(self, step: int) -> None:
        """Start the clock at the first step observed, which is later than 0 in a resumed run."""
        if self._first is None:
            self._first = step, time.monotonic()

    def elapsed(self) -> str:
        """Return the time since the first step observed, `0:12:34`."""
        return str(timedelta(seconds=0 if self._first is None else round(time.monotonic() - self._first[1])))

    def eta(self, step: int) -> str:
        """Return the remaining time, `0:12:34`; `?` before the first step is done."""
        if self._first is None or step <= self._first[0]:
            return "?"
        first_step, start = self._first
        return estimate_time(step - first_step, self._total_steps - step, time.monotonic() - start)


def estimate_time(done_steps: int, remaining_steps: int, seconds: float) -> str:
    """Return the time for `remaining_steps` if `done_steps` took `seconds`: hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds / done_steps * remaining_steps)))


def wrap_fields(fields: Sequence[str], width: int, *, first: int = 0) -> list[str]:
    """Return lines of at most `width` characters, broken between fields; only a field that is longer is cut.

    Args:
        fields: The fields.
        width: The width of a line.
        first: The columns of the first line that are taken already.
    """
    lines, room = [""], width - first
    for field in fields:
        shown = displayable(field, keep_lines=False)
        cut = shorten(shown, width)
        if len(lines[-1]) + 2 * bool(lines[-1]) + len(cut) > room:
            lines.append("")
            room = width
        lines[-1] += ("  " if lines[-1] else "") + cut
    return lines if lines[0] or len(lines) > 1 else []
