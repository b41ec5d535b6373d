from collections.abc import Mapping
from typing import Any

import pytest

from trainer.report.reports import Reports


class Recorder:
    """A sink that keeps the order of what reaches it and others in a list they share."""

    def __init__(self, name: str, seen: list[str], *, breaks: bool = False) -> None:
        self.name, self.seen, self.breaks = name, seen, breaks

    def log(self, event: str, *, step: int, epoch: float, values: Mapping[str, Any]) -> None:
        self.seen.append(f"{self.name} {event} {step} {epoch} {dict(values)}")

    def close(self) -> None:
        self.seen.append(f"{self.name} closed")
        if self.breaks:
            raise OSError("disk full")


def test_every_sink_gets_every_event_in_order() -> None:
    seen: list[str] = []
    with Reports(Recorder("a", seen), None, Recorder("b", seen)) as reports:
        reports.log("train", step=1, epoch=0.5, values={"loss": 2.0})
    assert seen == ["a train 1 0.5 {'loss': 2.0}", "b train 1 0.5 {'loss': 2.0}", "b closed", "a closed"]


def test_all_sinks_are_closed_when_the_run_fails_and_when_one_cannot_close() -> None:
    seen: list[str] = []
    reports = Reports(Recorder("a", seen), Recorder("b", seen, breaks=True))
    with pytest.raises(OSError, match="disk full") as failure, reports:
        raise KeyError("the run")
    assert seen == ["b closed", "a closed"]
    assert isinstance(failure.value.__context__, KeyError)


def test_a_run_that_fails_is_reported_up_to_there() -> None:
    seen: list[str] = []
    with pytest.raises(ZeroDivisionError), Reports(Recorder("a", seen)) as reports:
        reports.log("train", step=1, epoch=0.5, values={"loss": 1 / len(seen)})
    assert seen == ["a closed"]
