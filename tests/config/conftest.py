from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config.command import check_command
from trainer.config.jobs import Job

Composed = Callable[..., tuple[Job, dict[str, Any]]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def composed() -> Composed:
    """Returns the job of a verb and its overrides, and its plain values, as they start."""

    def job(verb: str, *overrides: str) -> tuple[Job, dict[str, Any]]:
        single = check_command(verb, overrides).single
        assert single is not None
        return single.job, single.config

    return job
