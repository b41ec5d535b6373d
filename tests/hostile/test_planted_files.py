"""Files that a stranger adds to a run run no code, lead nowhere else, and stay text on a page."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.hostile_files import reseal
from tests.support.jobs import TINY, train, working_in, write_data
from trainer.cli import main

CANARY = "canary"
MARKUP = '"><script>alert(1)</script><img src=x onerror=alert(1)>'
VERBS = [["predict", "input=a"], ["eval"], ["export"], ["verify"], ["train", "train.duration=3"], ["report"]]


class Trap:
    """Creates the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (CANARY,)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("planted")
    with working_in(folder):
        assert train(folder / "trained", *write_data(folder), "train.duration=1") == 0
        yield folder / "trained"


@pytest.fixture
def run(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the run for a stranger to change; no canary exists afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    copy = trained.parent / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(trained, copy)
    yield copy
    assert not (trained.parent / CANARY).exists(), "code of the stranger ran"


def checkpoint(run: Path) -> Path:
    return next((run / "checkpoints").glob("step-*"))


def add_to_manifest(folder: Path, name: str) -> None:
    manifest = json.loads((folder / "MANIFEST.json").read_text("utf-8"))
    manifest["files"][name] = {"size": 0, "crc32": "00000000"}
    (folder / "MANIFEST.json").write_text(json.dumps(manifest), encoding="utf-8")
    reseal(folder / "MANIFEST.json")


def exit_codes(run: Path, capfd: pytest.CaptureFixture[str]) -> list[int]:
    """Run every verb on a run; none may end with a traceback."""
    codes = []
    for verb, *rest in VERBS:
        codes.append(main([verb, f"{'resume' if verb == 'train' else 'run'}={run}", *rest]))
        error = capfd.readouterr().err
        assert "Traceback" not in error, (verb, error)
        assert not Path(CANARY).exists(), verb
    return codes


def plant_tokenizer(folder: Path) -> None:
    """Write a tokenizer and a model that name code in their folder."""
    code = f"import os\nos.mkdir({CANARY!r})\nclass Own: ...\n"
    for module in ("tokenizer", "tokenization_own", "modeling_own", "configuration_own"):
        (folder / f"{module}.py").write_text(code, encoding="utf-8")
    names = {"AutoConfig": "configuration_own.Own", "AutoModel": "modeling_own.Own"}
    tokenizer = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    documents = {
        "config.json": {"model_type": "own", "auto_map": names},
        "tokenizer_config.json": {"tokenizer_class": "Own", "auto_map": tokenizer, "trust_remote_code": True},
    }
    for name, document in documents.items():
        (folder / name).write_text(json.dumps(document), encoding="utf-8")


SLOW = [pytest.param(place, marks=pytest.mark.slow) for place in ("", "model", "export")]


@pytest.mark.parametrize("place", ["checkpoint", *SLOW])
def test_tokenizers_with_code(place: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = checkpoint(run) if place == "checkpoint" else run / place
    folder.mkdir(exist_ok=True)
    plant_tokenizer(folder)
    if place == "checkpoint":
        for file in ("tokenizer.py", "tokenizer_config.json"):
            add_to_manifest(folder, file)
    assert set(exit_codes(run, capfd)) <= {0, 2, 3}
    job = ["train", *TINY, "data=stdlib_docs", "loader.limit=40", "train.duration=1", "run.dir=other"]
    uses = (
        ["model=pretrained", f"model.path={folder}", "task.tokenizer=null"],
        [f"task.tokenizer={folder}"],
        [f"model.weights={folder}", "task.tokenizer=null"],
    )
    for use in uses:
        code = main([*(word for word in job if "pretrained" not in use[0] or not word.startswith("model.")), *use])
        assert code in (0, 2, 3), (use, code)  # a folder may have a tokenizer.json too, which is data
        assert "Traceback" not in capfd.readouterr().err, use


def write_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap()))


def write_torch(path: Path) -> None:
    torch.save({"head.weight": Trap()}, path)


def write_arrays(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, **{"head.weight": np.array([Trap()], dtype=object)})


WRITERS: dict[str, Callable[[Path], None]] = {"pickle": write_pickle, "torch": write_torch, "arrays": write_arrays}
SUFFIXES = ("bin", "pth", "pt", "pt2", "ckpt", "pickle", "pkl", "npz", "npy", "safetensors")


