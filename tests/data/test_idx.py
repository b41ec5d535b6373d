import gzip
import re
import struct
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer.data.idx import Idx, read_idx
from trainer.errors import ConfigError, DataError

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = ("image", "label")
NONE: dict[str, str | None] = {"images": None, "labels": None}


@pytest.fixture(autouse=True)
def _folder(working_folder: Path) -> None:
    Path("mnist").mkdir()


def packed(values: np.ndarray, type_code: int = 0x08) -> bytes:
    return bytes((0, 0, type_code, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 5, 4), dtype=np.uint8)


def write(prefix: str, count: int, sign: str = "-", end: str = "", seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    images, labels = pixels(count, seed), np.arange(count, dtype=np.uint8) % 10
    for name, values in {f"images{sign}idx3": images, f"labels{sign}idx1": labels}.items():
        content = packed(values)
        Path("mnist", f"{prefix}-{name}-ubyte{end}").write_bytes(gzip.compress(content, mtime=0) if end else content)
    return images, labels


def idx(folder: str | None = "mnist", **changes: Any) -> Idx:
    arguments = {"train": NONE, "validation": NONE, "test": NONE, "split": SHARES, "cache_dir": "cache"}
    return Idx(folder, **arguments | changes)


@pytest.mark.parametrize(("sign", "end"), [("-", ""), (".", ""), ("-", ".gz")])
def test_folder_with_standard_names(sign: str, end: str) -> None:
    images, labels = write("train", 200, sign, end)
    held, _ = write("t10k", 30, sign, end, seed=1)
    source = idx()

    splits = source.load(ROLES)

    assert len(splits["train"]) + len(splits["validation"]) == 200
    assert len(splits["test"]) == 30
    for split, rows in splits.items():
        for row in rows:
            name, number = source.describe_row(split, row["row"]).split(", image ")
            assert name == f"mnist/{'t10k' if split == 'test' else 'train'}-images{sign}idx3-ubyte{end}"
            with Image.open(BytesIO(row["image"]["bytes"])) as image:
                expected = (held if split == "test" else images)[int(number) - 1]
                assert np.array_equal(np.asarray(image), expected)
            assert row["label"] == str(labels[int(number) - 1])
    assert source.describe_role("label") == "data.train.labels"


def test_without_test_files_a_share_of_training_is_held_out() -> None:
    write("train", 200)

    splits = idx().load(("image",))

    assert sum(map(len, splits.values())) == 200
    assert splits["test"].column_names == ["image", "row"]


def test_files_may_have_any_name() -> None:
    write("train", 200)
    Path("mnist/train-images-idx3-ubyte").rename("a")
    Path("mnist/train-labels-idx1-ubyte").rename("b")

    source = idx(None, train={"images": "a", "labels": "b"}, split=SHARES | {"test": 0})

    assert {split: len(rows) for split, rows in source.load(ROLES).items()}.keys() == {"train", "validation"}
    assert source.describe_row("validation", 7) == "a, image 7"


@pytest.mark.parametrize("folder", ["mnist", None])
def test_validation_files_have_names(folder: str | None) -> None:
    write("train", 40)
    for seed, prefix in enumerate(("clean", "noisy"), 1):
        write(prefix, 10 * seed, seed=seed)
    train, clean, noisy = (
        {key: f"mnist/{prefix}-{key}-{code}-ubyte" for key, code in (("images", "idx3"), ("labels", "idx1"))}
        for prefix in ("train", "clean", "noisy")
    )
    sets = {"validation": {**NONE, "clean": clean, "noisy": noisy}, "train": NONE if folder else train}
    source = idx(folder, **sets, split=SHARES | {"test": 0})

    splits = source.load(ROLES)

    assert {name: len(rows) for name, rows in splits.items()} == {
        "train": 40,
        "validation/clean": 10,
        "validation/noisy": 20,
    }
    assert source.describe_row("validation/noisy", splits["validation/noisy"]["row"][3]).startswith(noisy["images"])
    with pytest.raises(ConfigError, match=r"validation: must have the files images and labels of each set: \{clean"):
        idx(folder, **sets | {"validation": {**NONE, "clean": {"images": "x"}}})
    with pytest.raises(ConfigError, match="validation: must name the files of each set, or of one set without a name"):
        idx(folder, **sets | {"validation": {**clean, "noisy": noisy}})


def test_duplicates_share_a_split() -> None:
    images = np.repeat(pixels(100), 3, axis=0)
    Path("a").write_bytes(packed(images))
    Path("b").write_bytes(packed(np.zeros(300, dtype=np.uint8)))

    splits = idx(None, train={"images": "a", "labels": "b"}).load(ROLES)

    images_of_splits = [{row["image"]["bytes"] for row in rows} for rows in splits.values()]
    assert sum(map(len, images_of_splits)) == len(set.union(*images_of_splits)) == 100


def test_fingerprint_depends_on_content_and_shares() -> None:
    write("train", 20)
    fingerprint = idx().fingerprint

    assert idx().fingerprint == fingerprint != idx(split=SHARES | {"test": 0.2}).fingerprint
    write("train", 20, seed=1)
    assert idx().fingerprint != fingerprint


def test_labels_may_have_any_integer_type() -> None:
    for type_code, dtype in ((0x09, ">i1"), (0x0B, ">i2"), (0x0C, ">i4")):
        Path("a").write_bytes(packed(np.array([1, -2, 100], dtype=dtype), type_code))
        assert read_idx(Path("a"), num_dims=1, type_codes=[0x08, type_code]).tolist() == [1, -2, 100]


IMAGES, LABELS = packed(pixels(3)), packed(np.arange(3, dtype=np.uint8))


BROKEN: list[tuple[bytes, bytes, str]] = [
    (LABELS, LABELS, "a: is not an IDX file with 3 dimensions: the magic number must be 00000803, got '00000801'. Are"),
    (IMAGES, IMAGES, "b: is not an IDX file with 1 dimension: the magic number must be 00000801, got '00000803'."),
    (gzip.compress(IMAGES, mtime=0), LABELS, "a: is not an IDX file with 3 dimensions: "),
    (b"", LABELS, "a: is not an IDX file with 3 dimensions: the magic number must be 00000803, got ''."),
    (IMAGES[:-1], LABELS, "a: must have 76 bytes for 3 x 5 x 4 numbers, got 75. The file is truncated"),
    (IMAGES + b"0", LABELS, "a: must have 76 bytes for 3 x 5 x 4 numbers, got 77."),
    (IMAGES[:14], LABELS, "a: must have at least 16 bytes, got 14."),
    (IMAGES[:7], LABELS, "a: must have at least 16 bytes, got 7."),
    (IMAGES, LABELS[:-1], "b: must have 11 bytes for 3 numbers, got 10."),
    (packed(pixels(4)), LABELS, "b: must have a label for each of the 4 images of a, got 3."),
    (packed(pixels(0)), packed(np.zeros(0, dtype=np.uint8)), "a: contains no images."),
    (packed(np.zeros((3, 0, 4), np.uint8)), LABELS, "a: has images without pixels, got (3, 0, 4)."),
]


def test_broken_file_is_one_message() -> None:
    for images, labels, message in BROKEN:
        Path("a").write_bytes(images)
        Path("b").write_bytes(labels)

        with pytest.raises(DataError, match="^" + re.escape(message)) as caught:
            idx(None, train={"images": "a", "labels": "b"}).load(ROLES)

        assert len(caught.value.messages) == 1


def test_damaged_gzip_file_is_one_message() -> None:
    Path("b").write_bytes(LABELS)
    for content in (gzip.compress(IMAGES, mtime=0)[:-9], IMAGES):
        Path("a.gz").write_bytes(content)

        with pytest.raises(DataError, match=r"^a\.gz: cannot be read: .*Check that"):
            idx(None, train={"images": "a.gz", "labels": "b"}).load(ROLES)


def test_folder_without_the_files_is_one_message() -> None:
    with pytest.raises(DataError, match=r"^mnist: has no train-images-idx3-ubyte and no train-labels-idx1-ubyte\."):
        _ = idx().fingerprint
    write("train", 20)
    Path("mnist/t10k-labels-idx1-ubyte").touch()
    with pytest.raises(DataError, match=r"^mnist: has no t10k-images-idx3-ubyte\. Files may be plain or \.gz"):
        _ = idx().fingerprint
    with pytest.raises(DataError, match=r"^data\.folder: no such folder, got 'nowhere'\."):
        _ = idx("nowhere").fingerprint


@pytest.mark.parametrize(
    ("folder", "changes", "keys"),
    [
        (None, {}, ["folder"]),
        ("", {}, ["folder"]),
        ("a", {"train": {"images": "a", "labels": "b"}}, ["folder"]),
        ("a", {"test": {"images": None, "labels": "b"}}, ["test", "folder"]),
        (
            None,
            {"train": {"images": "a", "labels": None}, "test": {"images": None, "labels": "b"}},
            ["train", "test"],
        ),
        ("a", {"test": {}}, ["test"]),
        ("a", {"split": SHARES | {"test": 1}}, ["split.test"]),
        ("a", {"split": {"validation": 0.5, "test": 0.5}}, ["split"]),
        ("a", {"split": {"validation": 0, "test": 0.5}}, ["split.validation"]),
    ],
)
def test_arguments_out_of_range_are_rejected(folder: str | None, changes: dict[str, Any], keys: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        idx(folder, **changes)

    assert [message.partition(": ")[0] for message in caught.value.messages] == keys
