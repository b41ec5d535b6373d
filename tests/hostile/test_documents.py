"""Every document of a run and of its artifacts is damaged in every way: no verb may end with a traceback.

The documents are those that a small run has, so a new document is covered by itself.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from onnx import TensorProto
from pyarrow import parquet as pq

from tests.support.hostile_documents import DAMAGES, endless_graph, graph_of, seal_again, variants, write_temperature
from tests.support.hostile_files import replace_metadata
from tests.support.jobs import train, working_in, write_data
from tests.support.processes import PATIENCE
from trainer.cli import main
from trainer.errors import CheckpointError
from trainer.export.folder import write_manifest
from trainer.serve.model import ServedModel

SUFFIXES = (".json", ".jsonl", ".yaml", ".log", ".npz")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("documents")
    with working_in(folder):
        options = ("train.duration=2", "checkpoint.every=1", "train.eval_every=1", "export.formats=[onnx]")
        assert train(folder / "run", *write_data(folder), *options) == 0
        write_temperature(folder / "run")
        sweep = folder / "sweeps/s"
        shutil.copytree(folder / "run", sweep / "seed=0", ignore=shutil.ignore_patterns("export", "checkpoints"))
        fields = {"format": 1, "config": {"seed": 0}, "jobs": [{"name": "seed=0", "changes": {"seed": "0"}}]}
        (sweep / "sweep.json").write_text(json.dumps(fields), encoding="utf-8")
        yield folder / "run"


def documents(run: Path) -> list[Path]:
    return sorted(path for path in run.rglob("*") if path.suffix in SUFFIXES and not path.is_relative_to(run / "model"))


@contextmanager
def damaged(file: Path, data: bytes, *, sealed: bool) -> Iterator[None]:
    """Replace the content of a document during the block; `sealed` makes the checksums fit."""
    before = {path: path.read_bytes() for path in file.parent.iterdir() if path.suffix in SUFFIXES}
    file.write_bytes(data)
    if sealed:
        seal_again(file)
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


def verbs_on(run: Path, file: Path) -> list[list[str]]:
    """Return the commands that read a document."""
    report = ["report", f"run={run}", f"output={run.parent / 'report.html'}"]
    card = ["card", f"run={run}", f"output={run.parent / 'card.md'}", "force=true"]
    if file.parent.name == "export":
        return [report, ["predict", f"run={file.parent}", "input=hammer and saw"], card]
    if file.parent.parent.name == "checkpoints" and file.name != "MANIFEST.json":
        return [["predict", f"run={run}", f"checkpoint={file.parent.name}", "input=hammer and saw", "device=cpu"]]
    if file.name == "decision.json":
        return [["predict", f"run={run}", "input=hammer and saw", "device=cpu"]]
    return [report, ["diff", f"left={run}", f"right={run}"], card]


def check(commands: list[list[str]], file: Path, case: str, capfd: pytest.CaptureFixture[str]) -> set[int]:
    """Run commands, none of which may fail in an unknown way or without a message; return their exit codes."""
    codes = set()
    for command in commands:
        code = main(command)
        error = capfd.readouterr().err
        assert code in (0, 2, 3, 4, 6), (file.name, case, command, code, error[-2000:])
        assert "Traceback" not in error, (file.name, case, error[-2000:])
        assert code == 0 or len(error.splitlines()) < 5, (file.name, case, error[-2000:])
        codes.add(code)
    return codes


@pytest.mark.parametrize("share", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_bytes_of_every_document(share: int, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Each document is damaged, in turn with and without fitting checksums; quickly, in every eighth way."""
    assert len(documents(run)) >= 14
    cases = refused = 0
    for number, file in enumerate(documents(run)):
        for position, (case, damage) in enumerate(DAMAGES.items()):
            if (number + position) % share:
                continue
            commands = verbs_on(run, file)
            with damaged(file, damage(file.read_bytes()), sealed=number % 2 == 0):
                codes = check(commands if share == 1 else commands[-1:], file, case, capfd)
            cases, refused = cases + 1, refused + (3 in codes)
    assert refused > cases / 3, (refused, cases)


