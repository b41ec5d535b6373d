"""The checkpoints of one run: saving, choosing, loading, and deleting old ones.

A checkpoint is written into `.tmp-step-…` next to its final place and renamed when every byte is on the disk.
A checkpoint to be deleted is renamed to `.trash-step-…` before its files are deleted.
So a folder `step-…` is always complete, even if the machine stops at any moment.

Importing this module does not import torch: checkpoints are chosen and verified without it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from trainer.checkpoint.listing import REPLACED, find_step_folders, list_newest_first, rank_by_score
from trainer.checkpoint.manifest import (
    DamagedError,
    Manifest,
    UnreadableError,
    read_manifest,
    require_intact,
)
from trainer.checkpoint.shards import FROZEN
from trainer.checkpoint.snapshot import (
    Snapshot,
    StoredFile,
    read_or_explain,
    read_snapshot,
    read_snapshot_on_demand,
    write_manifest,
    write_shard,
    write_snapshot,
)
from trainer.errors import CheckpointError, ConfigError, format_error
from trainer.files import atomic_io
from trainer.files.atomic_io import FileDigest
from trainer.layout import step_name

if TYPE_CHECKING:
    from torch import Tensor

    from trainer.distributed.ranks import Ranks

_TEMPORARY = ".tmp-"
_TRASH = ".trash-"

_logger = logging.getLogger(__name__)
_Result = TypeVar("_Result")


class Store:
    """The checkpoints in one folder. The folder's contents are the only record; there is no index next to it.

    One process at a time may save (see `run_lock`); any number may load at the same time.

    Args:
        folder: `<run folder>/checkpoints`; created by the first save.
        keep: Number of newest intact checkpoints to keep, at least 2; the best one is kept in addition.

    Raises:
        ConfigError: `keep` is less than 2.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        if keep < 2:
            remedy = "With two, an older one is left if the newest is damaged"
            raise ConfigError(format_error("keep", "must be at least 2", remedy, value=keep))
        self._folder = folder
        self._keep = keep
        self._verified: dict[Path, atomic_io.FolderStamp] = {}
        self._frozen: dict[Path, Mapping[str, tuple[Tensor, int]]] = {}

    def list(self) -> tuple[int, ...]:
        """Return the steps that have a checkpoint, ascending, intact or not."""
        return tuple(find_step_folders(self._folder))

    def path(self, step: int) -> Path:
        """Return the folder of a step's checkpoint, existing or not."""
        return find_step_folders(self._folder).get(step, self._folder / step_name(step))

    def find(self, which: str) -> Path:
        """Return the folder of an intact checkpoint, chosen as by `load`; needs no torch."""
        return self._first_intact(which, require_intact)

    def load(self, which: str, *, on_demand: bool = False) -> Snapshot:
        """Return the contents of a checkpoint, every byte verified.

        A damaged one is skipped with a warning in favor of the next, unless it was named by its step.

        Args:
            which: `last` (the one saved last), `best` (the best score, see `rank_by_score`) or `step-N`.
            on_demand: Read each tensor only when it is used (`StoredTensors`).

        Raises:
            ConfigError: `which` is none of these.
            CheckpointError: There is no such checkpoint, or it is damaged and no other can replace it.
        """
        return self._first_intact(which, read_snapshot_on_demand if on_demand else read_snapshot)

    def save(self, snapshot: Snapshot, protect: Collection[int] = ()) -> Path:
        """Write a checkpoint; once it is durable, delete those older than the newest `keep` intact ones.

        The best one is kept. A checkpoint of the same step is replaced: the run may have reached it another way.

        Args:
            snapshot: What to write. Its score, for `best`, is in `state.json` as
                `"score": {"name": str, "value": float, "higher_is_better": bool, "weights": "raw" | "ema"}` or null.
            protect: Steps to keep, whatever their age.

        Raises:
            CheckpointError: A file operation failed. Earlier checkpoints are unchanged.
        """
        temporary, ordinal = self._begin(snapshot.step)
        try:
            write_snapshot(temporary, snapshot, ordinal, self._find_frozen(snapshot))
            target = self._publish(temporary)
        except BaseException:
            with suppress(CheckpointError):
                atomic_io.remove_folder(temporary)
            raise
        self._delete_outdated({snapshot.step, *protect})
        self._remember_frozen(target, snapshot)
        return target

    def _remember_frozen(self, target: Path, snapshot: Snapshot) -> None:
        frozen = snapshot.stored_tensors().get(FROZEN, {})
        self._frozen = {folder: earlier for folder, earlier in self._frozen.items() if folder.exists()}
        self._frozen[target] = {name: (tensor, tensor._version) for name, tensor in frozen.items()}

    def _find_frozen(self, snapshot: Snapshot) -> StoredFile | None:
        """Return the file of the checkpoint before the newest if it is intact and contains a snapshot's frozen weights.

        So neighbors do not share a file: damage to one leaves the other checkpoint of each pair intact.
        """
        tensors = snapshot.stored_tensors().get(FROZEN, {})
        if not tensors:
            return None
        earlier = [each.folder for each in list_newest_first(self._folder) if each.fault is None][1:2]
        try:
            if not earlier or not self._is_intact(earlier[0]):
                return None
            file = earlier[0] / snapshot.file_name(FROZEN)
            digest = read_manifest(earlier[0]).files.get(file.name)
        except DamagedError:
            return None
        is_same = _is_unchanged(self._frozen.get(earlier[0], {}), tensors)
        if digest is None or not (is_same or atomic_io.has_contents(file, snapshot.encode(FROZEN))):
            return None
        return StoredFile(file, digest)

    def save_shard(self, snapshot: Snapshot, ranks: Ranks, protect: Collection[int] = ()) -> Path:
        """Write a checkpoint together with other processes, which each call this with their own shard.

        Each process writes its rows; the first one publishes the folder when all rows are on the disk. If an operation
        fails in one process, the save fails in all of them.

        Args:
            snapshot: The part to write; the documents of the first process count.
            ranks: The processes, with a connection that no other thread uses.
            protect: Steps to keep, whatever their age.

        Raises:
            CheckpointError: A file operation failed in some process. Earlier checkpoints are unchanged.
        """

        def begin() -> tuple[Path, int]:
            temporary, ordinal = self._begin(snapshot.step)
            atomic_io.create_folder(temporary)
            return temporary, ordinal

        def write() -> dict[str, FileDigest]:
            return write_shard(temporary, snapshot, ranks, self._find_frozen(snapshot))

        def publish() -> Path:
            written = {name: digest for files in shards for name, digest in files.items()}
            write_manifest(temporary, Manifest(snapshot.step, ordinal, written))
            target = self._publish(temporary)
            self._delete_outdated({snapshot.step, *protect})
            return target

        temporary, ordinal = _agree(ranks, begin)[0]
        try:
            shards = _agree(ranks, write, on_all=True)
            target = _agree(ranks, publish)[0]
        except BaseException:
            if ranks.is_first:
                with suppress(CheckpointError):
                    atomic_io.remove_folder(temporary)
            raise
        self._remember_frozen(target, snapshot)
        return target

    def _begin(self, step: int) -> tuple[Path, int]:
        """Return the folder in which to write a step's checkpoint, and its ordinal."""
        atomic_io.create_folder(self._folder)
        self._clean_up()
        earlier = list_newest_first(self._folder)
        # A manifest that cannot be read may contain a higher ordinal.
        ordinal = 1 + len(earlier) + max((each.ordinal for each in earlier), default=0)
        return self._folder / (_TEMPORARY + step_name(step)), ordinal

    def _delete_outdated(self, protected: set[int]) -> None:
        try:
            outdated = self._find_outdated(protected)
        except UnreadableError as fault:
            _logger.warning("%s: %s. Keeping all older checkpoints.", self._folder, fault)
            return
        for folder in outdated:
            _delete(folder)

    def _first_intact(self, which: str, read: Callable[[Path], _Result]) -> _Result:
        match = re.fullmatch(r"step-(\d+)", which)
        if match:
            remedy = "The newest intact one is checkpoint=last; to resume from it, set resume=<run folder>"
            remedy = f"{self._list_steps()}. {remedy}"
            return read_or_explain(self.path(int(match[1])), read, remedy)
        if which not in ("last", "best"):
            raise ConfigError(format_error("checkpoint", "unknown", "Allowed: best, last, step-N", value=which))
        candidates = list_newest_first(self._folder)
        if which == "best":
            # Checkpoints whose score cannot be read are tried first, so that their damage is reported.
            candidates = [*(each for each in candidates if each.fault), *rank_by_score(candidates)]
        for folder in (each.folder for each in candidates):
            try:
                return read(folder)
            except DamagedError as fault:
                _logger.warning("skipping the damaged checkpoint %s: %s", folder, fault)
        problem, remedy = "contains no intact checkpoint", self._list_steps()
        if which == "best":
            problem += " with a score"
            if any(each.score is None and each.fault is None for each in list_newest_first(self._folder)):
                remedy += ". Set checkpoint=last to use one without a score"
        raise CheckpointError(format_error(str(self._folder), problem, remedy))

    def _list_steps(self) -> str:
        return f"Existing steps: {', '.join(map(str, self.list())) or 'none'}"

    def _publish(self, temporary: Path) -> Path:
        """Give a complete folder its final name; return its path."""
        target = temporary.with_name(temporary.name.removeprefix(_TEMPORARY))
        if target not in atomic_io.list_entries(self._folder):
            atomic_io.rename(temporary, target)
        else:
            old = target.with_name(REPLACED + target.name)
            atomic_io.rename(target, old)
            atomic_io.rename(temporary, target)
            _delete(old)
        with suppress(OSError):
            self._verified[target] = atomic_io.stamp_folder(target)
        return target

    def _clean_up(self) -> None:
        """Remove or complete the folders left by a process that was killed while it saved."""
        entries = atomic_io.list_entries(self._folder)
        for path in entries:
            if path.name.startswith((_TEMPORARY, _TRASH)):
                atomic_io.remove_folder(path)
        for path in entries:
            if path.name.startswith(REPLACED):
                target = path.with_name(path.name.removeprefix(REPLACED))
                if target in entries:
                    _delete(path)
                else:
                    atomic_io.rename(path, target)

    def _find_outdated(self, protected: set[int]) -> tuple[Path, ...]:
        """Return the folders to delete: older than the newest `keep` intact ones, neither best nor protected."""
        newest = list_newest_first(self._folder)
        for each in newest:
            if isinstance(each.fault, UnreadableError):
                raise each.fault
        best = next((each.step for each in rank_by_score(newest) if self._is_intact(each.folder)), None)
        intact = 0
        while newest and intact < self._keep:
            intact += self._is_intact(newest.pop(0).folder)
        return tuple(each.folder for each in newest if each.step != best and each.step not in protected)

    def _is_intact(self, folder: Path) -> bool:
        # Reading every old checkpoint at every save would cost more than the save itself.
        try:
            stamp = atomic_io.stamp_folder(folder)
            if self._verified.get(folder) != stamp:
                require_intact(folder)
        except OSError as error:
            raise UnreadableError(f"{folder.name} cannot be read: {error.strerror}") from error
        except UnreadableError:
            raise
        except DamagedError:
            return False
        self._verified[folder] = stamp
        return True


