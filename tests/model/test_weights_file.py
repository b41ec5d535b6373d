import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.model.weights_file import load_weights_file

WEIGHTS = {"fc.weight": torch.arange(6.0).reshape(2, 3), "fc.bias": torch.ones(2, dtype=torch.bfloat16)}
STEPS = {"state": {0: {"exp_avg": torch.ones(3), "step": torch.tensor(1.0)}}, "param_groups": [{"lr": 0.1}]}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> None:
    assert list(actual) == sorted(actual, key=list(expected).index)
    assert set(actual) == set(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype
        assert torch.equal(actual[name], tensor)


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_weights_file(str(path))
    assert caught.value.messages == (str(caught.value),)
    return str(caught.value)


def test_files_of_torch(tmp_path: Path) -> None:
    for suffix, legacy in (("pth", False), ("pt", True), ("bin", False), ("ckpt", True)):
        file = tmp_path / f"x.{suffix}"
        torch.save(WEIGHTS, file, _use_new_zipfile_serialization=not legacy)
        assert_same(load_weights_file(str(file)))


def test_safetensors_files_are_recognized_by_content(tmp_path: Path) -> None:
    for name in ["x.safetensors", "x.bin"]:
        save_file(WEIGHTS, tmp_path / name)
        assert_same(dict(sorted(load_weights_file(str(tmp_path / name)).items(), reverse=True)))


def test_the_weights_are_found_in_any_mapping(tmp_path: Path) -> None:
    contents: list[Any] = [
        OrderedDict(WEIGHTS),
        {**WEIGHTS, "epoch": 3},
        {"state_dict": WEIGHTS, "optimizer": STEPS, "epoch": 3, "rng_state": torch.zeros(4, dtype=torch.uint8)},
        {"model": {"state_dict": WEIGHTS}, "ema": {"fc.weight": torch.zeros(2, 3)}, "best": 0.9},
        {"state_dict": WEIGHTS, "loss": {"t": torch.ones(1)}},
        {"net": WEIGHTS, "optimizer_state_dict": {"flat": {"m": torch.ones(3)}}, "lr_scheduler": {"x": torch.ones(1)}},
        {"module": {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}},
        {"generator": WEIGHTS, "epoch": 1},
        {"generator": WEIGHTS, "optimizer": STEPS | {"flat": {"m": torch.ones(3)}}, "rng": {"cpu": torch.ones(3)}},
        {f"module._orig_mod.{name}": tensor for name, tensor in WEIGHTS.items()},
        {f"_orig_mod.module.{name}": tensor for name, tensor in WEIGHTS.items()},
    ]
    for content in contents:
        torch.save(content, tmp_path / "x.pth")
        assert_same(load_weights_file(str(tmp_path / "x.pth")))


def test_a_prefix_of_only_some_names_is_kept(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(weights, tmp_path / "x.pth")
    assert_same(load_weights_file(str(tmp_path / "x.pth")), weights)


def test_parameters_are_detached(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "x.pth")
    assert not any(tensor.requires_grad for tensor in load_weights_file(str(tmp_path / "x.pth")).values())


def test_several_sets_of_weights_are_rejected(tmp_path: Path) -> None:
    torch.save({"generator": WEIGHTS, "critic": {"net": WEIGHTS, "aux": WEIGHTS}}, tmp_path / "x.pth")
    assert_same(load_weights_file(str(tmp_path / "x.pth")))
    torch.save({"generator": WEIGHTS, "critic": WEIGHTS}, tmp_path / "x.pth")
    assert "several sets of weights (generator, critic), got " in error_of(tmp_path / "x.pth")


class TestFolders:
    def test_safetensors(self, tmp_path: Path) -> None:
        for name in ("model/model.safetensors", "model.safetensors"):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            save_file(WEIGHTS, tmp_path / name)
            torch.save({"other": torch.ones(1)}, tmp_path / "optimizer.pt")
            (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True, exist_ok=True)
            assert set(load_weights_file(str(tmp_path))) == set(WEIGHTS)

    def test_torch(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
        assert_same(load_weights_file(str(tmp_path)))

    @pytest.mark.parametrize("suffix", ["safetensors", "bin"])
    def test_shards(self, suffix: str, tmp_path: Path) -> None:
        stem = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
        files = {}
        for number, (name, tensor) in enumerate(WEIGHTS.items()):
            files[name] = f"part-{number}.{suffix}"
            save = save_file if suffix == "safetensors" else torch.save
            save({name: tensor}, tmp_path / files[name])
        index = tmp_path / f"{stem}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": files}))

        assert_same(load_weights_file(str(tmp_path)))
        assert_same(load_weights_file(str(index)))
        (tmp_path / files["fc.bias"]).unlink()
        assert f"weights: refers to 'part-1.{suffix}', " in error_of(tmp_path)

    def test_an_index_cannot_refer_to_other_folders(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "secret.bin")
        (tmp_path / "model").mkdir()
        index = tmp_path / "model" / "pytorch_model.bin.index.json"
        for name in ("../secret.bin", "/etc/passwd"):
            index.write_text(json.dumps({"weight_map": {"fc.bias": name}}))
            assert f"refers to {name!r}, " in error_of(index.parent)

    def test_an_invalid_index_is_rejected(self, tmp_path: Path) -> None:
        for text in ("{", "[]", "{}", '{"weight_map": [1]}'):
            (tmp_path / "model.safetensors.index.json").write_text(text)
            assert "weight_map" in error_of(tmp_path)

    def test_a_run_without_final_weights_suggests_its_newest_checkpoint(self, tmp_path: Path) -> None:
        for step in (20, 100):
            (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        newest = tmp_path / "checkpoints" / "step-00000100"
        assert str(newest) in error_of(tmp_path)

    def test_a_folder_without_weights(self, tmp_path: Path) -> None:
        assert "is a folder without weights" in error_of(tmp_path)


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-the-file",)


class TestInvalidFiles:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        assert error_of(tmp_path / "x.pth").startswith(f"weights: no such file, got '{tmp_path}/x.pth'.")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_is_reported_and_not_run(self, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "x.pth"
        torch.save({"w": torch.ones(1), "c": Command()}, file, _use_new_zipfile_serialization=not legacy)
        assert "weights: contains code (posix.mkdir)" in error_of(file)
        assert not (tmp_path / "made-by-the-file").exists()

        torch.save(nn.Linear(2, 2), file, _use_new_zipfile_serialization=not legacy)
        message = error_of(file)
        assert "contains code (torch.nn.modules.linear.Linear)" in message
        assert (
            f"convert it in Python: c = torch.load({str(file)!r}, weights_only=False), which runs its code" in message
        )

    def test_a_truncated_name_is_not_reported_as_code(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
        data = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(data[: data.index(b"torch._utils") + 9])
        assert "is truncated or damaged" in error_of(tmp_path / "x.pth")

    def test_other_pickle_protocols_are_rejected(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "x.pth", pickle_protocol=4)
        assert "pickle protocol" in error_of(tmp_path / "x.pth")

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
    def test_a_torchscript_program(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "x.pt")
        assert "is a TorchScript program, got" in error_of(tmp_path / "x.pt")

    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
    def test_truncated_files(self, form: str, tmp_path: Path) -> None:
        file = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
        if form == "safetensors":
            save_file(WEIGHTS, file)
        else:
            torch.save(WEIGHTS, file, _use_new_zipfile_serialization=form == "zip")
        data = file.read_bytes()
        # A legacy file starts with names, and truncating a name gives another name.
        first = data.rindex(b"\x80\x02]") if form == "legacy" else 64 if form == "zip" else 1
        for end in range(first, len(data), 7):
            file.write_bytes(data[:end])
            message = error_of(file)
            assert ("is truncated," if form == "safetensors" else "is truncated or damaged,") in message, end

    @given(data=st.binary(max_size=200))
    def test_random_bytes_are_rejected(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = tmp_path_factory.mktemp("bytes") / "x.pth"
        for head in (b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            file.write_bytes(head + data)
            assert error_of(file).startswith("weights: ")
        file.with_suffix(".safetensors").write_bytes(data)
        assert error_of(file.with_suffix(".safetensors")).startswith("weights: ")

    def test_other_files(self, tmp_path: Path) -> None:
        cases = (
            (b"", "is an empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a Git LFS pointer"),
            (b"some text", "is not a weights file"),
            (b"\xff\xd8\xff\xe0" + bytes(200), "is not a weights file"),
            (pickle.dumps({"a": 1}), "is not a weights file"),
        )
        for content, problem in cases:
            (tmp_path / "x.bin").write_bytes(content)
            assert f"weights: {problem}" in error_of(tmp_path / "x.bin")

    def test_another_zip_file(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
            archive.writestr("readme.txt", "x")
        assert "is truncated or damaged" in error_of(tmp_path / "x.bin")

    def test_files_without_weights(self, tmp_path: Path) -> None:
        contents: list[Any] = [3, [torch.ones(1)], {"epoch": 3}, {"optimizer": STEPS}, {0: torch.ones(1)}]
        for content in contents:
            torch.save(content, tmp_path / "x.pth")
            assert "contains no named tensors" in error_of(tmp_path / "x.pth")
