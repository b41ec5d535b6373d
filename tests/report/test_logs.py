"""Logging during a run."""

import io
import logging
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from trainer.report.logs import NOISY_LIBRARIES, log_to_file_and_screen


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def console(request: pytest.FixtureRequest, screen: io.StringIO) -> Console:
    return Console(file=screen, force_terminal=request.param, width=60, color_system=None)


def test_record_reaches_the_file_and_the_screen(tmp_path: Path, console: Console, screen: io.StringIO) -> None:
    with log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False) as write:
        logging.getLogger("trainer.loop").info("7,248 samples, [15] topics")
        assert not (tmp_path / "trainer.log").exists()
        write()
        assert (tmp_path / "trainer.log").read_text(encoding="utf-8").count("\n") == 1
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    trainer.loop: 7,248 samples, \[15\] topics\n",
        (tmp_path / "trainer.log").read_text(encoding="utf-8"),
    )
    assert re.search(r"\d\d:\d\d:\d\d\W+INFO +7,248 samples, \[15\] topics", screen.getvalue())


def test_quiet_screen_shows_only_warnings(tmp_path: Path, console: Console, screen: io.StringIO) -> None:
    with log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=True) as write:
        write()
        logging.getLogger("trainer").info("known")
        logging.getLogger("trainer").warning("unexpected")
    assert "known" not in screen.getvalue()
    assert "unexpected" in screen.getvalue()
    assert len((tmp_path / "trainer.log").read_text(encoding="utf-8").splitlines()) == 2


def test_only_warnings_of_noisy_libraries_are_kept(tmp_path: Path, console: Console) -> None:
    with log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False) as write:
        write()
        for name in NOISY_LIBRARIES:
            logging.getLogger(name).info("cache miss")
            logging.getLogger(name).warning("deprecated")
    text = (tmp_path / "trainer.log").read_text(encoding="utf-8")
    assert "cache miss" not in text
    assert "datasets: deprecated" in text


def test_python_warnings_are_kept(tmp_path: Path, console: Console) -> None:
    with warnings.catch_warnings(), log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False) as write:
        write()
        warnings.simplefilter("always")
        warnings.warn("the scheduler was stepped first", stacklevel=1)
    assert "UserWarning: the scheduler was stepped first" in (tmp_path / "trainer.log").read_text(encoding="utf-8")


def test_logging_is_restored_at_the_end(tmp_path: Path, console: Console, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="datasets")

    def state() -> tuple[object, ...]:
        loggers = [logging.getLogger(name) for name in (None, *NOISY_LIBRARIES)]
        return warnings.showwarning, [logger.level for logger in loggers], [*loggers[0].handlers]

    before = state()
    with pytest.raises(ZeroDivisionError), log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False):
        assert 1 / (state() == before)
    assert state() == before


def test_log_file_is_appended_to(tmp_path: Path, console: Console) -> None:
    for number in (1, 2):
        with log_to_file_and_screen(tmp_path / "trainer.log", console, quiet=False) as write:
            write()
            logging.getLogger("trainer").info("run %d", number)
    lines = (tmp_path / "trainer.log").read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["run 1", "run 2"]


def test_long_record_is_one_line_without_a_terminal(tmp_path: Path, screen: io.StringIO) -> None:
    with log_to_file_and_screen(tmp_path / "trainer.log", Console(file=screen, width=60), quiet=False):
        logging.getLogger("trainer").info("word " * 60)
    assert len(screen.getvalue().splitlines()) == 1
