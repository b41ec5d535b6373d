"""Numbers in a stored config cannot make a verb use more memory or time than the tensors of the checkpoint justify."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.hostile_files import reseal
from tests.support.jobs import train, working_in, write_data
from trainer.checkpoint.manifest import DamagedError
from trainer.checkpoint.tensors import StoredTensors, encode
from trainer.cli import main
from trainer.task.images import Images

HUGE = 10**12
ALLOWANCE = 3 * 2**30
"""Bytes of address space that a refusal may need."""

NATIVE = {"_target_": "torch.nn.Transformer", "d_model": 1, "nhead": 1, "num_decoder_layers": 1}
LINEAR = {"_target_": "torch.nn.Linear", "in_features": 10**6, "out_features": 10**6}
SOFTMAX = {"ignore_index": -100, "in_features": HUGE}
BERT = {"model_type": "bert", "vocab_size": 100, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 8}
WIDE = {"model_type": "gpt2", "vocab_size": 300, "n_embd": 8, "n_head": 1, "n_layer": 1, "n_positions": 10**7}
PRETRAINED: dict[str, Any] = {
    "_target_": "trainer.model.pretrained.Pretrained",
    "path": "library",
    "config": {},
    "pooling": "mean",
    "attention": None,
    "gradient_checkpointing": False,
    "pretrained": True,
}

SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "width": {"model": {"dim": HUGE}},
    "width beyond 64 bits": {"model": {"dim": 10**30}},
    "layers": {"model": {"depth": HUGE}},
    "layers, each of them small": {"model": {"depth": 10**7}},
    "hidden width": {"model": {"hidden": 10**8}},
    "positions": {"task": {"max_length": HUGE}},
    "positions below the largest number": {"task": {"max_length": 10**7}},
    "rank of adapters": {"model": {"lora": {"rank": 10**8}}},
    "layer of torch": {"model": LINEAR},
    "copied layers of torch": {"model": NATIVE | {"num_encoder_layers": 10**7}},
    "window of torch": {"model": {"_target_": "torch.nn.AvgPool1d", "kernel_size": HUGE}},
    "loss of torch": {"loss": LINEAR},
    "copied layers of a loss": {"loss": NATIVE | {"num_encoder_layers": 10**7}},
    "tree of classes": {"loss": {"_target_": "trainer.loss.hierarchical_softmax.HierarchicalSoftmax", **SOFTMAX}},
    "layers of a library": {"architecture": BERT | {"num_hidden_layers": 10**7}},
    "width of a library": {"architecture": BERT | {"num_hidden_layers": 1, "intermediate_size": HUGE}},
    "positions of a library": {"architecture": BERT | {"num_hidden_layers": 1, "max_position_embeddings": 10**7}},
    "positions of a decoder of a library": {"architecture": WIDE},
    "nonsense of a library": {"architecture": BERT | {"num_hidden_layers": {"a": [None]}}},
    "list of layers of a library": {"architecture": {"model_type": "modernbert", "num_hidden_layers": HUGE}},
    "queue of workers": {"loader": {"workers": 1, "prefetch": HUGE}},
}

TYPICAL = [
    "width beyond 64 bits",
    "layers, each of them small",
    "positions below the largest number",
    "rank of adapters",
    "window of torch",
    "copied layers of a loss",
    "tree of classes",
    "layers of a library",
    "positions of a decoder of a library",
    "queue of workers",
]
"""A size of each cause; `make test-all` tries all sizes with every verb."""

VERBS = {
    "predict": ["run=changed", "input=a hammer", "device=cpu"],
    "eval": ["run=changed", "device=cpu"],
    "export": ["run=changed", "export.formats=[torchscript]"],
    "verify": ["run=changed", "device=cpu"],
    "train": ["resume=changed", "train.duration=3", "device=cpu"],
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("sizes")
    with working_in(folder):
        assert train(folder / "run", *write_data(folder), "train.duration=2", "checkpoint.every=1") == 0
        yield folder / "run"


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Let this process have only a little more address space than it has now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ALLOWANCE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def write_changed(run: Path, changes: dict[str, dict[str, Any]]) -> None:
    """Write the copy `changed` of a run with other values in every config of it, inside fitting checksums."""
    copy = run.parent / "changed"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    for file in (copy / "config.yaml", *copy.glob("checkpoints/*/config.yaml")):
        config = yaml.safe_load(file.read_text("utf-8"))
        for group, values in changes.items():
            if group == "architecture":
                config["model"] = PRETRAINED
                document = {"class": "AutoModel", "config": values}
                (file.parent / "model.json").write_text(json.dumps(document), encoding="utf-8")
                add_to_manifest(file.parent, "model.json")
            else:
                config[group] = values if "_target_" in values else config[group] | values
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        reseal(file)


def add_to_manifest(folder: Path, name: str) -> None:
    manifest = folder / "MANIFEST.json"
    if manifest.is_file():
        fields = json.loads(manifest.read_text("utf-8"))
        fields["files"][name] = {"size": 0, "crc32": "00000000"}
        manifest.write_text(json.dumps(fields), encoding="utf-8")


@pytest.mark.usefixtures("little_memory")
@pytest.mark.parametrize(
    ("name", "verbs"),
    [
        *[(name, [[*VERBS][[*SIZES].index(name) % len(VERBS)]]) for name in TYPICAL],
        *[pytest.param(name, [*VERBS], marks=pytest.mark.slow) for name in SIZES],
    ],
)
def test_sizes(name: str, verbs: list[str], run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_changed(run, SIZES[name])
    for verb in verbs:
        code = main([verb, *VERBS[verb]])
        lines = capfd.readouterr().err.splitlines()
        if verb in ("predict", "export") and SIZES[name].keys() == {"loss"}:  # they do not build a loss without weights
            assert (code, lines) == (0, [])
            continue
        assert code == 3, (verb, code, lines)
        error = re.sub(r"^\S+/config\.yaml: ", "", lines[-1])
        assert error.startswith((*SIZES[name], "task.", "model", "optimizer", "the checkpoint's")), (verb, error)
        reasons = (
            "stored weights",
            "the checkpoint stores",
            "the checkpoint has other parameters",
            "weights do not fit the model",
            "cannot be rebuilt",
            "1024",
        )
        assert any(reason in error for reason in reasons), (verb, error)


@pytest.mark.usefixtures("little_memory")
def test_sizes_of_a_teacher(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_changed(run, SIZES["layers"])
    student = ["loss=kl_distillation", "loss.teacher=changed", *write_data(run.parent), "train.duration=2"]
    assert train(run.parent / "student", *student) == 3
    assert "model.depth: is too large" in capfd.readouterr().err


def test_tensors_of_an_optimizer(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The kernels of torch would write beyond a tensor that is smaller than its parameter."""
    write_changed(run, {})
    for file in run.parent.glob("changed/checkpoints/*/optimizer.safetensors"):
        tensors = StoredTensors([file])
        small = {name: torch.zeros(1) if name.endswith("exp_avg") else tensors[name] for name in tensors}
        file.write_bytes(b"".join(encode(small)))
        reseal(file)
    assert main(["train", *VERBS["train"]]) == 3
    assert "/exp_avg: has the shape [1], but its parameter has [" in capfd.readouterr().err


def test_tensors_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A small file could otherwise claim a million tensors of the file's own size."""
    data = b"".join(encode({"a": torch.zeros(8), "b": torch.ones(8)}))
    (tmp_path / "honest.safetensors").write_bytes(data)
    assert StoredTensors([tmp_path / "honest.safetensors"]).count_values() == 16
    (tmp_path / "shared.safetensors").write_bytes(data.replace(b"[32,64]", b"[0,32] "))
    with pytest.raises(DamagedError, match="do not follow each other"):
        StoredTensors([tmp_path / "shared.safetensors"])


@pytest.mark.parametrize(("size", "channels"), [([10**6, 10**6], 3), ([8, 8], 10**9), ([0, 8], 1)])
def test_sizes_of_images(size: list[int], channels: int) -> None:
    images = Images("auto", "auto", "stretch", "auto", "auto", {})
    images.load_state_dict({"images": {"size": [8, 8], "channels": 1, "mean": [0.5], "std": [1.0]}})
    with pytest.raises(ValueError, match="not possible"):
        images.load_state_dict({"images": {"size": size, "channels": channels, "mean": [0.5], "std": [1.0]}})
