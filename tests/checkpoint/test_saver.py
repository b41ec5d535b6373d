"""Saving checkpoints in the background."""

import errno
import os
import threading

import pytest
import torch

from tests.support.documents import state_text
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import Snapshot
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError


@pytest.fixture
def roomy(folder):
    """Return a store that keeps four checkpoints."""
    return Store(folder, keep=4)


def zero_tensors(snapshot):
    for tensors in snapshot.tensors.values():
        for tensor in tensors.values():
            tensor.zero_()


def test_submit_returns_while_the_save_waits_for_the_device(roomy, monkeypatch, make, same):
    device_ready = threading.Event()
    fsync = os.fsync

    def slow(file):
        assert device_ready.wait(60)
        fsync(file)

    monkeypatch.setattr(os, "fsync", slow)
    saver = Saver(roomy)
    snapshot = make(1)
    saver.submit(snapshot)
    zero_tensors(snapshot)
    assert roomy.list() == ()
    device_ready.set()
    saver.close()
    assert same(roomy.load("last"), make(1))


def test_consecutive_saves_do_not_share_copies(roomy, make, same):
    saver = Saver(roomy)
    for step in range(1, 5):
        snapshot = make(step)
        saver.submit(snapshot, protect=range(5))
        zero_tensors(snapshot)
    saver.close()
    assert roomy.list() == (1, 2, 3, 4)
    for step in roomy.list():
        assert same(roomy.load(f"step-{step}"), make(step))


def test_shapes_dtypes_and_names_may_change_between_saves(roomy, same):
    saver = Saver(roomy)
    snapshots = [
        Snapshot(1, {"model": {"a": torch.ones(3), "b": torch.ones(2)}}, {}),
        Snapshot(2, {"model": {"a": torch.ones(2, 2)}, "ema": {"a": torch.ones(1)}}, {}),
        Snapshot(3, {"model": {"a": torch.ones(2, 2, dtype=torch.float16)}}, {"state.json": state_text(3)}),
        Snapshot(4, {"optimizer": {}}, {}),
    ]
    for snapshot in snapshots:
        saver.submit(snapshot)
    saver.close()
    for snapshot in snapshots:
        assert same(roomy.load(f"step-{snapshot.step}"), snapshot)


def test_parameters_views_and_strides_are_stored_contiguous(roomy, same):
    parameter = torch.nn.Parameter(torch.randn(4, 6))
    tensors = {"whole": parameter, "row": parameter[1], "turned": parameter.T, "repeated": torch.ones(1).expand(3)}
    saver = Saver(roomy)
    saver.submit(Snapshot(1, {"model": tensors}, {}))
    saver.close()
    plain = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    assert same(roomy.load("last"), Snapshot(1, {"model": plain}, {}))


def out_of_space(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_error_is_raised_by_the_next_submit(roomy, make, same):
    roomy.save(make(1))
    saver = Saver(roomy)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(os, "rename", out_of_space)
        saver.submit(make(2))
        with pytest.raises(CheckpointError, match="No space left on device"):
            saver.submit(make(3))
    saver.submit(make(4))
    saver.close()
    assert roomy.list() == (1, 4)
    assert same(roomy.load("last"), make(4))


def test_error_is_raised_by_close_only_once(roomy, make, monkeypatch):
    monkeypatch.setattr(os, "write", out_of_space)
    saver = Saver(roomy)
    saver.submit(make(1))
    with pytest.raises(CheckpointError, match="No space left on device"):
        saver.close()
    saver.close()


@pytest.mark.gpu
def test_tensors_on_a_device_are_copied_before_submit_returns(roomy, make, same):
    saver = Saver(roomy)
    for step in (1, 2):
        snapshot = make(step)
        moved = {file: {n: t.cuda() for n, t in tensors.items()} for file, tensors in snapshot.tensors.items()}
        on_device = Snapshot(step, moved, snapshot.documents)
        saver.submit(on_device)
        zero_tensors(on_device)
    saver.close()
    assert same(roomy.load("step-1"), make(1))
    assert same(roomy.load("step-2"), make(2))
