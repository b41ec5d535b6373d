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


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor] = WEIGHTS) -> None:
    assert list(found) == sorted(found, key=list(expected).index)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_weights_file(str(path))
    assert caught.value.messages == (str(caught.value),)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin", "ckpt"])
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch(legacy: bool, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"x.{suffix}"
    torch.save(WEIGHTS, file, _use_new_zipfile_serialization=not legacy)
    assert_same(load_weights_file(str(file)))


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin"])
def test_a_safetensors_file_is_known_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / name)
    assert_same(dict(sorted(load_weights_file(str(tmp_path / name)).items(), reverse=True)))


@pytest.mark.parametrize(
    "content",
    [
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
    ],
)
def test_the_mapping_of_tensors_is_found(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert_same(load_weights_file(str(tmp_path / "x.pth")))


def test_a_prefix_that_not_all_names_have_stays(tmp_path: Path) -> None:
    weights = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(weights, tmp_path / "x.pth")
    assert_same(load_weights_file(str(tmp_path / "x.pth")), weights)


def test_parameters_come_without_their_gradients(tmp_path: Path) -> None:
    torch.save(dict(nn.Linear(2, 2).named_parameters()), tmp_path / "x.pth")
    assert not any(tensor.requires_grad for tensor in load_weights_file(str(tmp_path / "x.pth")).values())


def test_several_sets_of_weights_are_named(tmp_path: Path) -> None:
    torch.save({"generator": WEIGHTS, "critic": {"net": WEIGHTS, "aux": WEIGHTS}}, tmp_path / "x.pth")
    assert_same(load_weights_file(str(tmp_path / "x.pth")))
    torch.save({"generator": WEIGHTS, "critic": WEIGHTS}, tmp_path / "x.pth")
    assert "holds several sets of weights (generator, critic), got " in refusal(tmp_path / "x.pth")


class TestFolders:
    @pytest.mark.parametrize("name", ["model.safetensors", "model/model.safetensors"])
    def test_safetensors(self, name: str, tmp_path: Path) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "checkpoints" / "step-00000001").mkdir(parents=True)
        save_file(WEIGHTS, tmp_path / name)
        torch.save({"other": torch.ones(1)}, tmp_path / "optimizer.pt")
        assert set(load_weights_file(str(tmp_path))) == set(WEIGHTS)

    def test_torch(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "pytorch_model.bin")
        assert_same(load_weights_file(str(tmp_path)))

    @pytest.mark.parametrize("kind", ["safetensors", "bin"])
    @pytest.mark.parametrize("whole", [True, False])
    def test_shards(self, kind: str, whole: bool, tmp_path: Path) -> None:
        stem = "model.safetensors" if kind == "safetensors" else "pytorch_model.bin"
        places = {}
        for number, (name, tensor) in enumerate(WEIGHTS.items()):
            places[name] = f"part-{number}.{kind}"
            save = save_file if kind == "safetensors" else torch.save
            save({name: tensor}, tmp_path / places[name])
        index = tmp_path / f"{stem}.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": places}))

        assert_same(load_weights_file(str(tmp_path if whole else index)))

        (tmp_path / places["fc.bias"]).unlink()
        assert f"weights: names 'part-1.{kind}', which is not beside it, got '{index}'." in refusal(tmp_path)

    @pytest.mark.parametrize("name", ["../secret.bin", "/etc/passwd"])
    def test_an_index_names_files_beside_it_alone(self, name: str, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "secret.bin")
        (tmp_path / "model").mkdir()
        index = tmp_path / "model" / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": {"fc.bias": name}}))
        assert f"names {name!r}, which is not beside it, got '{index}'" in refusal(index.parent)

    @pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": [1]}'])
    def test_an_index_that_is_none(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors.index.json").write_text(text)
        assert "is no index of weights: it has no weight_map" in refusal(tmp_path)

    def test_a_run_without_final_weights_names_its_newest_checkpoint(self, tmp_path: Path) -> None:
        for step in (20, 100):
            (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
        newest = tmp_path / "checkpoints" / "step-00000100"
        assert f"no final weights, got '{tmp_path}'. It has a checkpoint: {newest}." in refusal(tmp_path)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        assert "is a folder without weights" in refusal(tmp_path)


class Command:
    def __reduce__(self) -> Any:
        return os.mkdir, ("made-by-the-file",)


class TestRefusals:
    def test_no_file(self, tmp_path: Path) -> None:
        message = refusal(tmp_path / "x.pth")
        assert message.startswith(f"weights: there is no such file, got '{tmp_path}/x.pth'. Give a file of weights")

    @pytest.mark.parametrize("legacy", [False, True])
    def test_code_is_named_and_not_run(self, legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        file = tmp_path / "x.pth"
        torch.save({"w": torch.ones(1), "c": Command()}, file, _use_new_zipfile_serialization=not legacy)
        assert "weights: holds code (posix.mkdir) beside tensors, which is not run here" in refusal(file)
        assert not (tmp_path / "made-by-the-file").exists()

        torch.save(nn.Linear(2, 2), file, _use_new_zipfile_serialization=not legacy)
        message = refusal(file)
        assert "holds code (torch.nn.modules.linear.Linear)" in message
        assert (
            f"convert it in Python: c = torch.load({str(file)!r}, weights_only=False), which runs its code" in message
        )

    def test_a_name_that_is_cut_is_no_code(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
        data = (tmp_path / "x.pth").read_bytes()
        (tmp_path / "x.pth").write_bytes(data[: data.index(b"torch._utils") + 9])
        assert "is truncated or damaged" in refusal(tmp_path / "x.pth")

    def test_another_protocol_of_pickle(self, tmp_path: Path) -> None:
        torch.save(WEIGHTS, tmp_path / "x.pth", pickle_protocol=4)
        assert "is of a protocol of pickle that is not read without running code" in refusal(tmp_path / "x.pth")

    @pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
    def test_a_program(self, tmp_path: Path) -> None:
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "x.pt")
        assert "is a TorchScript program, got" in refusal(tmp_path / "x.pt")

    @pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
    def test_what_is_cut(self, form: str, tmp_path: Path) -> None:
        file = tmp_path / ("x.safetensors" if form == "safetensors" else "x.pth")
        if form == "safetensors":
            save_file(WEIGHTS, file)
        else:
            torch.save(WEIGHTS, file, _use_new_zipfile_serialization=form == "zip")
        data = file.read_bytes()
        # Within the names that a legacy file starts with, a cut makes another name.
        first = data.rindex(b"\x80\x02]") if form == "legacy" else 64 if form == "zip" else 1
        for end in range(first, len(data), 7):
            file.write_bytes(data[:end])
            message = refusal(file)
            assert ("is truncated," if form == "safetensors" else "is truncated or damaged,") in message, end

    @given(data=st.binary(max_size=200))
    def test_any_bytes_are_refused(self, data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
        file = tmp_path_factory.mktemp("bytes") / "x.pth"
        for head in (b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."):
            file.write_bytes(head + data)
            assert refusal(file).startswith("weights: ")
        file.with_suffix(".safetensors").write_bytes(data)
        assert refusal(file.with_suffix(".safetensors")).startswith("weights: ")

    @pytest.mark.parametrize(
        ("content", "problem"),
        [
            (b"", "is an empty file"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "is a pointer of Git LFS"),
            (b"some text", "is no file of weights"),
            (b"\xff\xd8\xff\xe0" + bytes(200), "is no file of weights"),
            (pickle.dumps({"a": 1}), "is no file of weights"),
        ],
    )
    def test_other_files(self, content: bytes, problem: str, tmp_path: Path) -> None:
        (tmp_path / "x.bin").write_bytes(content)
        assert f"weights: {problem}" in refusal(tmp_path / "x.bin")

    def test_a_zip_of_something_else(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x.bin", "w") as archive:
            archive.writestr("readme.txt", "x")
        assert "is truncated or damaged" in refusal(tmp_path / "x.bin")

    @pytest.mark.parametrize("content", [3, [torch.ones(1)], {"epoch": 3}, {"optimizer": STEPS}, {0: torch.ones(1)}])
    def test_no_weights(self, content: Any, tmp_path: Path) -> None:
        torch.save(content, tmp_path / "x.pth")
        assert "holds no tensors by name" in refusal(tmp_path / "x.pth")
