"""Saving, choosing, loading and deleting checkpoints."""

import logging
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest

from trainer.checkpoint.listing import ListedCheckpoint, find_newest_intact, rank_by_score
from trainer.checkpoint.manifest import find_faults, read_document
from trainer.checkpoint.snapshot import Snapshot, load_folder
from trainer.checkpoint.store import Store
from trainer.errors import CheckpointError, ConfigError
from trainer.state import Score, TrainState


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_save_and_load_round_trip(folder, make, same):
    store = Store(folder, keep=2)
    path = store.save(make(930, 0.5))
    assert path == folder / "step-00000930"
    assert names(path) == [
        "MANIFEST.json",
        "config.yaml",
        "ema.safetensors",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    assert find_faults(path) == []
    for which in ("last", "best", "step-930", "step-00000930"):
        assert same(store.load(which), make(930, 0.5))
        assert store.find(which) == path
    assert same(load_folder(path), make(930, 0.5))


def test_copied_checkpoint_with_another_name_loads(folder, tmp_path, make, same):
    path = Store(folder, keep=2).save(make(3))
    shutil.copytree(path, tmp_path / "copy")
    assert same(load_folder(tmp_path / "copy"), make(3))


def test_loaded_tensors_are_writable_and_do_not_alias_the_file(folder, make, same):
    store = Store(folder, keep=2)
    store.save(make(3))
    store.load("last").tensors["model"]["linear.weight"].zero_()
    assert same(store.load("last"), make(3))


@pytest.mark.parametrize("keep", [1, 0, -1])
def test_keep_below_two_is_refused(folder, keep):
    with pytest.raises(ConfigError, match=f"keep: must be at least 2, got {keep}"):
        Store(folder, keep)


def test_newest_checkpoints_are_kept(folder, make):
    store = Store(folder, keep=2)
    for step in range(1, 7):
        store.save(make(step))
    assert store.list() == (5, 6)
    assert names(folder) == ["step-00000005", "step-00000006"]


@pytest.mark.parametrize(("higher", "best"), [(True, 2), (False, 4)])
def test_best_is_kept_and_ties_go_to_the_earliest(folder, make, higher, best):
    store = Store(folder, keep=2)
    for step, score in enumerate([0.5, 0.9, 0.9, 0.1, 0.1, None, 0.3, None], start=1):
        store.save(make(step, score, higher=higher))
    assert store.list() == (best, 7, 8)
    assert store.load("best").step == best
    assert store.load("last").step == 8


@pytest.mark.parametrize(("losses", "best"), [([0.3, 0.4, 0.2, 0.2], 3), ([None] * 4, 2)])
def test_ties_go_to_the_checkpoint_that_the_run_calls_best(losses, best):
    state, newest_first = TrainState(), []
    for step, (value, loss) in enumerate(zip([0.5, 0.9, 0.9, 0.9], losses, strict=True), 1):
        state.step = step
        score = Score("accuracy", value, higher_is_better=True, weights="raw", loss=loss)
        state.record(score)
        newest_first.insert(0, ListedCheckpoint(step, Path(), step, asdict(score), None))
    assert rank_by_score(newest_first)[0].step == state.best_step == best


def test_scores_of_an_earlier_metric_are_ignored(folder, make):
    store = Store(folder, keep=3)
    store.save(make(1, 100.0, name="perplexity", higher=False))
    store.save(make(2, 0.5))
    store.save(make(3, 0.4))
    assert store.load("best").step == 2


def test_nan_score_is_never_the_best(folder, make):
    store = Store(folder, keep=2)
    store.save(make(1, 0.1))
    store.save(make(2, float("nan")))
    assert store.load("best").step == 1


def test_protected_steps_are_kept(folder, make):
    store = Store(folder, keep=2)
    for step in range(1, 6):
        store.save(make(step), protect=[1])
    assert store.list() == (1, 4, 5)
    store.save(make(6))
    assert store.list() == (5, 6)


def test_last_is_the_checkpoint_saved_last_even_if_its_step_is_lower(folder, make, same):
    """A run resumed from an earlier step leaves checkpoints of later steps behind."""
    store = Store(folder, keep=3)
    for step in (100, 200, 300):
        store.save(make(step))
    resumed = Store(folder, keep=3)
    resumed.save(make(110))
    assert resumed.load("last").step == 110
    assert resumed.list() == (110, 200, 300)
    resumed.save(make(120))
    resumed.save(make(130))
    assert resumed.list() == (110, 120, 130)


def test_saving_the_same_step_replaces_it(folder, make, same):
    store = Store(folder, keep=2)
    store.save(make(1))
    store.save(make(2, 0.1))
    store.save(make(3))
    store.save(make(2, 0.7))
    assert same(store.load("last"), make(2, 0.7))
    assert store.list() == (2, 3)
    assert names(folder) == ["step-00000002", "step-00000003"]


def test_replacement_interrupted_between_its_renames_loses_nothing(folder, make, same):
    store = Store(folder, keep=2)
    path = store.save(make(5))
    path.rename(folder / ".old-step-00000005")
    shutil.copytree(folder / ".old-step-00000005", folder / ".tmp-step-00000005")
    assert store.list() == (5,)
    assert same(store.load("last"), make(5))
    assert same(store.load("step-5"), make(5))
    store.save(make(6))
    assert names(folder) == ["step-00000005", "step-00000006"]


def test_leftovers_of_a_killed_process_are_removed(folder, make):
    store = Store(folder, keep=2)
    path = store.save(make(1))
    for left in (".tmp-step-00000009", ".trash-step-00000008", ".old-step-00000001", ".trash-.old-step-00000001"):
        shutil.copytree(path, folder / left)
    (folder / "notes.txt").write_text("mine")
    assert store.list() == (1,)
    store.save(make(2))
    assert names(folder) == ["notes.txt", "step-00000001", "step-00000002"]


def test_damaged_checkpoints_do_not_count_as_kept(folder, make):
    store = Store(folder, keep=2)
    for step in (1, 2, 3):
        store.save(make(step))
    flip_a_bit(folder / "step-00000003" / "model.safetensors")
    store.save(make(4))
    assert store.list() == (2, 3, 4)
    assert find_faults(folder / "step-00000002") == []
    Store(folder, keep=2).save(make(5))
    assert store.list() == (4, 5)


def test_damaged_best_is_replaced_by_the_next_best(folder, make, caplog):
    store = Store(folder, keep=4)
    for step, score in enumerate([0.9, 0.8, 0.1, 0.0], start=1):
        store.save(make(step, score))
    flip_a_bit(folder / "step-00000001" / "ema.safetensors")
    assert store.load("best").step == 2
    flip_a_bit(folder / "step-00000002" / "state.json")
    caplog.clear()
    assert store.load("best").step == 3
    assert [re.search(r"step-0000000\d", record.getMessage())[0] for record in caplog.records] == [
        "step-00000002",
        "step-00000001",
    ]
    Store(folder, keep=2).save(make(5))
    assert store.list() == (3, 4, 5)


def test_damaged_newest_is_skipped_with_a_warning(folder, make, same, caplog):
    store = Store(folder, keep=2)
    store.save(make(1))
    store.save(make(2))
    flip_a_bit(folder / "step-00000002" / "optimizer.safetensors")
    with caplog.at_level(logging.WARNING):
        assert same(store.load("last"), make(1))
        assert store.find("last") == folder / "step-00000001"
    message = caplog.records[0].getMessage()
    assert str(folder / "step-00000002") in message
    assert re.search(r"optimizer\.safetensors has checksum [0-9a-f]{8} instead of [0-9a-f]{8}", message)
    assert "\n" not in message


def test_damaged_step_named_by_the_user_is_an_error(folder, make):
    store = Store(folder, keep=2)
    store.save(make(1))
    store.save(make(2))
    (folder / "step-00000002" / "model.safetensors").unlink()
    for load in (lambda: store.load("step-2"), lambda: load_folder(folder / "step-00000002")):
        with pytest.raises(CheckpointError, match=r"step-00000002: is damaged: model.safetensors is missing\. \w+"):
            load()
    with pytest.raises(
        CheckpointError,
        match=r"Existing steps: 1, 2. The newest intact one is checkpoint=last",
    ):
        store.find("step-2")


def test_error_if_every_checkpoint_is_damaged(folder, make):
    store = Store(folder, keep=2)
    for step in (1, 2):
        flip_a_bit(store.save(make(step)) / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"checkpoints: contains no intact checkpoint. Existing steps: 1, 2"):
        store.load("last")


def test_errors_without_a_matching_checkpoint(folder, make, tmp_path):
    store = Store(folder, keep=2)
    assert store.list() == ()
    with pytest.raises(
        CheckpointError, match=re.escape(f"{folder}: contains no intact checkpoint. Existing steps: none")
    ):
        store.load("last")
    store.save(make(3))
    with pytest.raises(CheckpointError, match="no intact checkpoint with a score"):
        store.load("best")
    with pytest.raises(CheckpointError, match=r"step-00000007: no such checkpoint. Existing steps: 3"):
        store.load("step-7")
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"checkpoint: unknown, got 'newest'. Allowed: best, last, step-N"):
        store.load("newest")


def test_single_document_is_read(folder, make):
    path = Store(folder, keep=2).save(make(3))
    assert read_document(path, "config.yaml") == "seed: 3\nname: Übung\n"
    assert read_document(path, "task.json") is None


def test_snapshot_without_tensors(folder, same):
    store = Store(folder, keep=2)
    store.save(Snapshot(0, {"optimizer": {}}, {}))
    assert same(store.load("last"), Snapshot(0, {"optimizer": {}}, {}))


def test_newest_intact_checkpoint_below_a_step(folder, make):
    store = Store(folder, keep=9)
    for step in (10, 20, 30, 15):  # a run resumed from an earlier step
        store.save(make(step))
    (store.path(20) / "state.json").write_text("{}")

    def step_below(below):
        checkpoint = find_newest_intact(folder, below=below)
        return None if checkpoint is None else checkpoint.step

    assert [step_below(below) for below in (None, 31, 16, 15, 10)] == [15, 15, 15, 10, None]
    (store.path(15) / "model.safetensors").unlink()
    assert [step_below(below) for below in (None, 30)] == [30, 10]
    assert find_newest_intact(folder / "absent") is None
