"""The observers of a job: the user's own, and the trackers."""

from __future__ import annotations

from pathlib import Path

from trainer.builders.instantiate import instantiate
from trainer.config.jobs import TrainJob
from trainer.display import masked_config
from trainer.layout import Document
from trainer.observers import Observers, training_state_kept
from trainer.ownership import read_tracker_ids, write_tracker_ids
from trainer.protocols import Observer, RunView
from trainer.report.trackers import make_tracker
from trainer.run import StepCounts


def build_observers(job: TrainJob, config: Document, folder: Path, steps: StepCounts) -> Observers | None:
    """Build the sink that passes the events of a run to its observers; None if it has none.

    Raises:
        ConfigError: An observer cannot be made.
    """
    observers: dict[str, Observer] = {}
    for number, part in enumerate(job.observers):
        path = f"observers.{number}"
        with training_state_kept():
            observers[f"{path} ({part['_target_']})"] = instantiate(path, part)
    if job.logger.trackers:
        write_tracker_ids(folder, read_tracker_ids(folder) or {})
    for name in dict.fromkeys(job.logger.trackers):
        observers[f"logger.trackers ({name})"] = make_tracker(name, offline=job.logger.offline)
    if not observers:
        return None
    view = RunView(folder.absolute(), folder.absolute().name, masked_config(config), steps.total, steps.per_epoch)
    return Observers(observers, view)
