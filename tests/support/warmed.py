"""The work that each process forked from the server would repeat: imports, and what the first check of a command keeps.

Nothing here starts a thread or draws a random number.
"""

import gc
from contextlib import suppress

import tests.support.composed
import tests.support.unsynced  # noqa: F401
import trainer.builders.observers
import trainer.commands.eval
import trainer.commands.export
import trainer.commands.predict
import trainer.commands.report
import trainer.data.files
import trainer.intervals.confidence
import trainer.optimizer.adamw
import trainer.ownership
import trainer.row_recorder
import trainer.scheduler.linear
import trainer.task.text_classification  # noqa: F401
from tests.support.jobs import TINY
from trainer.config.command import check_command
from trainer.errors import DataError

with suppress(DataError):  # there is no such file
    check_command("train", [*TINY, "data=files", "data.train=no.csv"])
# Forked processes then share these objects: a collection would write into each of them.
gc.collect()
gc.freeze()
