from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.config.compose import compose
from trainer.config.jobs import Job
from trainer.config.lint import check_command

Composed = Callable[..., tuple[Job, dict[str, Any]]]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def composed() -> Composed:
    """The job of a verb and its overrides, and its plain values, checked and composed as for a run."""

    def job(verb: str, *overrides: str) -> tuple[Job, dict[str, Any]]:
        plan = check_command(verb, overrides)
        if plan.resumed is not None:
            return plan.job_of(plan.resumed)
        return plan.job(*compose(plan.request.folder, plan.request.name, plan.hydra_argv), None)

    return job
