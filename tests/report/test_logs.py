import io
import logging
import re
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from trainer.report.logs import NOISY, run_logs


@pytest.fixture
def screen() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(params=[False, True], ids=["plain", "terminal"])
def console(request: pytest.FixtureRequest, screen: io.StringIO) -> Console:
    return Console(file=screen, force_terminal=request.param, width=60, color_system=None)


def test_a_record_reaches_the_file_and_the_screen(tmp_path: Path, console: Console, screen: io.StringIO) -> None:
    with run_logs(tmp_path / "trainer.log", console, quiet=False) as write:
        logging.getLogger("trainer.loop").info("7,248 samples, [15] topics")
        assert not (tmp_path / "trainer.log").exists()
        write()
        assert (tmp_path / "trainer.log").read_text(encoding="utf-8").count("\n") == 1
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    trainer.loop: 7,248 samples, \[15\] topics\n",
        (tmp_path / "trainer.log").read_text(encoding="utf-8"),
    )
    assert re.search(r"\d\d:\d\d:\d\d\W+INFO +7,248 samples, \[15\] topics", screen.getvalue())


def test_a_quiet_screen_shows_warnings_only(tmp_path: Path, console: Console, screen: io.StringIO) -> None:
    with run_logs(tmp_path / "trainer.log", console, quiet=True) as write:
        write()
        logging.getLogger("trainer").info("known")
        logging.getLogger("trainer").warning("unexpected")
    assert "known" not in screen.getvalue()
    assert "unexpected" in screen.getvalue()
    assert len((tmp_path / "trainer.log").read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.parametrize("name", NOISY)
def test_of_libraries_only_warnings_are_kept(tmp_path: Path, console: Console, name: str) -> None:
    with run_logs(tmp_path / "trainer.log", console, quiet=False) as write:
        write()
        logging.getLogger(name).info("cache miss")
        logging.getLogger(name).warning("deprecated")
    assert "cache miss" not in (tmp_path / "trainer.log").read_text(encoding="utf-8")


def test_python_warnings_are_kept(tmp_path: Path, console: Console) -> None:
    with warnings.catch_warnings(), run_logs(tmp_path / "trainer.log", console, quiet=False) as write:
        write()
        warnings.simplefilter("always")
        warnings.warn("the scheduler was stepped first", stacklevel=1)
    assert "UserWarning: the scheduler was stepped first" in (tmp_path / "trainer.log").read_text(encoding="utf-8")


def test_logging_is_as_before_when_the_run_ends(
    tmp_path: Path, console: Console, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="datasets")

    def state() -> tuple[object, ...]:
        loggers = [logging.getLogger(name) for name in (None, *NOISY)]
        return warnings.showwarning, [logger.level for logger in loggers], [*loggers[0].handlers]

    before = state()
    with pytest.raises(ZeroDivisionError), run_logs(tmp_path / "trainer.log", console, quiet=False):
        assert 1 / (state() == before)
    assert state() == before


def test_a_second_run_appends(tmp_path: Path, console: Console) -> None:
    for number in (1, 2):
        with run_logs(tmp_path / "trainer.log", console, quiet=False) as write:
            write()
            logging.getLogger("trainer").info("run %d", number)
    lines = (tmp_path / "trainer.log").read_text(encoding="utf-8").splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == ["run 1", "run 2"]


def test_a_long_record_is_one_line_where_there_is_no_terminal(tmp_path: Path, screen: io.StringIO) -> None:
    with run_logs(tmp_path / "trainer.log", Console(file=screen, width=60), quiet=False):
        logging.getLogger("trainer").info("word " * 60)
    assert len(screen.getvalue().splitlines()) == 1