FIELDS = (
    "config.yaml",
    "decision.json",
    "metrics.jsonl",
    "eval/test.json",
    *(f"checkpoints/step-00000002/{name}" for name in ("MANIFEST.json", "config.yaml", "state.json", "task.json")),
    *(f"export/{name}.json" for name in ("golden", "labels", "manifest", "task", "tokenizer")),
)
"""The documents that have fields."""


def readers_of(run: Path, name: str) -> list[list[str]]:
    """Return the commands that read a document, of every verb that does."""
    card = ["card", f"run={run}", f"output={run.parent / 'card.md'}", "force=true"]
    pages = [["report", f"run={run}", f"output={run.parent / 'report.html'}"], ["diff", f"left={run}", f"right={run}"]]
    whole = [["verify", f"run={run}"], ["eval", f"run={run}", "split=validation", "device=cpu"]]
    if name.startswith("export/"):
        return [["predict", f"run={run / 'export'}", "input=hammer and saw"], pages[0], whole[0], card]
    if name.startswith("eval/"):
        return [*pages, card]
    if name == "decision.json":
        again = ["eval", f"run={run}", "threshold=kept", "calibrate=true", "device=cpu"]
        return [["predict", f"run={run}", "input=hammer and saw", "device=cpu"], again, whole[1]]
    checkpoint = "checkpoint=step-2" if name.startswith("checkpoints/") else "checkpoint=best"
    return [["predict", f"run={run}", checkpoint, "input=hammer and saw", "device=cpu"], *pages, *whole, card]


@contextmanager
def restored(run: Path) -> Iterator[None]:
    """Give every document its content back, and remove new ones, after the block."""
    before = {path: path.read_bytes() for path in documents(run)}
    try:
        yield
    finally:
        for path in {*documents(run), *before}:
            if path in before:
                path.write_bytes(before[path])
            else:
                path.unlink()


