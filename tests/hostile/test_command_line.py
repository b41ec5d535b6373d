"""Command lines and config files that no one means: exit code 2 and a message, before anything is loaded or run."""

from itertools import pairwise
from pathlib import Path

import pytest

from trainer.cli import main

DEEP = "[" * 200 + "1" + "]" * 200

CASES: list[tuple[list[str], str]] = [
    ([f"{'a' * 300}=1"], f"{'a' * 300}: unknown key"),
    ([f"run.name={'a' * 300}"], "run.name: must have at most 200 bytes"),
    ([f"loss={'a' * 300}"], "loss: unknown option"),
    (["data=files", f"data.train={'a' * 300}"], "data.train: must not have a name of more than 255 bytes"),
    ([f"resume={'é' * 200}"], "resume: must not have a name of more than 255 bytes"),
    ([f"model.weights={'a' * 300}"], "model.weights: must not have a name of more than 255 bytes"),
    *(
        ([f"{key}={'a/' * 3000}"], f"{key}: must not be a path of more than 3072 bytes")
        for key in ("resume", "run.dir", "run.cwd", "model.weights", "task.tokenizer")
    ),
    *(
        (words, "path: is too long, got ")
        for words in (
            [f"loss._target_={'a' * 300}.B"],
            [f"data._target_=trainer.{'a' * 300}.B"],
            ["--config-path", "a" * 300],
            [f"hydra.searchpath=[pkg://conf.{'a' * 300}]"],
            [f"hydra.searchpath=[file://{'a' * 300}]"],
        )
    ),
    ([f"hydra/launcher={'a' * 300}"], "hydra/launcher: must be the name of an option"),
    (["decode=sample"], "decode: unknown key, got 'sample'."),
    (["hydra/launcher=[[1],[2]]"], "hydra/launcher: must be the name of an option, got [[1], [2]]"),
    (["hydra/launcher={a:1}"], "hydra/launcher: must be the name of an option"),
    (["hydra.searchpath=1"], "hydra.searchpath: must be a list of folders, got 1"),
    (["hydra.sweeper=1"], "hydra.sweeper: must be a mapping, got 1."),
    (["++hydra=true"], "hydra: must be a mapping, got true."),
    (["hydra.launcher=null"], "hydra.launcher: must be a mapping, got null."),
    (["hydra.launcher._target_=os.getcwd"], "hydra.launcher._target_: must be a class of a plugin of Hydra"),
    (["hydra.run.dir=/dev/zero"], "hydra.run.dir: cannot be a folder, as a file is in its place"),
    (["hydra.sweep.dir=/dev/zero/a/b"], "hydra.sweep.dir: cannot be a folder, as a file is in its place"),
    (["--config-name", "a" * 300], "The config cannot be composed ([Errno 36] File name too long"),
    (["hydra.verbose=[[1]]"], "hydra.verbose: must be true, false or names of loggers"),
    (["hydra.run.dir=[1]"], "Error merging override hydra.run.dir=[1]"),
    (["hydra.job.env_set=abc"], "Error merging override hydra.job.env_set=abc"),
    ([f"seed={'1' * 5000}"], "seed: cannot be read (Exceeds the limit (4300 digits)"),
    ([f"seed={'1' * 4000}"], "seed: must be at least 0 and less than 2 ** 64"),
    ([f"optimizer.lr={'9' * 400}"], "optimizer.lr: must be a number or auto"),
    ([f"model.freeze={DEEP}"], "model.freeze: is nested "),
    ([f"model.freeze={'{a:' * 100}1{'}' * 100}"], "model.freeze: is nested more than 40 levels deep"),
    ([f"model.freeze=json_str('{'[' * 3000}{']' * 3000}')"], "syntax error at the mark"),
    (["seed=sort(a,1)"], "seed=sort(a,1): syntax error at the mark"),
    (["seed=[a,'${'']"], "seed=[a,'${'']: "),
    (["model.freeze=['${','a']"], "model.freeze: has an interpolation that cannot be read"),
    (["devices=18446744073709551616"], "devices: must be at most "),
    (["loader.workers=100000"], "loader.workers: must be between 0 and 256, got 100000."),
    (["seed=int(x)"], "seed=int(x): "),
    (["++loss._partial_=true"], "loss._partial_: has no effect on trainer.loss.cross_entropy.CrossEntropy"),
    (["++loss._convert_=1.5"], "loss._convert_: has no effect on trainer.loss.cross_entropy.CrossEntropy"),
    (["++task._args_=[1]"], "task._args_: has no effect"),
    (["scheduler._partial_=abc"], "scheduler._partial_: must be true, got 'abc'"),
    (["scheduler._partial_=false"], "scheduler._partial_: must be true, got false"),
    (["loss._target_=torch.nn.MSELoss", "++loss._partial_=true"], "loss._partial_: must be false"),
    (["loss._target_=torch.nn.MSELoss", "++loss._convert_=1.5"], "loss._convert_: must be one of none, partial"),
    (["loss._target_=torch.nn.MSELoss", "++loss._recursive_=no"], "loss._recursive_: must be true or false"),
    (["loss._target_=torch.nn.MSELoss", "++loss._args_=3"], "loss._args_: must be a list"),
    (["model.freeze._target_=1"], "model.freeze._target_: model.freeze is a value and has no keys"),
    (["run.cwd=/dev/zero"], "run.cwd: is a pipe, a socket or a device, not a folder, got '/dev/zero'"),
    (["run.name=a\0b"], "run.name: contains a NUL character, got 'a\\x00b'. Leave it out."),
    (["\0"], "\\u0000: contains a NUL character"),
    (["run.name=a\udc80"], "run.name: is not UTF-8, got 'a\\udc80'. Encode it as UTF-8."),
    (["--config-dir", "a\0"], "contains a NUL character"),
    (["\x1b[31mx=1"], "\\u001b[31mx=1: syntax error at the mark"),
    (["seed=1" * 30_000], "syntax error"),
    (["a" * 200_000], "is neither an override nor a flag"),
    (["--shell-completion"], "--shell-completion: needs a shell"),
    (["--shell-completion", "query=tcsh"], "--shell-completion: needs a shell"),
    (["--cfg", "job", "--info"], "--cfg --info: exclude each other. Keep one."),
    (["--cfg", "job", "--package", "model.nowhere"], "package 'model.nowhere' not found in config"),
    (["--experimental-rerun", "x.pickle"], "--experimental-rerun: loads a pickle, which can run any code"),
    (["--config-name", "../" * 100], "Cannot find primary config"),
    (["data=files", "data.train='https://me:hunter2@host/x?token=hunter2'"], "got 'https://***@host/x?token=***'"),
    (["+logger.api_key=hunter2"], "logger.api_key: unknown key, got ***."),
    (["logger={api_key: hunter2}"], "logger.api_key: unknown key, got ***."),
    (["logger.api_key='hunter2"], "syntax error at the mark"),
]


