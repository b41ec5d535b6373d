"""Data files of any bytes: each is read, or is an error with its file and row; none ends the process."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow
import pytest
from PIL import Image
from pyarrow import feather, parquet

from tests.support.jobs import working_in
from trainer.cli import main
from trainer.data.idx import read_idx
from trainer.data.readers import read_records
from trainer.errors import DataError
from trainer.files.untrusted import LIMITS
from trainer.predict.input_rows import RowFormat, read_rows
from trainer.task.images import decode_image

DEEP = "[" * 100_000  # beyond the limit of every Python
LONG_INTEGER = "1" * 5_000
TABLE = pyarrow.table(
    {"text": [f"a text {number}" for number in range(300)], "label": [f"class {number % 3}" for number in range(300)]}
)


@pytest.fixture(autouse=True)
def own_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore the limits of the process after each test: a job sets them."""
    for name, value in vars(LIMITS).items():
        monkeypatch.setattr(LIMITS, name, value)


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LIMITS, "line_bytes", 10_000)
    monkeypatch.setattr(LIMITS, "pixels", 10_000)
    monkeypatch.setattr("trainer.files.untrusted._ALWAYS_UNPACKED", 1 << 18)


def read(path: Path) -> list[object]:
    return list(read_records(path, ["text"], separator=None, quote='"', column_remedy="set data.text"))