@pytest.mark.parametrize(
    "name", ["torch", *(pytest.param(name, marks=pytest.mark.slow) for name in ("pickle", "arrays"))]
)
def test_weights_with_code(name: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Weights of any suffix: in a checkpoint, next to its own, in the folders of artifacts, and as initial weights."""
    folder = checkpoint(run)
    for suffix in SUFFIXES:
        for place in (folder, run / "export", run / "model"):
            place.mkdir(exist_ok=True)
            WRITERS[name](place / f"model.{suffix}")
        line = ["train", *TINY, f"model.weights={folder}/model.{suffix}", "data=stdlib_docs", "loader.limit=40"]
        assert main([*line, "run.dir=other"]) in (2, 3), suffix
        assert "Traceback" not in capfd.readouterr().err
    assert 3 in exit_codes(run, capfd)
    reseal(folder / "MANIFEST.json")
    assert exit_codes(run, capfd)[:5] == [3] * 5


@pytest.mark.parametrize("name", ["../../../victim", "/etc/hostname", "a/../../../../victim"])
def test_manifests_that_name_files_elsewhere(name: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (run.parent / "victim").write_text("mine", encoding="utf-8")
    add_to_manifest(checkpoint(run), name)
    assert exit_codes(run, capfd)[:5] == [3] * 5
    assert (run.parent / "victim").read_text("utf-8") == "mine"


@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "link"])
def test_links_in_checkpoints(name: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    victim, file = run.parent / "victim", checkpoint(run) / name
    shutil.copy(file, victim) if file.exists() else victim.write_text("mine", encoding="utf-8")
    before = victim.read_bytes()
    file.unlink(missing_ok=True)
    file.symlink_to(victim)
    assert exit_codes(run, capfd) == [3] * len(VERBS)
    assert victim.read_bytes() == before


class Elements(HTMLParser):
    """Collects the scripts and the attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.images = 0
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.images += tag == "img"
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


def test_markup_stays_text_on_a_page(run: Path) -> None:
    named = run.with_name("<script>alert(1)<")
    shutil.rmtree(named, ignore_errors=True)
    run.rename(named)
    lines = (named / "metrics.jsonl").read_text("utf-8").splitlines()
    events = [json.loads(line) for line in lines]
    changed = [event | {MARKUP: 1.0} if event["event"] in ("train", "eval") else event for event in events]
    (named / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in changed), encoding="utf-8")
    config = (named / "config.yaml").read_text("utf-8").replace("name: null", f"name: '{MARKUP}'", 1)
    (named / "config.yaml").write_text(config, encoding="utf-8")
    for file in (named / "eval").glob("*.json"):
        document = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps(document | {"run": MARKUP}), encoding="utf-8")
    assert main(["report", str(named), "output=page.html"]) == 0
    page = Path("page.html").read_text("utf-8")
    assert "alert(1)" in page, "the markup is on the page"
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    elements = Elements()
    elements.feed(page)
    assert (elements.images, elements.handlers) == (0, [])


def test_pipes_and_odd_names_among_leftovers(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A pipe waits for a writer if it is opened; the other name stands for a folder without one."""
    for folder in (run, run / "eval", run / "checkpoints", run / "export"):
        folder.mkdir(exist_ok=True)
        os.mkfifo(folder / ".trainer-0123456789abcdef.tmp")
        (folder / ".trainer-replaced-").touch()
    assert exit_codes(run, capfd) == [0] * len(VERBS)


def test_files_in_the_folder_of_the_model_are_kept(run: Path) -> None:
    (run / "model/notes").mkdir(parents=True)
    (run / "model/notes/a.txt").write_text("mine", encoding="utf-8")
    (run / "model/README.md").write_text("my card", encoding="utf-8")
    (run / "model/README.md").chmod(0o600)
    os.mkfifo(run / "model/pipe")
    assert main(["train", f"resume={run}", "train.duration=3"]) == 0
    assert (run / "model/notes/a.txt").read_text("utf-8") == "mine"
    assert (run / "model/README.md").read_text("utf-8") == "my card"
    assert (run / "model/README.md").stat().st_mode & 0o777 == 0o600
    assert not (run / "model/pipe").exists()
