"""The options of `decode=`: they match the strategies' parameters, and invalid values are reported without torch."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config.command import check_command
from trainer.config.help import verb_help
from trainer.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "decode"
OPTIONS = ("beam", "beam_sample", "greedy", "sample")


@pytest.fixture(autouse=True)
def _other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(*overrides: str) -> Any:
    single = check_command("generate", overrides).single
    assert single is not None
    return single.job


def test_each_option_sets_every_parameter_of_its_strategy() -> None:
    assert sorted(file.stem for file in CONF.glob("*.yaml")) == sorted(OPTIONS)
    for option in OPTIONS:
        content = yaml.safe_load((CONF / f"{option}.yaml").read_text(encoding="utf-8"))
        module, _, name = content.pop("_target_").rpartition(".")
        assert {*content} == {*inspect.signature(getattr(import_module(module), name)).parameters}
        assert job_of(f"decode={option}").decode.items() >= content.items()


def test_help_shows_every_key_of_an_option() -> None:
    for option in ["greedy", "beam_sample"]:
        whole, chosen = verb_help("generate", []), verb_help("generate", [f"decode={option}"])
        _, *blocks = re.split("\n *decode=", whole)
        shown = "".join(block for block in blocks if block.startswith(("greedy:", f"{option} also has\n")))
        keys = {key for key in job_of(f"decode={option}").decode if not key.startswith("_")}

        assert keys == {*re.findall(r"decode\.(\w+): ", shown)} == {*re.findall(r"decode\.(\w+): ", chosen)}


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["decode.max_new_tokens=0"], "decode.max_new_tokens", "0"),
        (["decode.max_new_tokens=many"], "decode.max_new_tokens", "many"),
        (["decode.min_new_tokens=9", "decode.max_new_tokens=8"], "decode.min_new_tokens", "8"),
        (["decode=beam", "decode.num_return=5"], "decode.num_return", "5"),
        (["decode=beam", "decode.early_stopping=nevr"], "decode.early_stopping", "never"),
        (["decode=sample", "decode.temperature=0"], "decode.temperature", "0"),
        (["decode=sample", "decode.top_p=1.5"], "decode.top_p", "1.5"),
        (["decode=sample", "decode.top_k=-1"], "decode.top_k", "-1"),
        (["decode.repetition_penalty=0"], "decode.repetition_penalty", "0"),
        (["decode.temperature=2"], "decode.temperature", "beam_sample"),
        (["decode.stop=['']"], "decode.stop", "empty"),
        (["decode.stop=end"], "decode.stop", "list"),
        (["decode=bean"], "decode", "beam"),
        (["explain=0"], "explain", "0"),
        (["backend=onnx", "precision=bf16"], "precision", "bf16"),
        (["backend=onnx", "device=cuda"], "device", "cuda"),
        (["backend=tf"], "backend", "tf"),
    ],
)
def test_invalid_values_are_rejected(overrides: list[str], key: str, value: str) -> None:
    with pytest.raises(ConfigError) as error:
        job_of(*overrides)
    assert key in str(error.value)
    assert value in str(error.value)


def test_prompt_is_taken_literally() -> None:
    cases: list[Any] = [
        "Hello, world (x): [1] {a}",
        'don\'t say "no"',
        "a\\'b",
        "${oc.env:HOME} $y",
        "42",
        "a=b",
        "line\nbreak",
        " lead ",
        "'",
        "true",
    ]
    for text in cases:
        assert job_of(f"prompt={text}").prompt == text


def test_quoted_and_null_prompts_follow_hydra() -> None:
    assert job_of("prompt='a, b'").prompt == "a, b"
    assert job_of("prompt=null").prompt is None
    assert job_of().prompt is None
