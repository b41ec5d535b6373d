import errno
import os
import threading

import pytest
import torch

from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError


@pytest.fixture
def store(folder):
    return Store(folder, keep=4)


def spoil(snapshot):
    for tensors in snapshot.tensors.values():
        for tensor in tensors.values():
            tensor.zero_()


def test_training_goes_on_while_a_save_waits_for_the_device(store, monkeypatch, make, same):
    device_ready = threading.Event()
    fsync = os.fsync

    def slow(file):
        assert device_ready.wait(60)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    saver = Saver(store)
    snapshot = make(1)
    saver.submit(snapshot)
    spoil(snapshot)
    assert store.list() == ()
    device_ready.set()
    saver.close()
    assert same(store.load("last"), make(1))


def test_the_copies_of_one_save_are_not_those_of_the_next(store, make, same):
    saver = Saver(store)
    for step in range(1, 5):
        snapshot = make(step)
        saver.submit(snapshot, protect=range(5))
        spoil(snapshot)
    saver.close()
    assert store.list() == (1, 2, 3, 4)
    for step in store.list():
        assert same(store.load(f"step-{step}"), make(step))


def test_shapes_dtypes_and_names_may_change_between_saves(store, same):
    saver = Saver(store)
    snapshots = [
        Snapshot(1, {"model": {"a": torch.ones(3), "b": torch.ones(2)}}, {}),
        Snapshot(2, {"model": {"a": torch.ones(2, 2)}, "ema": {"a": torch.ones(1)}}, {}),
        Snapshot(3, {"model": {"a": torch.ones(2, 2, dtype=torch.float16)}}, {"state.json": "{}"}),
        Snapshot(4, {"optimizer": {}}, {}),
    ]
    for snapshot in snapshots:
        saver.submit(snapshot)
    saver.close()
    for snapshot in snapshots:
        assert same(store.load(f"step-{snapshot.step}"), snapshot)


def test_parameters_views_and_strides(store, same):
    parameter = torch.nn.Parameter(torch.randn(4, 6))
    tensors = {"whole": parameter, "row": parameter[1], "turned": parameter.T, "repeated": torch.ones(1).expand(3)}
    saver = Saver(store)
    saver.submit(Snapshot(1, {"model": tensors}, {}))
    saver.close()
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert same(store.load("last"), Snapshot(1, {"model": plain}, {}))


def failing(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_an_error_comes_with_the_next_save(store, make, same):
    store.save(make(1))
    saver = Saver(store)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "rename", failing)
        saver.submit(make(2))
        with pytest.raises(CheckpointError, match="No space left on device"):
            saver.submit(make(3))
    saver.submit(make(4))
    saver.close()
    assert store.list() == (1, 4)
    assert same(store.load("last"), make(4))


def test_an_error_comes_with_close_and_once(store, make, monkeypatch):
    monkeypatch.setattr(os, "write", failing)
    saver = Saver(store)
    saver.submit(make(1))
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.close()
    saver.close()


@pytest.mark.gpu
def test_tensors_of_a_device(store, make, same):
    saver = Saver(store)
    for step in (1, 2):
        snapshot = make(step)
        moved = {file: {n: t.cuda() for n, t in tensors.items()} for file, tensors in snapshot.tensors.items()}
        on_device = Snapshot(step, moved, snapshot.documents)
        saver.submit(on_device)
        spoil(on_device)
    saver.close()
    assert same(store.load("step-1"), make(1))
    assert same(store.load("step-2"), make(2))
