"""Checkpoints that several processes write together, here threads: the same contents, and all fail if one does."""

from __future__ import annotations

import errno
import itertools
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.faults import SCORES, WRITING, Fault, assert_unharmed
from tests.support.processes import PATIENCE
from trainer.checkpoint.manifest import DamagedError, find_faults, read_manifest
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.shards import Rows, Shard
from trainer.checkpoint.snapshot import Snapshot, load_folder
from trainer.checkpoint.store import Store
from trainer.checkpoint.tensors import StoredTensors, decode_shards, encode
from trainer.distributed.ranks import Ranks
from trainer.errors import CheckpointError, ReportedError


class Threads(Ranks):
    """Threads of this process in place of processes."""

    def __init__(self, rank: int, size: int, values: list[Any], barrier: threading.Barrier) -> None:
        super().__init__(rank, size)
        self._values = values
        self._barrier = barrier

    def gather(self, value: Any) -> list[Any]:
        self._values[self.rank] = value
        self._barrier.wait(timeout=PATIENCE)
        values = list(self._values)
        self._barrier.wait(timeout=PATIENCE)
        return values


def on_threads(size: int, work: Callable[[Ranks], Any]) -> list[Any]:
    """Run `work` in a thread for each process; return each one's result or the error that it raised."""
    values, barrier = [None] * size, threading.Barrier(size)

    def run(rank: int) -> Any:
        threading.current_thread().name = f"rank-{rank}"
        try:
            return work(Threads(rank, size, values, barrier))
        except (CheckpointError, ReportedError) as error:
            return error

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def split(snapshot: Snapshot, index: int, count: int) -> Snapshot:
    """Return a part of a complete snapshot: the rows that torch.chunk gives it; the first part has the numbers too."""
    tensors: dict[str, dict[str, torch.Tensor]] = {}
    rows: dict[str, dict[str, Rows]] = {}
    for file, named in snapshot.tensors.items():
        tensors[file], rows[file] = {}, {}
        for name, tensor in named.items():
            if tensor.ndim:
                size = -(-len(tensor) // count)
                start = min(len(tensor), index * size)
                tensors[file][name] = tensor[start : start + size]
                rows[file][name] = Rows(start, tuple(tensor.shape))
            elif index == 0:
                tensors[file][name] = tensor
    return Snapshot(snapshot.step, tensors, snapshot.documents, Shard(index, count, rows), snapshot.frozen)


def save_shards(folder: Path, snapshot: Snapshot, size: int, keep: int = 2) -> list[Any]:
    """Save a snapshot in shards, by a thread for each; return each one's path or error."""
    return on_threads(
        size, lambda ranks: Store(folder, keep=keep).save_shard(split(snapshot, ranks.rank, ranks.size), ranks)
    )


@pytest.mark.parametrize("size", [2, 3, 4])
def test_shards_load_as_the_complete_state(folder: Path, size: int, make: Any, same: Any) -> None:
    target = folder / "step-00000007"
    assert save_shards(folder, make(7, 0.5), size) == [target] * size
    assert find_faults(target) == []
    assert same(load_folder(target), make(7, 0.5))
    assert same(Store(folder, 2).load("best"), make(7, 0.5))
    lazy = Store(folder, 2).load("last", on_demand=True)
    assert same(
        Snapshot(lazy.step, {name: dict(each) for name, each in lazy.tensors.items()}, lazy.documents), make(7, 0.5)
    )


@pytest.mark.parametrize("size", [2, 3])
def test_frozen_rows_are_stored_once_for_every_second_checkpoint(folder: Path, size: int, make: Any, same: Any) -> None:
    first = make(1)
    names = frozenset(list(first.tensors["model"])[:2])
    for step in (1, 2, 3):
        model = {**make(step).tensors["model"], **{name: first.tensors["model"][name] for name in names}}
        snapshot = replace(make(step), tensors={**make(step).tensors, "model": model}, frozen={"model": names})
        save_shards(folder, snapshot, size, keep=3)
        target = folder / f"step-{step:08d}"
        assert same(load_folder(target), snapshot)
        lazy = load_folder(target, on_demand=True)
        assert all(torch.equal(lazy.tensors["model"][name], tensor) for name, tensor in model.items())
        assert find_faults(target) == []
    for number in range(1, size + 1):
        nodes = [path.stat().st_ino for path in sorted(folder.glob(f"*/frozen-{number:05d}-of-{size:05d}.safetensors"))]
        assert nodes[0] == nodes[-1] != nodes[-2]
    (folder / f"step-00000003/frozen-00002-of-{size:05d}.safetensors").unlink()
    with pytest.raises(CheckpointError, match="frozen-00002"):
        load_folder(folder / "step-00000003")


def test_complete_and_sharded_checkpoints_of_a_run_follow_each_other(folder: Path, make: Any, same: Any) -> None:
    store = Store(folder, 2)
    store.save(make(1, 0.9))
    save_shards(folder, make(2, 0.1), 3)
    store.save(make(3, 0.2))
    save_shards(folder, make(3, 0.3), 2)
    assert store.list() == (1, 2, 3)
    assert same(store.load("last"), make(3, 0.3))
    save_shards(folder, make(4, 0.4), 2)
    assert store.list() == (1, 3, 4)
    assert [read_manifest(store.path(step)).ordinal for step in (1, 3, 4)] == sorted(
        read_manifest(store.path(step)).ordinal for step in (1, 3, 4)
    )


def test_missing_rows_are_damage(folder: Path, make: Any) -> None:
    save_shards(folder, make(7), 3)
    files = sorted((folder / "step-00000007").glob("model-*"))
    with pytest.raises(DamagedError, match=r"rows of linear\.\w+ from \d on are missing"):
        decode_shards({file.name: file.read_bytes() for file in files if "00002-of" not in file.name})


@given(st.integers(0, 9), st.integers(1, 5), st.data())
@settings(max_examples=40)
def test_any_rows_can_be_read(rows: int, count: int, data: st.DataObject) -> None:
    whole = torch.arange(rows * 3, dtype=torch.bfloat16).view(rows, 3)
    start = data.draw(st.integers(0, rows))
    stop = data.draw(st.integers(start, rows))
    size = -(-rows // count) or 1
    folder = Path(os.environ["PYTEST_SHARDS"])
    paths = []
    for index in range(count):
        first = min(rows, index * size)
        parts = {"w": whole[first : first + size], "before": torch.ones(3)}
        paths.append(folder / f"{index}.safetensors")
        paths[-1].write_bytes(b"".join(encode(parts, {"w": Rows(first, (rows, 3))})))
    stored = StoredTensors(paths)
    assert stored.shape("w") == (rows, 3)
    assert torch.equal(stored["w"], whole)
    assert torch.equal(stored.read_rows("w", start, stop), whole[start:stop])
    assert torch.equal(decode_shards({path.name: path.read_bytes() for path in paths})["w"], whole)


@pytest.fixture(autouse=True)
def _folder_of_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_SHARDS", str(tmp_path))


@pytest.fixture
def _files_in_the_thread_that_saves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write files one after the other, in the thread whose name tells the process."""

    class InThisThread:
        def __init__(self, _: int) -> None: ...
        def __enter__(self) -> InThisThread:
            return self

        def __exit__(self, *_: object) -> None: ...
        def map(self, function: Callable[[Any], Any], values: Any) -> Iterator[Any]:
            return map(function, values)

    monkeypatch.setattr("trainer.checkpoint.snapshot.ThreadPoolExecutor", InThisThread)


@pytest.mark.usefixtures("_files_in_the_thread_that_saves")
@pytest.mark.parametrize("new", [40, 30], ids=["new", "replaced"])
@pytest.mark.parametrize(
    ("rank", "start", "stride"), [(0, 3, 11), (1, 1, 3), (2, 2, 5), pytest.param(0, 1, 1, marks=pytest.mark.slow)]
)
def test_one_failing_file_operation_on_any_device_harms_no_earlier_checkpoint(
    folder: Path, tmp_path: Path, rank: int, start: int, stride: int, new: int, make: Any, same: Any, figure: Any
) -> None:
    for step, score in SCORES.items():
        save_shards(folder, make(step, score), 3)
    assert Store(folder, 2).list() == (10, 20, 30)
    for at in itertools.count(start, stride):
        trial = tmp_path / "trial"
        shutil.copytree(folder, trial)
        with pytest.MonkeyPatch.context() as patch:
            fault = Fault(patch, WRITING, errno.EIO, at, thread=f"rank-{rank}")
            outcomes = save_shards(trial, make(new, 0.3), 3)
        if fault.reached < at:
            break
        messages = {str(outcome) for outcome in outcomes}
        assert [type(outcome) for outcome in outcomes] == [CheckpointError] * 3
        assert len(messages) == 1
        assert re.match(rf"{re.escape(str(trial))}\S*: cannot be .+: Input/output error\.", messages.pop())
        store = assert_unharmed(trial, make, same, new)
        save_shards(trial, make(50), 2)
        assert all(path.name.startswith("step-") for path in trial.iterdir())
        assert store.load("last").step == 50
        shutil.rmtree(trial)
    assert at > 10
    assert outcomes == [trial / f"step-{new:08d}"] * 3
    tried = (at - start) // stride
    figure("file operations of sharded saves made to fail on one device, earlier checkpoints unharmed", tried, tried)


def test_flipped_bits_in_each_shard_are_found(folder: Path, make: Any, figure: Any) -> None:
    save_shards(folder, make(7), 3)
    target = folder / "step-00000007"
    generator = torch.Generator().manual_seed(0)
    found = 0
    for path in (files := sorted(target.iterdir()) * 5):
        original = path.read_bytes()
        data = bytearray(original)
        bit = int(torch.randint(len(data) * 8, (), generator=generator))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        for read in (lambda: load_folder(target), lambda: Store(folder, 2).load("step-7", on_demand=True)):
            with pytest.raises(CheckpointError, match="is damaged"):
                read()
        found += bool(find_faults(target))
        path.write_bytes(original)
    figure("flipped bits in shards detected", len(files), found)
    assert found == len(files)


def test_failed_save_in_the_background_ends_every_process_with_one_message(
    folder: Path, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_shards(folder, make(1), 2)
    monkeypatch.setattr(
        os, "fsync", lambda file: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device"))
    )

    def save(ranks: Ranks) -> None:
        saver = Saver(Store(folder, 2), ranks)
        saver.submit(split(make(2), ranks.rank, 2))
        saver.close()

    first, second = on_threads(2, save)
    assert isinstance(first, CheckpointError)
    assert "No space left on device" in str(first)
    assert isinstance(second, ReportedError)
    assert second.exit_code == first.exit_code == 3
    assert Store(folder, 2).list() == (1,)
