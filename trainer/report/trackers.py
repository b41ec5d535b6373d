"""Experiment trackers: observers that pass a run's name, its masked config and its scalars on, and nothing else.

What the packages collect on their own is turned off: the code and its state in git, the command, the machine and its
user, installed packages, and what is printed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainer.documents import flatten
from trainer.ownership import read_tracker_ids, write_tracker_ids
from trainer.protocols import Event, Observer, RunView
from trainer.report.events import name_scalars

PROJECT = "trainer"
"""The project or experiment that contains the runs, unless a variable of the tracker's own names another."""

_ID = re.compile(r"[\w-]{1,64}")
_PATIENCE = 15.0
"""Seconds that the end of a run waits for a tracker."""


class Tracker:
    """The base of the trackers: it follows a run from its start, and a resumed run goes on in the tracker's own run.

    Args:
        offline: Write into `trackers` next to the run folder, where runs can be compared, and send nothing.
    """

    name: str
    """The key of the tracker, and of its id in `trackers.json`."""

    def __init__(self, offline: bool) -> None:
        self.offline = offline
        self.folder = Path()
        self.has_ended = False
        self.is_open = False

    def observe(self, event: Event, run: RunView) -> None:
        """Pass an event on."""
        if event.name in ("start", "resume"):
            # Not in the run folder, which may not contain links: wandb makes some.
            self.folder = run.folder.parent / "trackers"
            self.folder.mkdir(exist_ok=True)
            stored = (read_tracker_ids(run.folder) or {}).get(self.name, "")
            identifier = self.open(run, stored if _ID.fullmatch(stored) else None)
            self.is_open = True
            write_tracker_ids(run.folder, (read_tracker_ids(run.folder) or {}) | {self.name: identifier})
        self.has_ended = event.name == "end"
        if scalars := name_scalars(event.name, event.values):
            self.write(scalars, event.step)

    def close(self) -> None:
        """End the tracker's run: finished if the run has ended, else failed.

        Raises:
            TimeoutError: The package has not ended it in time, such as without its network; nobody waits any longer.
        """
        if self.is_open:
            _call_within(_PATIENCE, self.finish)

    def open(self, run: RunView, identifier: str | None) -> str:
        """Start a run of the tracker, or go on with the one of this id; return its id."""
        raise NotImplementedError

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Log scalars by tag."""
        raise NotImplementedError

    def finish(self) -> None:
        """End the run."""
        raise NotImplementedError


class Wandb(Tracker):
    """Weights & Biases."""

    name = "wandb"

    def open(self, run: RunView, identifier: str | None) -> str:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        if not self.offline and os.environ.get("WANDB_MODE") in (None, "online") and not wandb.login(prompt=False):
            # It would ask for a key, and the run would wait for an answer.
            raise RuntimeError("not logged in: run `wandb login`, or set logger.offline=true")
        settings = wandb.Settings(
            console="off",
            silent=True,
            disable_code=True,
            disable_git=True,
            disable_job_creation=True,
            save_code=False,
            x_disable_machine_info=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
            host="",
            program="",
            init_timeout=30,
        )
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=identifier,
            name=run.name,
            config=run.config,
            dir=self.folder,
            mode="offline" if self.offline else None,
            resume="allow" if identifier and not self.offline else None,
            reinit="create_new",
            settings=settings,
        )
        return str(self._run.id)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def finish(self) -> None:
        self._run.finish(exit_code=0 if self.has_ended else 1)


class Mlflow(Tracker):
    """MLflow: the server or database in `MLFLOW_TRACKING_URI`; offline, the database `trackers/mlflow.db`."""

    name = "mlflow"

    def open(self, run: RunView, identifier: str | None) -> str:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        # A server that does not answer would stop the run for many minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        import mlflow
        from mlflow.entities import Metric, Param

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._metric = Metric
        uri = f"sqlite:///{self.folder / 'mlflow.db'}" if self.offline else None
        self._client = mlflow.MlflowClient(tracking_uri=uri)
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(project)
        location = (self.folder / "mlflow").as_uri() if self.offline else None
        experiment = known.experiment_id if known else self._client.create_experiment(project, location)
        if identifier is not None:
            with contextlib.suppress(Exception):  # it was deleted, or is in another database
                self._id = self._client.get_run(identifier).info.run_id
                self._client.update_run(self._id, status="RUNNING")
                return str(self._id)
        self._id = self._client.create_run(experiment, run_name=run.name).info.run_id
        params = [Param(key[:250], str(value)[:6000]) for key, value in flatten(run.config)]
        for start in range(0, len(params), 100):  # the most that one call may contain
            self._client.log_batch(self._id, params=params[start : start + 100])
        return str(self._id)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(self._id, [self._metric(tag, float(value), now, step) for tag, value in scalars.items()])

    def finish(self) -> None:
        self._client.set_terminated(self._id, "FINISHED" if self.has_ended else "FAILED")


class Swanlab(Tracker):
    """SwanLab."""

    name = "swanlab"

    def open(self, run: RunView, identifier: str | None) -> str:
        import swanlab

        collected = ("hardware", "runtime", "requirements", "conda", "git", "swanlab", "monitor")
        settings = swanlab.Settings(
            interactive=False, probe=dict.fromkeys(collected, False), terminal={"proxy_type": "none"}
        )
        logs = self.folder / "swanlab"
        logs.mkdir(exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints how to see the run
            self._run: Any = swanlab.init(
                project=os.environ.get("SWANLAB_PROJECT", PROJECT),
                id=identifier,
                name=run.name,
                config=run.config,
                log_dir=str(logs),
                mode="offline" if self.offline else None,
                resume="allow" if identifier else None,
                reinit=True,
                settings=settings,
            )
        return str(self._run.id)

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self) -> None:
        # Around the thread that may never end, and would never give the output back.
        with contextlib.redirect_stdout(io.StringIO()):
            super().close()

    def finish(self) -> None:
        if self.has_ended:
            self._run.finish()
        else:
            self._run.finish(state="aborted")


def _call_within(seconds: float, function: Callable[[], None]) -> None:
    """Call a function in a thread that does not keep the process alive, and raise what it raises.

    Raises:
        TimeoutError: It takes longer.
    """
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer for {seconds:.0f} s; the run ends without it")
    if errors:
        raise errors[0]


_TRACKERS: Mapping[str, type[Tracker]] = {each.name: each for each in (Wandb, Mlflow, Swanlab)}


def make_tracker(name: str, *, offline: bool) -> Observer:
    """Return the tracker of a name in `logger.trackers`."""
    return _TRACKERS[name](offline)