def _agree(ranks: Ranks, work: Callable[[], _Result], *, on_all: bool = False) -> list[_Result]:
    """Do some work in the first process, or in all; return its result in each of them.

    Raises:
        CheckpointError: The work failed in some process; all processes raise the error of the first of them.
    """
    results: list[_Result] = []
    messages: tuple[str, ...] = ()
    failure: Exception | None = None
    if on_all or ranks.is_first:
        try:
            results = [work()]
        except Exception as error:
            failure = error
            messages = error.messages if isinstance(error, CheckpointError) else (f"a checkpoint failed: {error!r}",)
    outcomes = ranks.gather((results, messages))
    first_messages = next((messages for _, messages in outcomes if messages), ())
    if first_messages:
        raise CheckpointError(*first_messages) from failure
    return [result for results, _ in outcomes for result in results]


def _is_unchanged(before: Mapping[str, tuple[Tensor, int]], tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are in the memory of earlier ones, and no operation has changed them since."""
    return before.keys() == tensors.keys() and all(
        (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor._version)
        == (before[name][0].data_ptr(), before[name][0].shape, before[name][0].stride(), before[name][1])
        for name, tensor in tensors.items()
    )


def _delete(folder: Path) -> None:
    trash = folder.with_name(_TRASH + folder.name)
    atomic_io.rename(folder, trash)
    atomic_io.remove_folder(trash)
