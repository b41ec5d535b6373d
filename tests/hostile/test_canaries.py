"""No file of a stranger runs code: each case plants code that would create a file, the canary."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.support.jobs import TINY, write_data
from tests.support.ranks import free_port
from trainer.cli import main
from trainer.config.command import check_command
from trainer.config.stored import config_text
from trainer.errors import ConfigError
from trainer.model.weights_file import load_weights_file

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary"
COMMANDS = (["predict", "a text"], ["eval"], ["export"], ["verify"], ["train"])

Change = Callable[[dict[str, Any]], Any]


class Trap:
    """Creates the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


def part(group: str, **keys: Any) -> Change:
    return lambda config: config.update({group: keys})


def inner(group: str, **keys: Any) -> Change:
    return lambda config: config[group].update(keys)


TARGETS: dict[str, dict[str, Any]] = {
    "os.mkdir": {"path": CANARY},
    "os.system": {"command": f"touch {CANARY}"},
    "subprocess.run": {"args": ["touch", CANARY]},
    "builtins.exec": {"_args_": [f"open({CANARY!r}, 'w')"]},
    "builtins.open": {"file": CANARY, "mode": "w"},
    "pathlib.Path.touch": {"_args_": [CANARY]},
    "runpy.run_path": {"path_name": "trap.py"},
    "pickle.load": {},
    "pandas.read_pickle": {"filepath_or_buffer": "trap.pkl"},
    "numpy.load": {"file": "trap.npy", "allow_pickle": True},
    "torch.load": {"f": "trap.pth", "weights_only": False},
    "torch.hub.load": {"repo_or_dir": ".", "model": "x", "source": "local"},
    "torch.nn.modules.module.torch.load": {"f": "trap.pth", "weights_only": False},
    "torch.optim.optimizer.torch.load": {"f": "trap.pth", "weights_only": False},
    "transformers.utils.os.mkdir": {"path": CANARY},
    "transformers.utils.hub.Path": {"_args_": [CANARY]},
    "transformers.AutoModel.from_pretrained": {"pretrained_model_name_or_path": ".", "trust_remote_code": True},
    "torchmetrics.multimodal.clip_score.CLIPScore": {"model_name_or_path": "."},
    "torchmetrics.text.bert.BERTScore": {"model_name_or_path": "."},
    "transformers.pipeline": {"model": ".", "trust_remote_code": True},
    "trainer.cli.main": {"argv": ["train", "resume=inner", "trust=[pandas]"]},
    "trainer.cli.import_module": {"name": "trap"},
    "trainer.files.atomic_io.remove_folder": {"folder": "victim"},
    "hydra.utils.instantiate": {"config": {"_target_": "os.mkdir", "path": CANARY}},
    "trap.Model": {},
}

CONFIGS: dict[str, Change] = {
    **{f"task {target}": part("task", _target_=target, **keys) for target, keys in TARGETS.items()},
    **{
        f"inside the model {target}": inner("model", x={"_target_": target, **keys}) for target, keys in TARGETS.items()
    },
    "in a list": inner("loss", weight=[{"_target_": "os.mkdir", "path": CANARY}]),
    "scheduler": part("scheduler", _target_="os.mkdir", _partial_=True, path=CANARY),
    "arguments": inner("loss", _args_=[{"_target_": "os.mkdir", "path": CANARY}]),
    "partial": inner("loss", _partial_=True),
    "convert": inner("loss", _convert_="object"),
    "recursive": inner("loss", _recursive_=True),
    "trust inside": lambda config: config.update(trust=["os"], loss={"_target_": "os.mkdir", "path": CANARY}),
    "interpolated target": lambda config: config.update(
        run={**config["run"], "name": "os.mkdir"}, loss={"_target_": "${run.name}", "path": CANARY}
    ),
    "environment": inner("data", cache="${oc.env:HOME}"),
    "environment with a default": inner("run", name="${oc.env:NOT_SET,x}"),
    "decoded": inner("run", name="${oc.decode:'{a: 1}'}"),
    "created": inner("run", name="${oc.create:{_target_: os.mkdir}}"),
    "resolver of Hydra": inner("run", name="${hydra:runtime.cwd}"),
}

TRAPPED: dict[str, Any] = {"_target_": "os.mkdir", "path": CANARY}
PRETRAINED: dict[str, Any] = {"_target_": "trainer.model.pretrained.Pretrained", "path": "library"}

