"""A save whose n-th file operation fails, for every n: it says so, and what was there before stays whole."""

import errno
import io
import itertools
import os
import re
import shutil
import threading

import pytest

from trainer.checkpoint.manifest import verify
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError

WRITING = ("open", "write", "fsync", "close", "rename", "mkdir", "unlink", "rmdir")
READING = ("listdir", "scandir", "stat", "lstat")


class Fault:
    """The n-th of the named operations, counted over all threads, fails once."""

    def __init__(self, monkeypatch, operations, code, at):
        self.reached = 0
        self._lock = threading.Lock()
        for module, name in operations:
            monkeypatch.setattr(module, name, self._failing(name, getattr(module, name), code, at))

    def _failing(self, name, real, code, at):
        def operation(*args, **kwargs):
            with self._lock:
                self.reached += 1
                fails = self.reached == at
            if not fails:
                return real(*args, **kwargs)
            if name == "close":  # closes all the same, as the system does
                real(*args, **kwargs)
            raise OSError(code, os.strerror(code))

        return operation


@pytest.fixture
def base(tmp_path, make):
    store = Store(tmp_path / "base", keep=2)
    for step, score in ((10, 0.9), (20, 0.1), (30, 0.2)):
        store.save(make(step, score))
    assert store.list() == (10, 20, 30)
    return tmp_path / "base"


def assert_unharmed(folder, make, same, new):
    """Every checkpoint that is listed is whole; the best and two more are there, the newest old one among them."""
    store = Store(folder, keep=2)
    scores = {10: 0.9, 20: 0.1, 30: 0.2}
    steps = store.list()
    assert {10, 30} <= set(steps)
    assert {20, new} & set(steps)
    for step in steps:
        assert verify(store.path(step)) == []
        found = store.load(f"step-{step}")
        assert same(found, make(step, scores.get(step))) or (step == new and same(found, make(new, 0.3)))
    assert store.load("best").step == 10
    return store


# Of the many operations each fast case tries every 23rd, starting at another one; the slow case tries all.
@pytest.mark.parametrize(
    ("code", "start", "stride"),
    [
        pytest.param(code, start, stride, id=f"{errno.errorcode[code]}-{'all' if stride == 1 else 'some'}", marks=marks)
        for first, code in enumerate([errno.ENOSPC, errno.EIO, errno.EACCES], start=1)
        for start, stride, marks in ((7 * first, 23, ()), (1, 1, pytest.mark.slow))
    ],
)
@pytest.mark.parametrize("new", [40, 30], ids=["new", "replaced"])
@pytest.mark.parametrize("kind", ["writing", "reading"])
def test_an_operation_failing_once(base, tmp_path, make, same, code, start, stride, new, kind, figure):
    operations = [(os, name) for name in (WRITING if kind == "writing" else READING)]
    if kind == "reading":
        operations.append((io, "open"))
    for at in itertools.count(start, stride):
        folder = tmp_path / "trial"
        shutil.copytree(base, folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fault = Fault(monkeypatch, operations, code, at)
            message = saving(Store(folder, keep=2), make(new, 0.3))
        if fault.reached < at:
            break
        # A fault while old ones are read may be survived: nothing is given up then. One while writing never is.
        assert message or kind == "reading"
        if message:
            assert re.match(rf"{re.escape(str(folder))}\S*: cannot be .+: {os.strerror(code)}\.", message)
        store = assert_unharmed(folder, make, same, new)
        store.save(make(50))
        assert all(path.name.startswith("step-") for path in folder.iterdir())
        assert store.load("last").step == 50
        shutil.rmtree(folder)
    assert at > 25
    assert message is None
    tried = (at - start) // stride
    figure("file operations of a save made to fail, earlier checkpoints unharmed", tried, tried)


def saving(store, snapshot):
    """The message of the error that a save ends with."""
    try:
        store.save(snapshot)
    except CheckpointError as error:
        return str(error)


def test_the_unfinished_folder_is_removed_when_the_device_is_full(base, monkeypatch, make):
    before = sorted(base.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=r"\.tmp-step-00000040/\S+: cannot be written: No space left on device"):
        Store(base, keep=2).save(make(40))
    assert sorted(base.iterdir()) == before


def test_short_writes(tmp_path, monkeypatch, make, same):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: max(1, len(data) // 2)]))
    store = Store(tmp_path, keep=2)
    store.save(make(1))
    assert same(store.load("last"), make(1))


def test_an_unreadable_store(base, monkeypatch, make):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        Store(base, keep=2).load("last")


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json"])
def test_nothing_is_given_up_while_an_old_one_cannot_be_read(base, monkeypatch, make, caplog, name):
    unreadable = base / "step-00000010" / name
    really_open = io.open

    def opening(path, *args, **kwargs):
        if path == unreadable:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return really_open(path, *args, **kwargs)

    store = Store(base, keep=2)
    with monkeypatch.context() as patch:
        patch.setattr(io, "open", opening)
        store.save(make(40))
    assert store.list() == (10, 20, 30, 40)
    assert [record.getMessage() for record in caplog.records] == [
        f"{base}: {name} cannot be read: Input/output error. No older checkpoint is given up."
    ]
    store.save(make(50))
    assert store.list() == (10, 40, 50)
    assert store.load("best").step == 10