LINES = {
    "deep.jsonl": (f'{{"text": {DEEP}', r"line 1: too many brackets inside each other"),
    "deep.json": (f"[{DEEP}", r"line 1: too many brackets inside each other"),
    "integer.jsonl": (f'{{"text": {LONG_INTEGER}}}', r"line 1: broken JSON: an integer has too many digits"),
    "long.csv": (f"text\n{'a' * 20_000}\n", r"line 2: is longer than 10000 bytes.*data\.max_line_bytes"),
    "cell.csv": ('text\n"' + "a\n" * 20_000, r"broken CSV: field larger than field limit"),
    "nul.jsonl": ("\0" * 100, r"broken JSON"),
    "bom.csv": ("\ufefftext\n\ud800".encode("utf-16-le", "surrogatepass").decode("latin-1"), r"UTF-8|no column"),
    "columns.csv": (",".join(f"c{number}" for number in range(1_000)) + "\n", r"has no column 'text'"),
}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("name", LINES)
def test_text_that_no_parser_expects(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content, message = LINES[name]
    if DEEP in content:
        monkeypatch.setattr(LIMITS, "line_bytes", 2 * len(DEEP))
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1") if name == "bom.csv" else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 2_000
    # Among good rows, it is one row of a prediction, or the end of the file.
    try:
        errors = [row.error for row in read_rows(path, RowFormat(("text",), {})) if row]
    except DataError as error:
        errors = [str(error)]
    assert any(errors)


COMPRESSED = {
    "line.csv.gz": (b"text\n" + b"a" * 10**5, r"line 2: is longer than 10000 bytes"),
    "list.json.gz": (b"[\n" + b"1,\n" * 70_000, r"list of more than 160000"),
    "idx.gz": (bytes((0, 0, 8, 3)) + b"\0\0\0\1" * 3 + b"a" * 10**7, r"must have 17 bytes"),
    "lines.csv.gz": (b"text\n" * 10**5, r"unpacks to more than 200 times its size.*data\.max_expansion"),
    "blank.jsonl.gz": (b"\n" * 10**6, r"unpacks to more than 200 times its size"),
}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed_file_that_unpacks_to_any_size(name: str, tmp_path: Path) -> None:
    content, message = COMPRESSED[name]
    path = tmp_path / name
    path.write_bytes(gzip.compress(content))
    with pytest.raises(DataError, match=message):
        read_idx(path, num_dims=3, type_codes=[8]) if name == "idx.gz" else read(path)


@pytest.mark.usefixtures("small_limits")
def test_key_allows_a_file_that_unpacks_to_many_times_its_size(tmp_path: Path) -> None:
    path = tmp_path / "many.csv.gz"
    path.write_bytes(gzip.compress(b"text\n" + b"a\n" * 10**6))
    LIMITS.expansion = 2_000
    assert sum(1 for _ in read_records(path, ["text"], separator=None, quote='"', column_remedy="")) == 10**6


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_long_line_is_one_broken_row(suffix: str, tmp_path: Path) -> None:
    texts = ["first", "a" * 50_000, "last"]
    rows = ["text", *texts] if suffix == "csv" else [json.dumps({"text": text}) for text in texts]
    path = tmp_path / f"rows.{suffix}"
    path.write_text("".join(f"{row}\n" for row in (texts if suffix == "txt" else rows)))
    found = [row for row in read_rows(path, RowFormat(("text",), {})) if row]
    assert [row.values and row.values["text"] for row in found] == ["first", None, "last"]
    assert "is longer than 10000 bytes" in str(found[1].error)


@pytest.mark.usefixtures("small_limits")
def test_long_line_of_standard_input_is_one_broken_row(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "input"
    path.write_bytes(b"first\n" + b"a" * 300_000 + b"\n" + b"b" * 200_000 + b"\nlast")
    with path.open() as stream:
        monkeypatch.setattr("sys.stdin", stream)
        found = [row for row in read_rows(None, RowFormat(("text",), {})) if row]
    assert [row.values and row.values["text"] for row in found] == ["first", None, None, "last"]
    assert "standard input, line 3: is longer than 10000 bytes" in str(found[2].error)


def test_json_list_in_one_line_may_be_longer_than_a_line(tmp_path: Path) -> None:
    LIMITS.line_bytes = 1_000
    path = tmp_path / "list.json"
    path.write_text(" " * 70_000 + json.dumps([{"text": "a" * 100}] * 20))
    LIMITS.line_bytes = 10_000
    assert read(path) == [["a" * 100]] * 20


def test_all_broken_rows_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n' + "broken\n" * 30)
    with pytest.raises(DataError) as caught:
        read(path)
    first, *others, last = caught.value.messages
    assert first.startswith(f"{path}, line 2: broken JSON")
    assert len(others) == 9
    assert last == "and 20 more of 30 in total."


def test_all_cells_that_cannot_be_read_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    cells = [1, {"a": 1}, int(LONG_INTEGER[:400]), "b"]
    path.write_text("".join(json.dumps({"text": f"text {n}", "value": cells[n % 4]}) + "\n" for n in range(40)))
    job = ["plan", "trial=false", "data=files", f"data.train={path}"]
    assert main([*job, "task=regression"]) == 6
    error = capsys.readouterr().err
    assert f"{path}, row 2, column 'value': expected a number, got dict" in error
    assert f"{path}, row 3, column 'value': expected a finite number" in error
    assert "and 20 more of 30 in total" in error
    assert main([*job, "task=multilabel_classification", "data.columns.labels=value"]) == 6
    assert f"{path}, row 2, column 'value': expected a string, got dict" in capsys.readouterr().err
    assert (
        main([*job, "task=tabular_classification", "data.label=text", "data.text=none", "data.columns.features=value"])
        == 6
    )
    assert f"{path}, row 2, column 'value': expected a string, got dict" in capsys.readouterr().err


def test_hundred_thousand_columns(tmp_path: Path) -> None:
    path = tmp_path / "wide.csv"
    names = [f"column {number}" for number in range(100_000)]
    path.write_text(",".join(names) + "\n" + ",".join(["1"] * 100_000) + "\n")
    ((first, *_, last),) = read_records(path, names, separator=None, quote='"', column_remedy="")
    assert (first, last) == ("1", "1")
    with pytest.raises(DataError, match=r"no column 'text'.*and 99980 more") as caught:
        read(path)
    assert len(str(caught.value)) < 1_000


@pytest.mark.parametrize("name", ["pipe.csv", "device.csv", "folder.csv", "device.txt"])
def test_what_is_no_file_does_not_block(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    elif name.startswith("folder"):
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    source = ["data=lines"] if name.endswith(".txt") else ["data=files", "data.text=text", "data.label=label"]
    task = "causal_lm" if name.endswith(".txt") else "text_classification"
    assert main(["train", f"task={task}", *source, f"data.train={path}", f"run.dir={tmp_path / 'run'}"]) == 6
    error = capsys.readouterr().err
    assert str(path) in error
    assert "Traceback" not in error


def test_suggestions_are_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "texts.csv")
    assert main(["train", "data=files", f"data.train={tmp_path / 'text.csv'}"]) == 6
    assert "no such file" in (error := capsys.readouterr().err)
    assert "Did you mean" not in error


def image_bytes(image: Image.Image, file_format: str) -> bytes:
    stream = BytesIO()
    image.save(stream, format=file_format)
    return stream.getvalue()


IMAGES: dict[str, Callable[[], bytes]] = {
    "pixels": lambda: image_bytes(Image.new("1", (13_000, 13_000)), "PNG"),
    "eps": lambda: image_bytes(Image.new("RGB", (8, 8)), "EPS"),
    "cut": lambda: image_bytes(Image.effect_noise((64, 64), 90), "PNG")[:200],
    "text": lambda: b"no image",
    "empty": lambda: b"",
}


@pytest.mark.parametrize("name", IMAGES)
def test_image_that_must_not_be_decoded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(IMAGES[name]())
    for cell in ({"bytes": None, "path": str(path)}, {"bytes": path.read_bytes(), "path": None}):
        with pytest.raises(Exception, match="data.max_pixels" if name == "pixels" else None):
            decode_image(cell)  # type: ignore[arg-type]
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError, match="not a regular file"):
        decode_image({"bytes": None, "path": str(path)})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Return a folder of 30 images of two classes, 12 of which are broken."""
    for number in range(30):
        path = tmp_path / "pictures" / f"class_{number % 2}" / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8), 8 * number, dtype=np.uint8)
        path.write_bytes(image_bytes(Image.fromarray(pixels), "PNG") if number >= 12 else b"broken %d" % number)
    return tmp_path / "pictures"


def test_broken_images_are_listed_and_can_be_left_out(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = ["train", "task=image_classification", "data=imagefolder", "model=convnet", f"data.root={pictures}"]
    job += ["data.split={validation: 0.2, test: 0}", "train.duration=2", "train.batch_size=4", "device=cpu"]
    job += ["export.formats=[]", "logger.tensorboard=false", "run.dir=run"]
    with working_in(pictures.parent):
        assert main(job) == 6
        error = capsys.readouterr().err
        assert "cannot be decoded" in error
        assert max(line.count(".png") for line in error.splitlines()) == 1
        assert "data.drop_broken=true" in error
        # All of them count, of every split.
        assert error.count("cannot be decoded") == 10
        assert "and 2 more of 12 in total" in error
        assert main([*job, "data.drop_broken=true"]) == 0
        for path in sorted(pictures.rglob("*.png"))[:12]:
            if path.read_bytes().startswith(b"broken"):
                path.unlink()
        small = [*job, "run.dir=limited", "task.size=8", "task.channels=1", "task.mean=[0.5]", "task.std=[0.5]"]
        assert main([*small, "data.drop_broken=true", "data.max_pixels=63"]) == 6
        assert main([*small, "data.drop_broken=true", "data.max_pixels=64"]) == 0
    assert "left out 12 rows that cannot be encoded" in (pictures.parent / "run" / "trainer.log").read_text()


# Files of pyarrow, whose reader once ended the process


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Yield damaged copies of a file: flipped bits, overwritten and removed stretches, and cuts."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 8))):
            at = int(rng.integers(len(data)))
            action = int(rng.integers(4))
            if action == 0:
                data[at] ^= 1 << int(rng.integers(8))
            elif action == 1:
                data[at : at + 8] = rng.bytes(8)
            elif action == 2:
                data[at : at + 4] = int(rng.choice([0, 2**31 - 1, 2**32 - 1, 2**16])).to_bytes(4, "little")
            elif len(data) > 64:
                del data[at : at + int(rng.integers(1, 64))]
        yield bytes(data[: int(rng.integers(1, len(data) + 1))] if rng.integers(8) == 0 else data)


def damage_columnar_files(folder: Path, count: int, seed: int) -> None:
    """Read damaged copies of Arrow and Parquet files; every error is a DataError."""
    for name in ("table.arrow", "stream.arrow", "table.feather", "table.parquet"):
        path = folder / name
        if name == "table.parquet":
            parquet.write_table(TABLE, path)
        elif name == "table.feather":
            feather.write_feather(TABLE, path)
        else:
            make = pyarrow.ipc.new_file if name == "table.arrow" else pyarrow.ipc.new_stream
            with make(str(path), TABLE.schema) as writer:
                writer.write_table(TABLE, max_chunksize=50)
        for data in mutations(path.read_bytes(), count, seed):
            (folder / "last").write_bytes(data)
            (folder / f"damaged{path.suffix}").write_bytes(data)
            try:
                for record in read_records(
                    folder / f"damaged{path.suffix}", ["text", "label"], separator=None, quote=None, column_remedy=""
                ):
                    json.dumps(record, default=str)
            except DataError:
                pass


@pytest.mark.parametrize(("count", "seed"), [(60, 0), pytest.param(2_500, 1, marks=pytest.mark.slow)])
def test_damaged_columnar_files_do_not_end_the_process(count: int, seed: int, tmp_path: Path) -> None:
    code = f"from tests.hostile.test_readers import *; damage_columnar_files(Path({str(tmp_path)!r}), {count}, {seed})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=600)
    assert (result.returncode, result.stderr) == (0, "")
