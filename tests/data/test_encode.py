import fcntl
import logging
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.jobs import write_csv
from trainer import __version__
from trainer.data.encode import _FOLDER, Encoded, cache_root, encode
from trainer.data.files import Files
from trainer.errors import DataError
from trainer.files.mapped import MappedRows
from trainer.task.causal_lm import CausalLm
from trainer.task.text_classification import TextClassification

ROLES = ["text_pair", "positive", "negative", "labels", "value", "score", "words", "tags", "spans", "features", "image"]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Files, TextClassification]]:
    write_csv(tmp_path / "train.csv", 40)
    write_csv(tmp_path / "validation.csv", 10, seed=1)

    def made(**changes: Any) -> tuple[Files, TextClassification]:
        options: dict[str, Any] = {"max_length": 12, "vocab_size": 200, "tokenizer": None, "lowercase": True}
        source = Files(
            train=str(tmp_path / "train.csv"),
            validation=str(tmp_path / "validation.csv"),
            test=None,
            text="text",
            label="label",
            columns=dict.fromkeys(ROLES),
            list_separator="|",
            split={"validation": 0.1, "test": 0.0},
            separator=None,
            quote='"',
            cache_dir=str(tmp_path / "files"),
        )
        return source, TextClassification(**(options | changes))

    return made


def run(parts: tuple[Files, TextClassification], folder: Path, **changes: Any) -> Encoded:
    return encode(*parts, **({"limit": None, "root": folder / "cache", "fitted": False} | changes))


