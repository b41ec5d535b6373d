"""The checkpoints of one run: saving, choosing, loading and giving up old ones.

A checkpoint is written into `.tmp-step-…` beside its place and renamed when every byte of it is on the device.
One that is given up is renamed to `.trash-step-…` before its files go.
So a folder `step-…` is complete whenever the machine stops.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from trainer.checkpoint import atomic_io
from trainer.checkpoint.listing import REPLACED, best_first, folders, newest_first
from trainer.checkpoint.manifest import Damaged, Unreadable, check
from trainer.checkpoint.snapshot import Snapshot, read_snapshot, write_snapshot
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.layout import step_name

_TEMPORARY = ".tmp-"
_TRASH = ".trash-"

_logger = logging.getLogger(__name__)
_Read = TypeVar("_Read")


class Store:
    """The checkpoints in one folder. What lies in the folder is the truth; nothing is remembered beside it.

    One process at a time may save (see `run_lock`); any number may load meanwhile.

    Args:
        folder: `<run folder>/checkpoints`; made at the first save.
        keep: How many of the newest intact checkpoints stay, at least 2; the best one stays besides.

    Raises:
        ConfigError: `keep` is less than 2.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 2:
            remedy = "It takes two, so that an older one is left when the newest is damaged"
            raise ConfigError(format_error("keep", "must be at least 2", remedy, value=keep))
        self._folder = folder
        self._keep = keep
        self._verified: dict[Path, atomic_io.Stamp] = {}

    def list(self) -> tuple[int, ...]:
        """The steps that have a checkpoint, ascending, intact or not."""
        return tuple(folders(self._folder))

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or would."""
        return folders(self._folder).get(step, self._folder / step_name(step))

    def find(self, which: str) -> Path:
        """The folder of an intact checkpoint; chosen as by `load`, without need of torch."""
        return self._first_intact(which, check)

    def load(self, which: str) -> Snapshot:
        """The contents of a checkpoint, every byte of it verified.

        A damaged one is passed over for the next with a warning, unless it was asked for by its step.

        Args:
            which: `last` (the one saved last), `best` (the best score, the earliest of equals) or `step-N`.

        Raises:
            ConfigError: `which` is none of these.
            CheckpointError: There is no such checkpoint, or it is damaged and no other can stand in for it.
        """
        return self._first_intact(which, read_snapshot)

    def save(self, snapshot: Snapshot, protect: Collection[int] = ()) -> Path:
        """Writes a checkpoint; when it is durable, gives up what is older than the newest `keep` intact ones.

        The best one stays. One of the same step is replaced: the run may have come there another way.

        Args:
            snapshot: What to write. Its score, for `best`, stands in `state.json` as
                `"score": {"name": str, "value": float, "higher_is_better": bool, "weights": "raw" | "ema"}` or null.
            protect: Steps that stay, whatever their age.

        Raises:
            CheckpointError: A file operation failed. The checkpoints from before are as they were.
        """
        atomic_io.create_folder(self._folder)
        self._sweep()
        target = self._folder / step_name(snapshot.step)
        temporary = target.with_name(_TEMPORARY + target.name)
        found = newest_first(self._folder)
        # A manifest that cannot be read may hold a higher one.
        ordinal = 1 + len(found) + max((one.ordinal for one in found), default=0)
        try:
            write_snapshot(temporary, snapshot, ordinal)
            self._publish(temporary, target)
        except BaseException:
            with suppress(CheckpointError):
                atomic_io.remove_folder(temporary)
            raise
        with suppress(OSError):
            self._verified[target] = atomic_io.stamp(target)
        try:
            old = self._old({snapshot.step, *protect})
        except Unreadable as fault:
            _logger.warning("%s: %s. No older checkpoint is given up.", self._folder, fault)
            return target
        for folder in old:
            _give_up(folder)
        return target

    def _first_intact(self, which: str, read: Callable[[Path], _Read]) -> _Read:
        wanted = re.fullmatch(r"step-(\d+)", which)
        if wanted:
            return _read_named(self.path(int(wanted[1])), read, f"{self._found()}. `last` takes the newest intact one")
        if which not in ("last", "best"):
            raise ConfigError(format_error("checkpoint", "unknown", "Allowed: best, last, step-N", value=which))
        candidates = newest_first(self._folder)
        if which == "best":
            # One whose score cannot be read is tried too, which reports it.
            candidates = [*filter(lambda one: one.fault, candidates), *best_first(candidates)]
        for folder in (one.folder for one in candidates):
            try:
                return read(folder)
            except Damaged as fault:
                _logger.warning("%s is damaged and passed over: %s.", folder, fault)
        problem = "holds no intact checkpoint" + (" with a score" if which == "best" else "")
        raise CheckpointError(format_error(str(self._folder), problem, self._found()))

    def _found(self) -> str:
        return f"Steps found: {', '.join(map(str, self.list())) or 'none'}"

    def _publish(self, temporary: Path, target: Path) -> None:
        if target not in atomic_io.entries(self._folder):
            atomic_io.rename(temporary, target)
            return
        old = target.with_name(REPLACED + target.name)
        atomic_io.rename(target, old)
        atomic_io.rename(temporary, target)
        _give_up(old)

    def _sweep(self) -> None:
        # What a process left behind that was killed while it saved.
        found = atomic_io.entries(self._folder)
        for path in found:
            if path.name.startswith((_TEMPORARY, _TRASH)):
                atomic_io.remove_folder(path)
        for path in found:
            if path.name.startswith(REPLACED):
                target = path.with_name(path.name.removeprefix(REPLACED))
                if target in found:
                    _give_up(path)
                else:
                    atomic_io.rename(path, target)

    def _old(self, protected: set[int]) -> tuple[Path, ...]:
        newest = newest_first(self._folder)
        for one in newest:
            if isinstance(one.fault, Unreadable):
                raise one.fault
        best = next((one.step for one in best_first(newest) if self._is_intact(one.folder)), None)
        intact = 0
        while newest and intact < self._keep:
            intact += self._is_intact(newest.pop(0).folder)
        return tuple(one.folder for one in newest if one.step != best and one.step not in protected)

    def _is_intact(self, folder: Path) -> bool:
        # Reading every old checkpoint at every save would cost more than the save itself.
        try:
            stamp = atomic_io.stamp(folder)
            if self._verified.get(folder) != stamp:
                check(folder)
        except OSError as error:
            raise Unreadable(f"{folder.name} cannot be read: {error.strerror}") from error
        except Unreadable:
            raise
        except Damaged:
            return False
        self._verified[folder] = stamp
        return True


def load_folder(folder: Path) -> Snapshot:
    """The contents of the checkpoint in a folder of any name, every byte verified.

    Raises:
        CheckpointError: It is missing or damaged.
    """
    return _read_named(folder, read_snapshot, "A run folder stands for its newest intact checkpoint")


def _read_named(folder: Path, read: Callable[[Path], _Read], remedy: str) -> _Read:
    try:
        return read(folder)
    except Damaged as fault:
        problem = f"is damaged: {fault}" if folder.is_dir() else "there is no such checkpoint"
        raise CheckpointError(format_error(str(folder), problem, remedy)) from fault


def _give_up(folder: Path) -> None:
    trash = folder.with_name(_TRASH + folder.name)
    atomic_io.rename(folder, trash)
    atomic_io.remove_folder(trash)
