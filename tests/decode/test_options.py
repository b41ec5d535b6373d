"""The options of `decode=`: what they say is what their strategies take, and what they refuse is told without torch."""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.config.compose import compose
from trainer.config.help import verb_help
from trainer.config.lint import check_command
from trainer.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf" / "decode"
OPTIONS = sorted(file.stem for file in CONF.glob("*.yaml"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def job_of(*overrides: str) -> Any:
    plan = check_command("generate", overrides)
    job, _ = plan.job(*compose(plan.request.folder, plan.request.name, plan.hydra_argv), None)
    return job


def test_there_are_four() -> None:
    assert OPTIONS == ["beam", "beam_sample", "greedy", "sample"]


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_gives_every_setting_of_its_strategy(option: str) -> None:
    content = yaml.safe_load((CONF / f"{option}.yaml").read_text(encoding="utf-8"))
    module, _, name = content.pop("_target_").rpartition(".")
    assert {*content} == {*inspect.signature(getattr(import_module(module), name)).parameters}
    assert job_of(f"decode={option}").decode.items() >= content.items()


@pytest.mark.parametrize("option", OPTIONS)
def test_the_help_has_every_key_of_every_option(option: str) -> None:
    whole, chosen = verb_help("generate", []), verb_help("generate", [f"decode={option}"])
    _, *blocks = re.split("\n *decode=", whole)
    shown = "".join(block for block in blocks if block.startswith(("greedy:", f"{option} also has\n")))
    keys = {key for key in job_of(f"decode={option}").decode if not key.startswith("_")}

    assert keys == {*re.findall(r"decode\.(\w+): ", shown)} == {*re.findall(r"decode\.(\w+): ", chosen)}
    assert "trainer generate decode=beam --help shows the keys of that option" in chosen


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["decode.max_new_tokens=0"], "decode.max_new_tokens: must be at least 1, got 0"),
        (["decode.max_new_tokens=many"], "decode.max_new_tokens: must be an integer, got 'many'"),
        (["decode.min_new_tokens=9", "decode.max_new_tokens=8"], "decode.min_new_tokens: must not be above"),
        (["decode=beam", "decode.num_return=5"], "decode.num_return: must not be above decode.num_beams (4), got 5"),
        (["decode=beam", "decode.early_stopping=nevr"], "Did you mean never"),
        (["decode=sample", "decode.temperature=0"], "decode.temperature: must be finite and above 0, got 0"),
        (["decode=sample", "decode.top_p=1.5"], "decode.top_p: must be above 0 and at most 1, got 1.5"),
        (["decode=sample", "decode.top_k=-1"], "decode.top_k: must be at least 0, got -1"),
        (["decode.repetition_penalty=0"], "decode.repetition_penalty: must be finite and above 0, got 0"),
        (["decode.temperature=2"], "decode.temperature: there is no such key, got 2. decode=beam_sample has"),
        (["decode.stop=['']"], "decode.stop: holds an empty string"),
        (["decode.stop=end"], "decode.stop: must be a list"),
        (["decode=bean"], "Did you mean decode=beam"),
        (["explain=0"], "explain: must be at least 1, got 0"),
        (["backend=onnx", "precision=bf16"], "precision: is of PyTorch"),
        (["backend=onnx", "device=cuda"], "device: is of PyTorch"),
        (["backend=tf"], "backend: must be"),
    ],
)
def test_what_is_refused(overrides: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_command("generate", overrides)
    assert any(told in message for message in caught.value.messages), caught.value.messages


@pytest.mark.parametrize(
    "text",
    [
        "Hello, world (x): [1] {a}",
        'don\'t say "no"',
        "a\\",
        "a\\'b",
        "${oc.env:HOME} $y",
        "\\${x}",
        "42",
        "a=b",
        "line\nbreak",
        "日本, 語",
        " lead ",
        "'",
        "~x",
        "true",
    ],
)
def test_a_prompt_is_taken_as_it_is_written(text: str) -> None:
    assert job_of(f"prompt={text}").prompt == text


def test_a_quoted_prompt_is_hydras_and_null_is_none() -> None:
    assert job_of("prompt='a, b'").prompt == "a, b"
    assert job_of("prompt=null").prompt is None
    assert job_of().prompt is None
