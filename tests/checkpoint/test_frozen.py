"""Frozen weights are on the disk once, and every checkpoint is complete without the others."""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support.jobs import assert_resumes, train, working_in, write_data
from trainer.checkpoint.manifest import find_faults
from trainer.checkpoint.saver import Saver
from trainer.checkpoint.snapshot import Snapshot, load_folder, write_snapshot
from trainer.checkpoint.store import Store
from trainer.checkpoint.tensors import StoredTensors, is_equal
from trainer.cli import main
from trainer.model.finetuning import is_frozen, mark_frozen

STEPS = 6
OPTIONS = {
    "adapters": ["model.lora={rank:2}", "ema.decay=0.9"],
    "frozen": ["model.freeze=['*embedding*',blocks]", "ema.decay=0.9"],
    "no average": ["model.freeze=['*embedding*',blocks]", "ema.decay=null"],
    "unfreezing": ["model.freeze=['*embedding*',{match: 'blocks.*', until: 4}]", "ema.decay=0.9"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("frozen")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "checkpoint.every=1", f"checkpoint.keep={STEPS}"]


@pytest.fixture(scope="module")
def run(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "run"
    assert train(folder, *data, *OPTIONS["adapters"]) == 0
    return folder


def frozen_files(run: Path) -> list[Path]:
    return sorted(run.glob("checkpoints/step-*/frozen.safetensors"))


def with_frozen(snapshot: Snapshot, frozen: dict[str, torch.Tensor]) -> Snapshot:
    """Return a snapshot whose model and average also have frozen weights."""
    tensors = {**snapshot.tensors, **{name: {**snapshot.tensors[name], **frozen} for name in ("model", "ema")}}
    return replace(snapshot, tensors=tensors, frozen=dict.fromkeys(("model", "ema"), frozenset(frozen)))


@pytest.mark.parametrize("name", OPTIONS)
def test_frozen_weights_are_stored_twice_and_the_run_resumes_in_the_same_bytes(
    name: str, data: list[str], tmp_path: Path
) -> None:
    assert train(tmp_path / "run", *data, *OPTIONS[name]) == 0
    files = frozen_files(tmp_path / "run")
    assert len(files) == STEPS
    assert len({file.stat().st_ino for file in files[::2]}) == len({file.stat().st_ino for file in files[1::2]}) == 1
    assert files[0].stat().st_ino != files[1].stat().st_ino
    frozen, model = set(StoredTensors([files[0]])), set(StoredTensors([files[0].with_name("model.safetensors")]))
    assert not frozen & model
    assert "token_embedding.weight" in frozen
    assert {name.startswith("blocks.") for name in model} == {name in ("adapters", "unfreezing"), False}
    if name != "no average":
        assert not frozen & set(StoredTensors([files[0].with_name("ema.safetensors")]))
        snapshot = load_folder(files[0].parent)
        assert snapshot.tensors["ema"].keys() == snapshot.tensors["model"].keys()
    assert_resumes(tmp_path / "run", 3)
    assert len({file.stat().st_ino for file in frozen_files(tmp_path / "run-resumed-3")[1::2]}) == 1


def test_without_frozen_weights_nothing_changes(data: list[str], tmp_path: Path) -> None:
    late = "model.freeze=[{match: 'blocks.*', until: 4}]"
    assert train(tmp_path / "run", *data, late, "train.duration=2") == 0
    assert frozen_files(tmp_path / "run") == []


def test_a_copied_checkpoint_is_complete(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = tmp_path / "copy/checkpoints/step-00000006"
    shutil.copytree(run / "checkpoints/step-00000006", copy)
    for weights in ("raw", "ema"):
        assert main(["eval", f"run={copy.parent.parent}", "checkpoint=last", f"weights={weights}"]) == 0
    assert main(["verify", f"run={run}"]) == 0
    assert "bitwise equal" in capsys.readouterr().out


def test_initial_weights_come_from_the_folder_of_a_checkpoint(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "first", *data, "model.freeze=[norm]", "train.duration=1") == 0
    folder = tmp_path / "first/checkpoints/step-00000001"
    frozen = ["model.freeze=['[!h]*']", "train.duration=1"]
    assert train(tmp_path / "next", *data, *frozen, f"model.weights={folder}") == 0
    loaded = load_folder(tmp_path / "next/checkpoints/step-00000001").named_tensors("model")
    expected = load_folder(folder).named_tensors("model")
    assert "norm.weight" in expected
    assert all(torch.equal(loaded[name], expected[name]) for name in expected if not name.startswith("head"))
    # One of the files means the whole checkpoint, in its folder or copied with the other file.
    copied = tmp_path / "copied"
    copied.mkdir()
    for name in ("model.safetensors", "frozen.safetensors"):
        shutil.copyfile(folder / name, copied / name)
    for number, place in enumerate((folder, copied)):
        run = tmp_path / f"file-{number}"
        assert train(run, *data, *frozen, f"model.weights={place}/model.safetensors") == 0
        again = load_folder(run / "checkpoints/step-00000001").named_tensors("model")
        assert all(torch.equal(again[name], loaded[name]) for name in loaded)


def test_a_run_of_the_old_layout_resumes_in_the_same_bytes(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for step in range(1, 4):
        folder = copy / f"checkpoints/step-{step:08d}"
        snapshot = load_folder(folder)
        shutil.rmtree(folder)
        write_snapshot(folder, snapshot, step)
        assert not (folder / "frozen.safetensors").exists()
    assert_resumes(copy, 3)


def test_damage_of_the_shared_file_is_reported_with_its_name(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    for file in frozen_files(copy):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    for verb in ("eval", "verify"):
        assert main([verb, f"run={copy}"]) == 3
        printed = capsys.readouterr()
        assert "frozen.safetensors has checksum" in printed.out + printed.err + caplog.text
        caplog.clear()
    assert main(["eval", f"run={copy}", "checkpoint=step-6"]) == 3
    assert "frozen.safetensors has checksum" in capsys.readouterr().err


def test_damage_of_one_file_leaves_the_checkpoint_before(
    data: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tmp_path / "run", *data, *OPTIONS["adapters"]) == 0
    with frozen_files(tmp_path / "run")[-1].open("r+b") as file:  # in place, so in every checkpoint that shares it
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert main(["train", f"resume={tmp_path / 'run'}"]) == 0
    assert "skipping the damaged checkpoint" in caplog.text
    assert find_faults(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}") == []


def test_deleting_old_checkpoints_keeps_the_others_complete(folder, make, same) -> None:
    frozen = {"base": torch.arange(6.0)}
    store = Store(folder, keep=2)
    for step in range(1, 5):
        store.save(with_frozen(make(step), frozen))
    assert store.list() == (3, 4)
    for step in (3, 4):
        assert find_faults(store.path(step)) == []
        for on_demand in (False, True):
            assert same(store.load(f"step-{step}", on_demand=on_demand), with_frozen(make(step), frozen))


def test_frozen_weights_that_change_after_all_are_written_again(folder, make, same) -> None:
    frozen = {"base": torch.arange(6.0)}
    store = Store(folder, keep=9)
    for step in range(1, 7):
        if step == 3:
            frozen["base"].add_(1)
        store.save(with_frozen(make(step), {"base": frozen["base"]}))
    inodes = [(store.path(step) / "frozen.safetensors").stat().st_ino for step in range(1, 7)]
    assert len(set(inodes)) == 4
    assert inodes[2:4] == inodes[4:6]
    for step in (1, 2):
        assert same(store.load(f"step-{step}"), with_frozen(make(step), {"base": torch.arange(6.0)}))
    assert same(store.load("last"), with_frozen(make(6), frozen))


def test_a_damaged_file_is_not_linked_again(folder, make, same) -> None:
    frozen = {"base": torch.arange(6.0)}
    store = Store(folder, keep=9)
    path = store.save(with_frozen(make(1), frozen))
    store.save(with_frozen(make(2), frozen))
    (path / "frozen.safetensors").write_bytes(b"")
    store.save(with_frozen(make(3), frozen))
    assert same(store.load("last"), with_frozen(make(3), frozen))


@pytest.mark.parametrize("error", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_a_file_system_without_links_gets_copies(folder, make, same, monkeypatch, error) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "link", refuse)
    frozen = {"base": torch.arange(6.0)}
    store = Store(folder, keep=9)
    paths = [store.save(with_frozen(make(step), frozen)) for step in (1, 2, 3)]
    assert len({(path / "frozen.safetensors").stat().st_ino for path in paths}) == 3
    assert same(store.load("last"), with_frozen(make(3), frozen))


def test_the_saver_shares_frozen_weights_and_copies_the_others(folder, make) -> None:
    snapshot = with_frozen(make(1), {"base": torch.arange(6.0)})
    received: list[Snapshot] = []

    class Recorder(Store):
        def save(self, snapshot: Snapshot, protect: object = ()) -> Path:
            received.append(snapshot)
            return super().save(snapshot)

    saver = Saver(Recorder(folder, keep=2))
    saver.submit(snapshot)
    saver.close()
    for name in ("model", "ema"):
        shared = {
            key
            for key, tensor in received[0].tensors[name].items()
            if tensor.data_ptr() == snapshot.tensors[name][key].data_ptr()
        }
        assert shared == {"base"}


def test_only_parameters_with_a_mark_are_frozen() -> None:
    # A model may change a parameter without a gradient itself, such as a momentum encoder does.
    layer = torch.nn.Linear(2, 2).requires_grad_(False)
    assert not is_frozen(layer.weight)
    mark_frozen([layer.weight])
    assert is_frozen(layer.weight)
    assert not is_frozen(layer.bias)
    assert not is_frozen(layer.weight.requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.uint8, torch.complex64])
def test_equal_tensors_are_equal_in_every_bit(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 2).to(dtype)
    assert is_equal(tensor, tensor.clone())
    assert is_equal(tensor[0, 0], tensor[1, 1])
    assert is_equal(tensor.t(), tensor.t().contiguous())
    assert not is_equal(tensor, tensor[:2])
    other = tensor.clone()
    other[2, 1] = 1 if dtype == torch.uint8 else -0.0
    assert not is_equal(tensor, other)


def test_an_average_with_other_bits_than_the_model_is_stored_itself(folder, make, same) -> None:
    snapshot = with_frozen(make(1), {"base": torch.tensor([-0.0, 1.0]), "norm": torch.ones(2)})
    averaged = {**snapshot.tensors["ema"], "base": torch.tensor([0.0, 1.0])}
    names = {"model": frozenset({"base", "norm"}), "ema": frozenset({"norm"})}
    snapshot = replace(snapshot, tensors={**snapshot.tensors, "ema": averaged}, frozen=names)
    path = Store(folder, keep=2).save(snapshot)
    for on_demand in (False, True):
        assert same(load_folder(path, on_demand=on_demand), snapshot)