HYDRA: dict[str, Change] = {
    "searchpath": lambda config: config.update(hydra={"searchpath": ["file://."]}),
    "launcher": lambda config: config.update(hydra={"launcher": TRAPPED}),
    "sweeper": lambda config: config.update(hydra={"sweeper": TRAPPED}),
    "callbacks": lambda config: config.update(hydra={"callbacks": {"trap": TRAPPED}}),
    "run.dir": lambda config: config.update(hydra={"run": {"dir": CANARY}}),
    "job.chdir": lambda config: config.update(hydra={"job": {"chdir": True}, "run": {"dir": CANARY}}),
    "output_subdir": lambda config: config.update(hydra={"output_subdir": CANARY}),
    "defaults": lambda config: config.update(defaults=[{"model": "trap"}]),
    "kernel of the hub": part("model", **PRETRAINED, attention="owner/kernel"),
    "remote code": part("model", **PRETRAINED, trust_remote_code=True),
}
"""Keys that Hydra or transformers would act on."""

PLANTED = {
    "own settings": ("config.yaml", f"hydra: {{callbacks: {{x: {{_target_: os.mkdir, path: {CANARY}}}}}}}\n"),
    "own launcher": ("launcher/basic.yaml", "_target_: trap.Model\n"),
    "own sweeper": ("sweeper/basic.yaml", "_target_: trap.Model\n"),
    "log of jobs": ("job_logging/default.yaml", f"formatters: {{x: {{(): os.mkdir, path: {CANARY}}}}}\n"),
    "log of Hydra": ("hydra_logging/default.yaml", f"formatters: {{x: {{(): os.mkdir, path: {CANARY}}}}}\n"),
    "callbacks": ("callbacks/default.yaml", f"x: {{_target_: os.mkdir, path: {CANARY}}}\n"),
    "output": ("output/runs.yaml", f"# @package _global_\nhydra: {{run: {{dir: {CANARY}}}}}\n"),
}
"""Files of a stranger's `conf/hydra`, and their texts."""

