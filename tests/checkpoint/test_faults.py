"""Saves whose n-th file operation fails, for every n: the save reports it and earlier checkpoints stay intact."""

import errno
import io
import itertools
import os
import re
import shutil

import pytest

from tests.support.faults import SCORES, WRITING, Fault, assert_unharmed
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError

READING = [(os, name) for name in ("listdir", "scandir", "stat", "lstat")] + [(io, "open")]


@pytest.fixture
def base(tmp_path, make):
    store = Store(tmp_path / "base", keep=2)
    for step, score in SCORES.items():
        store.save(make(step, score))
    assert store.list() == (10, 20, 30)
    return tmp_path / "base"


# Each fast case tries every 23rd operation from a different start; the slow case tries all.
@pytest.mark.parametrize(
    ("code", "start", "stride"),
    [
        pytest.param(code, start, stride, id=f"{errno.errorcode[code]}-{'all' if stride == 1 else 'some'}", marks=marks)
        for first, code in enumerate([errno.ENOSPC, errno.EIO, errno.EACCES], start=1)
        for start, stride, marks in ((7 * first, 23, ()), (1, 1, pytest.mark.slow))
    ],
)
@pytest.mark.parametrize("new", [40, 30], ids=["new", "replaced"])
@pytest.mark.parametrize("operation_type", ["writing", "reading"])
def test_one_failing_file_operation_harms_no_earlier_checkpoint(
    base, tmp_path, make, same, code, start, stride, new, operation_type, figure
):
    operations = WRITING if operation_type == "writing" else READING
    for at in itertools.count(start, stride):
        folder = tmp_path / "trial"
        shutil.copytree(base, folder)
        with pytest.MonkeyPatch.context() as monkeypatch:
            fault = Fault(monkeypatch, operations, code, at)
            message = saving(Store(folder, keep=2), make(new, 0.3))
        if fault.reached < at:
            break
        # A fault while reading old checkpoints may be tolerated (nothing is deleted); a fault while writing may not.
        assert message or operation_type == "reading"
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
    """Return the message of the error that ends a save, None without one."""
    try:
        store.save(snapshot)
    except CheckpointError as error:
        return str(error)


def test_full_device_leaves_no_unfinished_folder(base, monkeypatch, make):
    before = sorted(base.iterdir())

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(CheckpointError, match=r"\.tmp-step-00000040/\S+: cannot be written: No space left on device"):
        Store(base, keep=2).save(make(40))
    assert sorted(base.iterdir()) == before


def test_short_writes_are_continued(tmp_path, monkeypatch, make, same):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: max(1, len(data) // 2)]))
    store = Store(tmp_path, keep=2)
    store.save(make(1))
    assert same(store.load("last"), make(1))


def test_unreadable_store_is_an_error(base, monkeypatch, make):
    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "scandir", denied)  # Python 3.13 lists a folder with it
    with pytest.raises(CheckpointError, match="cannot be read: Permission denied"):
        Store(base, keep=2).load("last")


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json"])
def test_nothing_is_deleted_while_an_old_checkpoint_is_unreadable(base, monkeypatch, make, caplog, name):
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
        f"{base}: {name} cannot be read: Input/output error. Keeping all older checkpoints."
    ]
    store.save(make(50))
    assert store.list() == (10, 40, 50)
    assert store.load("best").step == 10