def test_encoding_runs_once(
    make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_parts, second_parts = make(), make()
    first = run(first_parts, tmp_path)
    # A second start needs neither the raw data nor the tokenizer's training.
    monkeypatch.setattr(Files, "load", None)
    with caplog.at_level(logging.INFO):
        second = run(second_parts, tmp_path)

    assert [record.message for record in caplog.records] == [f"encoded data: reused from {first.folder}"]
    assert second.fingerprint == first.fingerprint
    assert second_parts[1].state_dict() == first_parts[1].state_dict()
    assert {split: rows[:] for split, rows in second.splits.items()} == {
        split: rows[:] for split, rows in first.splits.items()
    }
    copied = pickle.loads(pickle.dumps(second.splits["train"]))  # a worker maps the file itself
    assert len(pickle.dumps(copied)) < 400
    assert copied[:] == second.splits["train"][:]


def test_a_file_has_large_blocks_and_the_same_bytes_each_time(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_csv(tmp_path / "train.csv", 2500)
    files = [run(make(), tmp_path / name).folder / "train.arrow" for name in ("first", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()
    monkeypatch.setattr("trainer.data.encode._BLOCK_VALUES", 1)  # blocks as small as those of earlier versions
    files.append(run(make(), tmp_path / "small").folder / "train.arrow")
    large, _, small = (MappedRows.from_file(str(file)) for file in files)
    assert [rows.data.column("row").num_chunks for rows in (large, small)] == [1, 3]
    assert large[:] == small[:]


def test_data_and_task_options_decide_the_cache_folder(make: Callable[..., Any], tmp_path: Path) -> None:
    first = run(make(), tmp_path)
    longer = run(make(max_length=13), tmp_path)
    with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
        file.write("one more,fruit\n")
    grown = run(make(), tmp_path)

    assert len({first.fingerprint, longer.fingerprint, grown.fingerprint}) == 3
    assert len(grown.splits["train"]) == len(first.splits["train"]) + 1


def test_limit_takes_evenly_spaced_rows_and_keeps_all_labels(make: Callable[..., Any], tmp_path: Path) -> None:
    whole_parts, parts = make(), make()
    whole, limited = run(whole_parts, tmp_path), run(parts, tmp_path, limit=5)

    assert [len(rows) for rows in limited.splits.values()] == [5, 5]
    assert parts[1].info() == whole_parts[1].info()
    assert limited.splits["train"]["row"][0] == whole.splits["train"]["row"][0]
    assert limited.splits["train"]["row"][4] == whole.splits["train"]["row"][39]


def test_raw_samples_are_the_first_rows(make: Callable[..., Any], tmp_path: Path) -> None:
    source, task = make()
    raw = source.load(task.columns())["validation"]
    for _ in range(2):
        assert run((source, task), tmp_path).samples("validation") == [raw[row] for row in range(4)]


def test_task_from_a_checkpoint_keeps_its_labels_and_vocabulary(make: Callable[..., Any], tmp_path: Path) -> None:
    source, task = make()
    first = run((source, task), tmp_path)
    again, restored = make()
    restored.load_state_dict(task.state_dict())
    assert run((again, restored), tmp_path, fitted=True).fingerprint == first.fingerprint

    other, changed = make()
    changed.load_state_dict(task.state_dict() | {"labels": ["fruit", "tool", "animal"]})
    relabelled = run((other, changed), tmp_path, fitted=True)
    assert relabelled.folder != first.folder
    # The same data: a resumed run may have another cache, or none.
    assert relabelled.fingerprint == first.fingerprint
    assert changed.class_target.classes.labels == ["fruit", "tool", "animal"]


def test_unusable_row_is_named_and_nothing_is_stored(make: Callable[..., Any], tmp_path: Path) -> None:
    with (tmp_path / "validation.csv").open("a", encoding="utf-8") as file:
        file.write("a stone,mineral\n")

    with pytest.raises(DataError, match=r"validation\.csv, row 11, data\.label=label: .*'mineral'"):
        run(make(), tmp_path)
    assert not list((tmp_path / "cache" / "encoded").iterdir())


def test_all_unseen_labels_are_counted_with_their_first_rows(make: Callable[..., Any], tmp_path: Path) -> None:
    with (tmp_path / "validation.csv").open("a", encoding="utf-8") as file:
        lines = [f"stone {n},mineral" for n in range(3)] + [f"plum {n},fruit" for n in range(2000)]
        file.write("\n".join([*lines, *(f"rock {n},{'fungus' if n < 2 else 'mineral'}" for n in range(4))]) + "\n")

    with pytest.raises(DataError) as caught:
        run(make(), tmp_path)
    first, second, summary = caught.value.messages
    assert re.search(r"validation\.csv, row 11, data\.label=label: .*'mineral'\..* The same in 4 more\.$", first)
    assert re.search(r"validation\.csv, row 2014, data\.label=label: .*'fungus'\..* The same in 1 more\.$", second)
    assert "7 rows cannot be encoded" in summary


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    monkeypatch.delenv("TRAINER_CACHE", raising=False)
    assert cache_root() == Path("/caches/trainer")
    monkeypatch.setenv("TRAINER_CACHE", str(tmp_path))
    assert cache_root() == tmp_path


@pytest.mark.parametrize("damage", ["emptied", "removed", "no index", "truncated", "flipped"])
def test_damaged_encoded_data_is_encoded_again(
    damage: str, make: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = run(make(), tmp_path)
    expected = {split: rows[:] for split, rows in first.splits.items()}
    folder = first.folder
    if damage == "emptied":
        (folder / "train.arrow").write_bytes(b"")
    elif damage == "removed":
        (folder / "validation.arrow").unlink()
    elif damage == "flipped":
        data = bytearray((folder / "train.arrow").read_bytes())
        data[len(data) * 2 // 3] ^= 1
        (folder / "train.arrow").write_bytes(data)
    elif damage == "truncated":
        (folder / "train.arrow").write_bytes((folder / "train.arrow").read_bytes()[:-200])
    else:
        (folder / "index.json").unlink()

    again = run(make(), tmp_path)
    assert {split: rows[:] for split, rows in again.splits.items()} == expected
    assert [record.message for record in caplog.records if "is damaged" in record.message]
    caplog.clear()
    run(make(), tmp_path)
    assert not [record for record in caplog.records if "is damaged" in record.message]


def test_cache_is_private(make: Callable[..., Any], tmp_path: Path) -> None:
    run(make(), tmp_path)
    for path in (tmp_path / "cache").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_cache_folder_that_cannot_be_written_is_named(make: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(DataError, match=r"file/encoded/\w+: cannot be written: .*TRAINER_CACHE\.$"):
        run(make(), tmp_path, root=tmp_path / "file")


def test_folder_of_a_faster_process_is_used(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = os.rename

    def rename_too_late(source: Path, target: Path) -> None:
        if Path(source).is_dir():
            shutil.copytree(source, target)
        rename(source, target)

    monkeypatch.setattr(os, "rename", rename_too_late)
    assert len(run(make(), tmp_path).splits["train"]) == 40


def test_text_may_become_several_rows(make: Callable[..., Any], tmp_path: Path) -> None:
    source, _ = make()
    with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
        file.write(f"{'one two three four five six ' * 3},fruit\n{'one two three four five six ' * 3},fruit\n")
    options: dict[str, Any] = {"max_length": 8, "vocab_size": 200, "tokenizer": None, "lowercase": True}
    rows = run((source, CausalLm(**options)), tmp_path).splits["train"]
    again = run((source, CausalLm(**options)), tmp_path).splits["train"]

    blocks = [row for row in rows.data.to_pylist() if row["row"] >= max(rows["row"]) - 1]
    assert len(blocks) == 6
    assert [row["row"] for row in blocks] == [blocks[0]["row"]] * 3 + [blocks[3]["row"]] * 3
    assert [len(row["input_ids"]) for row in blocks] == [8, 8, 5] * 2
    # Equal texts have equal blocks; the blocks of one text differ.
    digests = [row["input_digest"] for row in blocks]
    assert digests[:3] == digests[3:]
    assert len(set(digests)) == 3
    assert "block_of" not in rows.column_names
    assert again["row"] == rows["row"]


def test_warnings_of_the_source_are_stored_with_the_data(
    make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    printed: list[str] = []
    # Without a log, as in `trainer plan`, Python prints warnings itself.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(logging.lastResort, "emit", lambda record: printed.append(record.getMessage()))
    with (tmp_path / "train.csv").open("a", encoding="utf-8") as file:
        file.write(" ,fruit\n")

    first, second = run(make(), tmp_path), run(make(), tmp_path)

    (warning,) = first.warnings
    assert warning.startswith("data.train: dropped 1 row without a text or a label; the first is ")
    assert second.warnings == first.warnings == printed
    assert (first.unlogged, second.unlogged) == ([], [warning])


@pytest.mark.parametrize("version", ["0.0.1", __version__])
def test_notes_of_another_version_are_not_repeated(
    version: str, make: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checks of another version have other things to say; the fingerprint of the data stays."""
    source, task = make()

    def load(roles: list[str]) -> Any:
        logging.getLogger("trainer.data.labels").warning("an old note")
        return Files.load(source, roles)

    monkeypatch.setattr(source, "load", load)
    with monkeypatch.context() as context:
        context.setattr("trainer.data.encode._FOLDER", (_FOLDER[0], version))
        first = run((source, task), tmp_path)
    second = run(make(), tmp_path)

    assert first.warnings == ["an old note"]
    assert second.warnings == (first.warnings if version == __version__ else [])
    assert second.fingerprint == first.fingerprint


def test_a_killed_process_leaves_no_lock(make: Callable[..., Any], tmp_path: Path) -> None:
    name = run(make(), tmp_path).folder.name
    encoded = tmp_path / "cache" / "encoded"
    shutil.rmtree(encoded)
    encoded.mkdir()
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from trainer.data.encode import _locked\n"
        "with _locked(Path(sys.argv[1])):\n"
        "    print(flush=True)\n"
        "    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, encoded / name], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        file = os.open(encoded / f"{name}.lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(file)
        process.kill()

    run(make(), tmp_path)
    assert [path.name for path in encoded.iterdir()] == [name]