TEXTS = {
    "python/object/apply": f"model: !!python/object/apply:os.mkdir [{CANARY}]\n",
    "python/object/new": f"model: !!python/object/new:os.mkdir [{CANARY}]\n",
    "python/name": "model: !!python/name:os.mkdir\n",
    "python/module": "model: !!python/module:trap\n",
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stranger's folder with traps, which is the working directory; no canary exists afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "trap.py").write_text(f"import os\nos.mkdir({CANARY!r})\nclass Model: ...\n", encoding="utf-8")
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps(Trap()))
    torch.save(Trap(), tmp_path / "trap.pth")
    np.save(tmp_path / "trap.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "victim").mkdir()
    (tmp_path / "run").mkdir()
    yield tmp_path
    assert not (tmp_path / CANARY).exists(), "code of the stranger ran"
    assert (tmp_path / "victim").is_dir()


def refusal(number: int, folder: Path, text: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return exit code and message of one of the verbs, a different one for each case."""
    (folder / "run/config.yaml").write_text(text, encoding="utf-8")
    verb, *rest = COMMANDS[number % len(COMMANDS)]
    key = "resume" if verb == "train" else "run"
    return main([verb, *(f"input={value}" for value in rest), f"{key}=run"]), capsys.readouterr().err


def test_traps_work(folder: Path) -> None:
    def load_text() -> None:
        yaml.unsafe_load(TEXTS["python/object/apply"])

    def load_weights() -> None:
        torch.load(folder / "trap.pth", weights_only=False)

    for run_trap in (load_text, load_weights):
        run_trap()
        (folder / CANARY).rmdir()


def slow_unless(quick: Callable[[str], bool], names: Iterable[str]) -> list[Any]:
    """Return the parameters of a test; `make test` runs only the quick ones."""
    return [name if quick(name) else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", slow_unless(lambda name: "inside the model" not in name, CONFIGS))
def test_stored_configs(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = check_command("train", []).single
    assert single is not None
    config = deepcopy(single.config)
    CONFIGS[name](config)
    code, message = refusal([*CONFIGS].index(name), folder, config_text(config), capsys)
    assert (code, "Traceback" in message) == (3, False), message
    assert "a stored config may" in message or "may not contain another part" in message


@pytest.mark.parametrize("name", HYDRA)
def test_keys_that_libraries_would_act_on(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    single = check_command("train", []).single
    assert single is not None
    config = deepcopy(single.config)
    HYDRA[name](config)
    # `train` checks every key; the other verbs would stop at the missing checkpoint, whatever the config contains.
    code, message = refusal(COMMANDS.index(["train"]), folder, config_text(config), capsys)
    assert code in (2, 3), message
    assert message.removeprefix("run/config.yaml: ").startswith(("hydra", "defaults", "model.")), message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", PLANTED)
def test_hydra_folders(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the working directory takes the place of Hydra's own settings, or of our own options."""
    file, text = PLANTED[name]
    for place in ("conf/hydra", "hydra", ".hydra", "conf/.hydra"):
        path = folder / place / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for option in ("train", "eval", "model/text_encoder", "optimizer/adamw"):
        (folder / f"conf/{option}.yaml").parent.mkdir(exist_ok=True)
        (folder / f"conf/{option}.yaml").write_text(f"_target_: os.mkdir\npath: {CANARY}\n", encoding="utf-8")
    (folder / ".hydra/config.pickle").write_bytes((folder / "trap.pkl").read_bytes())
    is_refused = name.startswith("own")
    for command in (["train", "--cfg", "job"], ["train", "--info"], ["train", "-m", "seed=0,1", "optimizer.lr=-1"]):
        code, message = main(command), capsys.readouterr().err
        assert (f"conf/hydra/{file}: replaces a part of Hydra" in message) == is_refused, message
        assert code == (2 if is_refused or "-m" in command else 0), message
        assert not (folder / CANARY).exists(), command
    assert main(["train", "--experimental-rerun", ".hydra/config.pickle"]) == 2


def test_renamed_settings_of_hydra(folder: Path) -> None:
    """The remedy works."""
    path = folder / "conf/hydra/launcher/basic.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("_target_: hydra._internal.core_plugins.basic_launcher.BasicLauncher\n", encoding="utf-8")
    assert main(["train", "--cfg", "job"]) == 2
    path.rename(path.with_name("mine.yaml"))
    assert main(["train", "--cfg", "job", "hydra/launcher=mine"]) == 0


@pytest.mark.parametrize("name", TEXTS)
def test_yaml_tags(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(TEXTS[name])
    code, message = refusal([*TEXTS].index(name), folder, TEXTS[name], capsys)
    assert (code, "Traceback" in message) == (3, False), message


@pytest.mark.parametrize("suffix", ["pth", "pt", "pt2", "bin", "ckpt", "pkl", "safetensors", "npz", "npy", "onnx"])
@pytest.mark.parametrize("source", slow_unless(lambda name: name == "trap.pth", ["trap.pth", "trap.pkl", "trap.npy"]))
def test_weights_that_are_pickles(suffix: str, source: str, folder: Path) -> None:
    path = folder / f"weights.{suffix}"
    path.write_bytes((folder / source).read_bytes())
    with pytest.raises(ConfigError):
        load_weights_file(str(path))


@pytest.mark.slow
def test_modules_in_the_working_directory(folder: Path) -> None:
    names = ("torch", "jinja2", "numpy", "yaml", "hydra", "difflib", "rich", "transformers", "tensorflow", "accelerate")
    for name in names:
        (folder / f"{name}.py").write_bytes((folder / "trap.py").read_bytes())
    (folder / "hydra_plugins").mkdir()
    (folder / "hydra_plugins/trap.py").write_bytes((folder / "trap.py").read_bytes())
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    single = check_command("train", []).single
    assert single is not None
    (folder / "run/config.yaml").write_text(config_text(single.config), encoding="utf-8")
    for command in (["report", "run=run"], ["predict", "run=run", "input=a"], ["train", "resume=run"], ["plan", "x=1"]):
        line = [sys.executable, "-m", "trainer", *command]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 2, 3), done.stderr
        assert not (folder / CANARY).exists(), command


MODULES = ("torch", "numpy", "jinja2", "trainer", "multiprocessing", "yaml", "hydra", "safetensors", "rich")


def plant_modules(folder: Path) -> None:
    for name in MODULES:
        (folder / f"{name}.py").write_bytes((folder / "trap.py").read_bytes())


def test_processes_of_libraries_do_not_import_from_the_working_directory(folder: Path) -> None:
    """`multiprocessing` and `torch.compile` start their workers with `-c` and `-m`."""
    plant_modules(folder)
    assert main(["--version"]) == 0
    for options in (["-c", "import torch"], ["-m", "torch.version"]):
        done = subprocess.run([sys.executable, *options], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert not (folder / CANARY).exists(), options


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["trainer", "torchrun"])
def test_processes_do_not_import_from_the_working_directory(launcher: str, folder: Path) -> None:
    """Two processes with a loader worker each train in a folder of a stranger."""
    data = write_data(folder)
    plant_modules(folder)
    programs = Path(sys.executable).parent
    line = ["train", *TINY, *data, "run.dir=trained", "train.duration=2", "loader.workers=1"]
    command: list[str | Path] = [programs / "trainer", *line, "devices=2"]
    if launcher == "torchrun":
        port = f"--master-port={free_port()}"
        torchrun = [sys.executable, "-P", "-m", "torch.distributed.run", "--nproc-per-node=2", port]
        command = [*torchrun, "--no-python", programs / "trainer", *line]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, (folder / "trained/checkpoints").is_dir()) == (0, True), done.stderr
    assert not (folder / CANARY).exists()