@pytest.mark.parametrize(
    ("words", "message"), CASES, ids=[words[0][:30].encode("unicode_escape").decode() for words, _ in CASES]
)
def test_exit_code_2_with_a_message(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code = main(["plan", "trial=false", *words])
    output = capsys.readouterr()
    assert (code, output.out) == (6 if "data=files" in words and "255" not in message else 2, "")
    assert message in output.err
    assert "Traceback" not in output.err
    assert "hunter2" not in output.err
    assert len(output.err) < 3000
    assert list(tmp_path.iterdir()) == []


LETTERS = "abcdefghi"
ALIASES = "a: &a [1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join(['*' + before] * 8)}]\n" for before, after in pairwise(LETTERS)
)
"""Nine lines that stand for 8 ** 9 values."""

FILES = {
    "integer": ("seed: " + "1" * 5000, "cannot be read as YAML (Exceeds the limit (4300 digits)"),
    "deep": (f"trust: {DEEP}", "is nested more than 40 levels deep"),
    "deeper": (f"trust: {'[' * 1_000_000}", "is nested more than 40 levels deep"),
    "cycle": ("trust: &a [*a]", "has more than 100000 values"),
    "aliases": (ALIASES, "has more than 100000 values"),
    "nul": ('run: {name: "a\\0b"}', "run.name: contains a NUL character"),
    "surrogate": ('run: {name: "a\\ud800b"}', "cannot be read as YAML"),
    "code": ("seed: !!python/object/apply:os.getcwd []", "cannot be read as YAML"),
    "key": ("? [a, b]\n: 1", "cannot be read as YAML"),
    "partial": ("scheduler: {_partial_: abc}", "scheduler._partial_: must be true, got 'abc'."),
    "convert": ("loss: {_convert_: 1.5}", "loss._convert_: has no effect"),
    "secret": ("logger: {api_key: hunter2}", "logger.api_key: unknown key, got ***."),
}


@pytest.mark.parametrize("name", FILES)
def test_config_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content, message = FILES[name]
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / f"conf/experiment/{name}.yaml").write_text(f"# @package _global_\n{content}\n")
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "trial=false", f"experiment={name}"]) == 2
    output = capsys.readouterr().err
    assert message in output
    assert "hunter2" not in output
