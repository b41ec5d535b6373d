"""`trainer verify` detects alterations and names their place."""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.jobs import events, train, working_in, write_data
from trainer.checkpoint.snapshot import load_folder, write_snapshot
from trainer.cli import main
from trainer.commands import replay as replaying

STEPS = 8
Verify = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("verify")
    with working_in(folder):
        yield [*write_data(folder), f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=2"]


@pytest.fixture(scope="module")
def whole(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert train(folder, *data, "export.formats=[torchscript]", "checkpoint.keep=4", "train.accumulate=2") == 0
    return folder


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def verify_damaged(capsys: pytest.CaptureFixture[str]) -> Verify:
    """Return a function that verifies a damaged run and returns the error output."""

    def verify(run: Path, *keys: str) -> str:
        capsys.readouterr()
        assert main(["verify", f"run={run}", *keys]) == 3
        return capsys.readouterr().err

    return verify


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def checkpoint(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}"


def alter_and_seal(folder: Path, file: str, name: str) -> None:
    """Change a value of a checkpoint's tensor and write a matching manifest."""
    snapshot = load_folder(folder)
    with torch.no_grad():
        snapshot.tensors[file][name].view(-1)[-1] += 0.25
    shutil.rmtree(folder)
    write_snapshot(folder, snapshot, ordinal=1000)


def test_intact_run_passes_and_is_not_changed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(run)
    assert main(["verify", f"run={run}"]) == 0
    page = capsys.readouterr().out

    assert content(run) == before
    lines = [line.split() for line in page.splitlines()]
    for step in (2, 4, 6, 8):
        assert [f"step-{step:08d}", "intact"] in lines
    assert ["model.torchscript.pt", "intact"] in lines
    assert ["golden.npz", "intact"] in lines
    assert "replay of step-00000006 to step-00000008" in page
    assert "logged steps  2, bitwise equal" in page
    assert "tensors       90, bitwise equal" in page
    assert "state         equal" in page


@pytest.mark.parametrize(
    "options",
    [["precision=fp16"], ["precision=bf16", "ema.decay=null"], ["optimizer=sgd", "loader.workers=1"]],
    ids=lambda options: " ".join(options),
)
def test_run_with_other_options_passes(options: list[str], data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, "train.duration=5", *options) == 0
    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


def test_resumed_run_passes(data: list[str], tmp_path: Path) -> None:
    assert train(tmp_path / "run", *data, "train.duration=4") == 0
    assert main(["train", f"resume={tmp_path / 'run'}", "train.duration=6"]) == 0
    assert main(["verify", f"run={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize(("start", "stop"), [("step-2", 4), ("step-0", 2)])
def test_start_of_the_replay_can_be_chosen(
    start: str, stop: int, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", f"run={run}", f"start={start}"]) == 0
    page = capsys.readouterr().out
    assert f"to step-{stop:08d}\n" in page
    assert "logged steps  2, bitwise equal" in page


def test_partial_replay_compares_logged_values(
    run: Path, verify_damaged: Verify, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", f"run={run}", "steps=1"]) == 0
    page = capsys.readouterr().out
    assert "logged steps    1, bitwise equal" in page
    assert "not compared: the replay ended after step 7, as requested" in page

    (run / "metrics.jsonl").unlink()
    assert "none of the replayed steps was logged, so nothing was compared" in verify_damaged(run, "steps=1")


def test_flipped_bit_is_reported_and_intact_checkpoints_replayed(
    run: Path, verify_damaged: Verify, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = checkpoint(run, 8) / "model.safetensors"
    altered = bytearray(weights.read_bytes())
    altered[-100] ^= 1
    weights.write_bytes(altered)

    assert main(["verify", f"run={run}"]) == 3
    page, wrong = capsys.readouterr()
    assert "replay of step-00000004 to step-00000006" in page
    assert wrong.startswith(f"{checkpoint(run, 8)}: model.safetensors has checksum ")
    assert len(wrong.splitlines()) == 1
    assert "start: this step has no intact checkpoint" in verify_damaged(run, "start=step-8")
    assert "start: there is no intact checkpoint after this step" in verify_damaged(run, "start=step-6")


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model", "blocks.0.query_key_value.weight"),
        ("ema", "head.bias"),
        ("optimizer", "model.head.weight/exp_avg"),
    ],
)
def test_tensor_that_differs_from_the_replay_is_named(file: str, name: str, run: Path, verify_damaged: Verify) -> None:
    alter_and_seal(checkpoint(run, 8), file, name)

    (line,) = verify_damaged(run).splitlines()
    assert f"tensors: {file}/{name} differs: 1 of " in line
    assert line.endswith("values, by at most 0.25.")


def test_altered_start_differs_in_the_first_step(run: Path, verify_damaged: Verify) -> None:
    alter_and_seal(checkpoint(run, 6), "model", "head.weight")

    lines = verify_damaged(run, "start=step-6").splitlines()
    assert "logged steps: step 7 is the first to differ: loss " in lines[0]
    assert "more differ" in lines[1]


def test_altered_state_is_named(run: Path, verify_damaged: Verify) -> None:
    snapshot = load_folder(checkpoint(run, 8))
    state = json.loads(snapshot.documents["state.json"])
    state["train"]["best_step"] = 7
    documents = {**snapshot.documents, "state.json": json.dumps(state), "task.json": "{}"}
    shutil.rmtree(checkpoint(run, 8))
    write_snapshot(checkpoint(run, 8), type(snapshot)(8, snapshot.tensors, documents), ordinal=1000)

    (line,) = verify_damaged(run).splitlines()
    assert "state: state.json: train.best_step 7 stored, " in line


def test_altered_log_line_is_named_by_its_step(run: Path, verify_damaged: Verify) -> None:
    lines = [json.dumps(event) for event in events(run)]
    logged = next(event for event in events(run, "train") if event["step"] == 7)
    changed = {**logged, "grad_norm": logged["grad_norm"] * (1 + 2**-52)}
    text = [json.dumps(changed) if line == json.dumps(logged) else line for line in lines]
    (run / "metrics.jsonl").write_text("\n".join(text) + "\n")

    (line,) = verify_damaged(run).splitlines()
    assert f"step 7 is the first to differ: grad_norm {changed['grad_norm']!r} logged, {logged['grad_norm']!r}" in line


def test_altered_artifacts_are_reported(run: Path, verify_damaged: Verify) -> None:
    with (run / "export" / "golden.npz").open("r+b") as file:
        file.write(b"X")
    (run / "export" / "labels.json").unlink()

    first, second = sorted(verify_damaged(run).splitlines())
    assert first.startswith(f"{run}/export/golden.npz: has the SHA-256 ")
    assert second == f"{run}/export/labels.json: is missing."


def test_run_with_one_checkpoint_is_not_replayed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (2, 4, 6):
        shutil.rmtree(checkpoint(run, step))
    assert main(["verify", f"run={run}"]) == 0
    assert "no replay: two intact checkpoints are needed. Set start=step-0 to replay from the start." in (
        capsys.readouterr().out
    )


def test_keys_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "start=last", "steps=0", "device=gpu", "stepz=1"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "stepz: unknown key, got 1. Did you mean steps?",
        "steps: must be at least 1, got 0.",
        "device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'. Set device=cuda.",
        "start: must be step-N, got 'last'.",
    ]


def test_replay_uses_the_recorded_threads_and_names_another_processor(
    run: Path, verify_damaged: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    threads = []

    def counted(*arguments: Any) -> replaying.Replay:
        threads.append(torch.get_num_threads())
        return replay(*arguments)

    replay = replaying.replay
    monkeypatch.setattr(replaying, "replay", counted)
    torch.set_num_threads(before + 1)
    try:
        assert main(["verify", f"run={run}"]) == 0
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)
    assert [events(run, "start")[0]["threads"]] == threads == [before]

    metrics = run / "metrics.jsonl"
    metrics.write_text(re.sub(r'"processor": *"[^"]*"', '"processor": "Z80"', metrics.read_text()))
    newest = checkpoint(run, STEPS)
    alter_and_seal(newest, "model", next(iter(load_folder(newest).tensors["model"])))
    assert "(possible reason: processor Z80 then, " in verify_damaged(run)