@pytest.mark.parametrize("sample", [3, pytest.param(None, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_every_document(sample: int | None, name: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Every field is wrong in every way inside fitting checksums, for each verb that reads the document in turn.

    The quick part takes an evenly spaced sample.
    """
    file, failures = run / name, []
    text = file.read_text("utf-8")
    if file.suffix == ".yaml":
        document = yaml.safe_load(text)
    else:
        document = json.loads(text.splitlines()[0] if file.suffix == ".jsonl" else text)
    changes = list(variants(document))
    commands = readers_of(run, name)
    for number, (case, changed) in enumerate(changes[:: 1 if sample is None else max(1, len(changes) // sample)]):
        data = json.dumps(changed).encode("utf-8", "surrogatepass") + b"\n"  # JSON is YAML too
        command = commands[number % len(commands)]
        with restored(run), damaged(file, data, sealed=True):
            try:
                check([command], file, case, capfd)
            except Exception as error:  # all of them are reported together
                failures.append(f"{case[:80]}: {command[0]}: {type(error).__name__}: {str(error)[-400:]}")
    assert not failures, "\n".join([f"{len(failures)} of {len(changes)}", *failures[:40]])


@pytest.mark.parametrize("sample", [12, pytest.param(None, marks=pytest.mark.slow)])
def test_fields_of_a_sweep_and_of_the_metadata_of_predictions(
    sample: int | None, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every field is wrong in every way."""
    sweep, predictions = run.parent / "sweeps/s/sweep.json", run / "eval/test.predictions.parquet"
    about = json.loads(pq.read_schema(predictions).metadata[b"trainer.predictions"])
    intact, failures = {file: file.read_bytes() for file in (sweep, predictions)}, []
    page = f"output={run.parent / 'report.html'}"
    cases = [(sweep, ["report", f"run={sweep.parent}", page], each) for each in variants(json.loads(intact[sweep]))]
    cases += [(predictions, ["report", f"run={run}", page], each) for each in variants(about)]
    for file, command, (case, changed) in cases[:: 1 if sample is None else len(cases) // sample]:
        data = json.dumps(changed).encode("utf-8", "surrogatepass")
        if file == sweep:
            file.write_bytes(data)
        else:
            replace_metadata(file, lambda old, data=data: data if b"format" in old else old)
        try:
            check([command], file, case, capfd)
        except Exception as error:
            failures.append(f"{file.name}: {case[:80]}: {type(error).__name__}: {str(error)[-400:]}")
        finally:
            file.write_bytes(intact[file])
    assert not failures, "\n".join(failures)


EXPORTED_VALUES = {
    "task.max_length": (-5, "must be at least 3"),
    "task.nonsense": (1, "has no such parameter"),
    "loader.eval_batch_size": (0, "must be at least 1"),
    "data.list_separator": ("", "must not be empty"),
    "data.quote": ("ab", "must have 1 character"),
}


@pytest.mark.parametrize("key", EXPORTED_VALUES)
def test_values_of_an_exported_config(key: str, run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A wrong value inside a fitting checksum is the folder's fault."""
    value, problem = EXPORTED_VALUES[key]
    file = run / "export/manifest.json"
    document = json.loads(file.read_bytes())
    group, name = key.split(".")
    document["provenance"]["config"][group][name] = value
    with damaged(file, json.dumps(document).encode(), sealed=False):
        write_manifest(file, document)
        assert main(["predict", f"run={file.parent}", "input=hammer and saw"]) == 3
    error = capfd.readouterr().err
    assert error.startswith(f"{file}: {group}")
    assert problem in error


CLAIMS: dict[str, tuple[int, str]] = {
    "metrics.jsonl": (3, "metrics.jsonl: is damaged: has 1099511627776 bytes, more than any document"),
    "trainer.log": (0, ""),
    "report.html": (0, ""),
    "eval/test.json": (3, "test.json: is damaged: has 1099511627776 bytes, more than any document"),
    "checkpoints/step-00000002/MANIFEST.json": (0, ""),
    "checkpoints/step-00000002/state.json": (0, ""),
    "checkpoints/step-00000002/task.json": (0, ""),
    "checkpoints/step-00000002/model.safetensors": (0, ""),
    "export/manifest.json": (3, "manifest.json: is damaged: has 1099511627776 bytes, more than any document"),
}
"""Files that claim 1 TB, with the exit code and the message of a page about the run."""


@pytest.mark.parametrize("name", CLAIMS)
def test_files_that_claim_a_terabyte(
    name: str, run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A file with a hole takes no space; nothing reads the hole, which would take minutes or all memory."""
    code, message = CLAIMS[name]
    file = run / name
    size = file.stat().st_size
    os.truncate(file, 2**40)
    try:
        before = time.process_time()
        assert main(["report", f"run={run}", f"output={run.parent / 'report.html'}", "force=true"]) == code
        assert message in capfd.readouterr().err
        if name == "report.html":
            assert main(["report", f"run={run}"]) == 2
            assert "run: was not written by trainer" in capfd.readouterr().err
        if "checkpoints" in name:
            assert main(["verify", f"run={run}", "steps=1", "device=cpu"]) == 3
            assert f"{Path(name).name} has 1099511627776 bytes" in "".join(capfd.readouterr())
        assert time.process_time() - before < 30, "the hole was read"
    finally:
        os.truncate(file, size)


GRAPHS: dict[str, tuple[bytes, int, str]] = {
    "no graph": (b"nothing", 3, "model.onnx: cannot be loaded"),
    "many rows": (graph_of(1000, 3), 3, "model.onnx: cannot compute answers (ValueError"),
    "more columns": (graph_of(None, 9), 3, "a row has 9 outputs, but the task has 3"),
    "fewer columns": (graph_of(None, 2), 3, "a row has 2 outputs, but the task has 3"),
    "no row": (graph_of(3), 3, "model.onnx: cannot compute answers"),
    "another name": (graph_of(None, 3, name="else"), 3, "model.onnx: cannot compute answers (InvalidArgument"),
    "texts": (graph_of(None, 3, kind=TensorProto.STRING), 3, "model.onnx: cannot compute answers (TypeError"),
    "4 TB": (graph_of(10**6, 10**6), 2, "out of memory: the job does not fit. Lower loader.eval_batch_size."),
    "NaN": (graph_of(None, 3, value=float("nan")), 6, "input: the output of the model is NaN."),
}
"""Graphs whose checksums fit, with the exit code and the message of a prediction."""


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_of_a_stranger(name: str, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    graph, code, message = GRAPHS[name]
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    (alone / "model.onnx").write_bytes(graph)
    seal_again(alone / "manifest.json")
    assert main(["predict", f"run={alone}", "input=hammer and saw"]) == code
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert len(error.splitlines()) <= 2


def test_a_row_whose_output_is_nan_has_no_class(run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    (alone / "model.onnx").write_bytes(GRAPHS["NaN"][0])
    seal_again(alone / "manifest.json")
    answers = ServedModel(alone).answer([{"text": "hammer and saw"}, {"text": ""}], 1)
    assert answers == [{"error": "the output of the model is NaN"}, {"error": "is empty"}]


@pytest.fixture
def endless(run: Path, tmp_path: Path) -> Path:
    """A folder of artifacts whose graph has a loop without an end."""
    alone = shutil.copytree(run / "export", tmp_path / "endless")
    (alone / "model.onnx").write_bytes(endless_graph())
    seal_again(alone / "manifest.json")
    return alone


INTERRUPTED = """
import os, signal, sys, threading, time
from trainer.cli import main

def is_running():
    return any(thread.name == "ONNX graph" for thread in threading.enumerate())

def interrupt():
    while not is_running():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
threading.Thread(target=interrupt, daemon=True).start()
print(main(sys.argv[1:]), is_running())
"""


def test_ctrl_c_ends_a_graph_that_never_ends(endless: Path) -> None:
    line = [sys.executable, "-c", INTERRUPTED, "predict", f"run={endless}", "input=hammer and saw"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "130 False\n", done.stderr


def test_a_server_ends_a_graph_that_never_ends(endless: Path) -> None:
    model = ServedModel(endless, timeout=0.2)
    with pytest.raises(TimeoutError):
        model.answer([{"text": "hammer and saw"}], 1)
    with pytest.raises(CheckpointError, match=r"does not answer its golden rows within 0.2 seconds \(timeout\)"):
        model.check()


@pytest.mark.parametrize("longest", [-1, 0, None, 2**40])
def test_a_server_refuses_a_length_that_no_text_has(longest: int | None, run: Path, tmp_path: Path) -> None:
    alone = shutil.copytree(run / "export", tmp_path / "alone")
    document = json.loads((alone / "manifest.json").read_bytes())
    document["axes"]["sequence"][1] = longest
    write_manifest(alone / "manifest.json", document)
    with pytest.raises(CheckpointError, match=rf"a text has at most {longest} tokens"):
        ServedModel(alone).check()


def test_separator_of_another_format_does_not_separate_cells(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A source such as CoNLL may have a separator of several characters, which CSV has not."""
    file, table = run / "export/manifest.json", run.parent / "rows.csv"
    document = json.loads(file.read_bytes())
    document["provenance"]["config"]["data"]["separator"] = "::"
    table.write_text("text\nhammer and saw\n", encoding="utf-8")
    with damaged(file, json.dumps(document).encode(), sealed=False):
        write_manifest(file, document)
        assert main(["predict", f"run={file.parent}", f"input={table}"]) == 0


def test_predict_script_reports_damage(run: Path) -> None:
    """The script next to the artifacts ends with exit code 3 and one line, whatever document of it is damaged."""
    export = run / "export"
    names = ["manifest.json", "task.json", "labels.json", "tokenizer.json", "golden.json", "golden.npz"]
    for number, name in enumerate(names):
        damages = list(DAMAGES.items())
        case, damage = damages[(3 * number + 1) % len(damages)]
        with damaged(export / name, damage((export / name).read_bytes()), sealed=True):
            command = [sys.executable, "-I", str(export / "predict.py"), "--check"]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 3, (name, case, done.stderr)
        assert len(done.stderr.splitlines()) == 1, (name, case, done.stderr)
