import errno
import os
import re
from functools import partial
from pathlib import Path

import pytest
import torch

import trainer
from trainer.builders.device import set_determinism
from trainer.errors import ConfigError, did_you_mean, find_user_error, format_error, raise_if_any


def test_all_messages_are_raised_together() -> None:
    raise_if_any()
    raise_if_any(None, None)
    with pytest.raises(ConfigError) as caught:
        raise_if_any("a: is wrong.", None, "b: too.")

    assert caught.value.messages == ("a: is wrong.", "b: too.")
    assert str(caught.value) == "a: is wrong.\nb: too."


def test_message_has_key_problem_value_and_remedy() -> None:
    assert format_error("optimizer.lr", "must be above 0", value=-1) == "optimizer.lr: must be above 0, got -1."
    assert (
        format_error("data.text", "is no column", "Did you mean body") == "data.text: is no column. Did you mean body?"
    )
    assert format_error("run", "there is none", "Has it a name?", value=None).endswith("got null. Has it a name?")


def test_nearest_known_name_is_suggested() -> None:
    assert did_you_mean("adam", ["lamb", "adamw", "sgd"]) == "Did you mean adamw"
    assert did_you_mean("xyz", ["sgd", "lamb"]) == "Known: lamb, sgd"
    assert did_you_mean("xyz", []) == ""


def test_remedies_name_keys_with_their_group() -> None:
    """`Use threshold=null` cannot be typed: the key on the command line is task.threshold."""
    remedy = re.compile(r'"(?:Use|Set) (\w+)=')
    groups = {"backend", "checkpoint", "data", "decode", "device", "loss", "model", "optimizer", "precision", "resume"}
    top_level = groups | {
        "compile",
        "devices",
        "force",
        "perturb",
        "port",
        "scheduler",
        "shard",
        "split",
        "start",
        "task",
        "trial",
        "weights",
    }
    package = Path(trainer.__file__).parent
    keys = {
        (file.name, key)
        for file in package.rglob("*.py")
        for key in remedy.findall(file.read_text(encoding="utf-8"))
        if key not in top_level
    }

    assert not keys


def test_an_operation_that_is_not_deterministic_is_named_with_the_key(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    request.addfinalizer(partial(torch.use_deterministic_algorithms, False))
    benchmark = torch.backends.cudnn.benchmark
    request.addfinalizer(partial(setattr, torch.backends.cudnn, "benchmark", benchmark))
    index, values = torch.tensor([1, 1]), torch.ones(2)

    set_determinism(True, torch.device("cuda"))
    with pytest.raises(RuntimeError) as caught:
        torch.zeros(3).put_(index, values)
    error = find_user_error(caught.value)

    assert isinstance(error, ConfigError)
    assert error.messages == (
        "deterministic: must be false for an operation that is not deterministic on this device, got true "
        "(put_ of PyTorch). Set deterministic=false.",
    )
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"

    set_determinism(False, torch.device("cuda"))
    torch.zeros(3).put_(index, values)

    assert torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "Lower loader.eval_batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), "Lower loader"),
        (RuntimeError("could not create a primitive"), "Lower loader.eval_batch_size"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)), "ulimit -v"),
        (RuntimeError("can't start new thread"), "ulimit -v"),
    ],
    ids=str,
)
def test_too_little_memory_is_one_message_with_a_remedy(error: Exception, remedy: str) -> None:
    user_error = find_user_error(error)

    assert isinstance(user_error, ConfigError)
    assert user_error.messages[0].startswith("out of memory: ")
    assert remedy in user_error.messages[0]
    assert find_user_error(ImportError("no module named x")) is None


def test_a_workspace_of_cublas_that_is_not_deterministic_is_named() -> None:
    cause = RuntimeError("... this operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2 ...")
    wrapped = ValueError("while compiling")
    wrapped.__cause__ = cause

    assert "CUBLAS_WORKSPACE_CONFIG: this value" in str(find_user_error(wrapped))
