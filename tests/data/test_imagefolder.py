import logging
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer.data.imagefolder import ImageFolder
from trainer.errors import ConfigError, DataError

pytestmark = pytest.mark.usefixtures("working_folder")

SHARES = {"validation": 0.1, "test": 0.1}
ROLES = ("image", "label")


def folder(root: str = "root", **changes: Any) -> ImageFolder:
    return ImageFolder(root, **{"validation": None, "split": SHARES, "cache_dir": "cache"} | changes)


def write(*paths: str) -> None:
    """Write files that are not images: a source does not decode them."""
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(path.encode())


def paths_and_labels(source: ImageFolder) -> dict[str, list[tuple[str, str]]]:
    """Return (path below the root, label) of each row."""
    root = f"{Path('root').absolute()}/"
    return {
        split: [(row["image"]["path"].removeprefix(root), row["label"]) for row in rows]
        for split, rows in source.load(ROLES).items()
    }


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_each_split_has_a_folder_of_its_own(name: str) -> None:
    write(
        "root/train/b/2.PNG",
        "root/train/b/10.jpg",
        "root/train/a/x/1.png",
        "root/test/a/1.webp",
        f"root/{name}/c/1.gif",
    )
    source = folder()

    assert paths_and_labels(source) == {
        "train": [("train/a/x/1.png", "a"), ("train/b/10.jpg", "b"), ("train/b/2.PNG", "b")],
        "validation": [(f"{name}/c/1.gif", "c")],
        "test": [("test/a/1.webp", "a")],
    }
    rows = source.load(ROLES)
    assert [source.describe_row("train", row) for row in rows["train"]["row"]][1] == "root/train/b/10.jpg"
    assert source.describe_row("test", rows["test"]["row"][0]) == "root/test/a/1.webp"
    assert {row["image"]["bytes"] for row in rows["train"]} == {None}


@pytest.mark.parametrize("training", ["root", "root/train"])
def test_validation_folders_have_names(training: str) -> None:
    write(f"{training}/a/1.png", f"{training}/b/2.png", "root/web/a/3.png", "root/web/b/4.png", "else/a/5.png")
    source = folder(validation={"web": "root/web", "else": "else"}, split=SHARES | {"test": 0})

    splits = source.load(ROLES)

    assert {name: rows["label"][:] for name, rows in splits.items()} == {
        "train": ["a", "b"],
        "validation/web": ["a", "b"],
        "validation/else": ["a"],
    }
    assert source.describe_row("validation/web", splits["validation/web"]["row"][1]) == "root/web/b/4.png"
    assert len(folder(validation="root/web", split=SHARES | {"test": 0}).load(ROLES)["validation"]) == 2


def test_validation_images_are_found_after_a_move() -> None:
    write("root/a/1.png", "root/b/2.png", "first/a/3.png")
    shares = SHARES | {"test": 0}
    folder(validation="first", split=shares).load(ROLES)
    Path("first").rename("second")
    (image,) = folder(validation="second", split=shares).load(ROLES)["validation"]["image"]
    assert image["path"] == str(Path("second/a/3.png").absolute())


def test_validation_folders_that_cannot_be_used_are_reported() -> None:
    write("root/train/a/1.png", "root/val/a/2.png", "other/a/3.png")
    with pytest.raises(DataError, match=r"root/val: is validation data that data\.validation does not name\. Add it"):
        _ = folder(validation="other").images
    assert folder(validation={"val": "root/val"}).images["validation/val"]
    with pytest.raises(DataError, match=r"data\.validation\.web: no such folder, got 'web'"):
        _ = folder(validation={"web": "web"}).images
    with pytest.raises(ConfigError, match=r"data\.validation: the name of a validation set"):
        folder(validation={"train": "other"})


def test_case_of_the_names_of_splits_does_not_matter() -> None:
    write("root/Train/a/1.png", "root/Train/b/1.png", "root/VAL/a/1.png", "root/Testing/b/1.png")

    assert paths_and_labels(folder()) == {
        "train": [("Train/a/1.png", "a"), ("Train/b/1.png", "b")],
        "validation": [("VAL/a/1.png", "a")],
        "test": [("Testing/b/1.png", "b")],
    }


@pytest.mark.parametrize("other", ["root/dog/outdoor/1.png", "root/dog/1.png"])
def test_class_folders_with_other_contents_are_no_splits(other: str, caplog: pytest.LogCaptureFixture) -> None:
    write("root/cat/indoor/1.png", "root/cat/garden/1.png", "root/dog/indoor/1.png", "root/dog/garden/1.png", other)
    folder().fingerprint  # noqa: B018  it is computed when it is asked for

    assert caplog.messages == []


def test_shares_depend_on_the_content_of_images() -> None:
    write(*(f"root/类{n % 2}/{n}.png" for n in range(200)))
    for number in range(0, 200, 2):
        Path(f"root/类0/copy{number}.png").write_bytes(Path(f"root/类0/{number}.png").read_bytes())
    source = folder()

    splits = source.load(ROLES)

    assert sum(map(len, splits.values())) == 300
    contents = [{Path(row["image"]["path"]).read_bytes() for row in rows} for rows in splits.values()]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 200
    for split, rows in splits.items():
        assert all(source.describe_row(split, row["row"]).endswith(row["image"]["path"][-8:]) for row in rows)
        assert {row["label"] for row in rows} == {"类0", "类1"}


def test_classes_may_have_the_names_of_splits() -> None:
    write(*(f"root/{name}/{number}.png" for name in ("train", "test", "car") for number in range(50)))

    assert {label for rows in paths_and_labels(folder()).values() for _, label in rows} == {"train", "test", "car"}


def test_hidden_files_are_skipped_and_other_files_reported(caplog: pytest.LogCaptureFixture) -> None:
    write("root/train/a/1.png", "root/train/a/.2.png", "root/train/.b/3.png", "root/train/a/.c/4.png")
    write(
        "root/val/a/1.png", "root/.DS_Store", "root/train/a/notes.txt", "root/train/a/x/readme.md", "root/train/z.png"
    )

    assert paths_and_labels(folder(split=SHARES | {"test": 0})) == {
        "train": [("train/a/1.png", "a")],
        "validation": [("val/a/1.png", "a")],
    }
    warning = (
        "data.root: skipped 3 files outside of class folders or without an image suffix; the first is root/train/z.png"
    )
    assert caplog.record_tuples == [("trainer.data.imagefolder", logging.WARNING, warning)]


def test_links_are_followed_and_cycles_end() -> None:
    write("root/train/a/1.png", "root/val/a/1.png", "far/more/2.png")
    Path("root/train/a/2.png").symlink_to(Path("far/more/2.png").absolute())
    Path("root/train/b").symlink_to(Path("far").absolute())
    Path("far/again").symlink_to(Path("far").absolute())

    assert paths_and_labels(folder(split=SHARES | {"test": 0}))["train"] == [
        ("train/a/1.png", "a"), ("train/a/2.png", "a"), ("train/b/more/2.png", "b"),
    ]  # fmt: skip


def test_fingerprint_depends_on_contents_and_classes_but_not_on_the_path() -> None:
    write("root/train/a/1.png", "root/val/a/1.png")
    fingerprint = folder().fingerprint

    Path("root").rename("moved")
    assert folder("moved").fingerprint == fingerprint
    (path,) = [row["image"]["path"] for row in folder("moved", split=SHARES | {"test": 0}).load(ROLES)["train"]]
    assert path == str(Path("moved/train/a/1.png").absolute())
    Path("moved/train/a").rename("moved/train/b")
    assert folder("moved").fingerprint != fingerprint
    Path("moved/train/b").rename("moved/train/a")
    Path("moved/train/a/1.png").write_bytes(b"root/train/a/2.png")
    assert folder("moved").fingerprint != fingerprint


def test_real_images_can_be_decoded_from_their_paths() -> None:
    for number in range(2):
        Path(f"root/{('train', 'val')[number]}/a").mkdir(parents=True)
        Image.new("RGB", (3, 2), (number, 0, 0)).save(f"root/{('train', 'val')[number]}/a/{number}.png")

    (row,) = folder(split=SHARES | {"test": 0}).load(ROLES)["train"]

    with Image.open(row["image"]["path"]) as image:
        assert image.size == (3, 2)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["other/1.png"], "data.root: no such folder, got 'root'. Paths are relative to /"),
        (["root/1.png"], "root: has no folder with images: root/<class>/<file>. Images end in .bmp, .gif"),
        (["root/a/1.txt"], "root: has no folder with images"),
        (["root/train/a/1.png", "root/test/1.png"], "root/test: has no folder with images: root/test/<class>/<file>."),
        (
            ["root/train/a/1.png", "root/tst/a/1.png"],
            "root: has a folder that is not a split next to train, got 'tst'. Name the folders of splits",
        ),
        (
            ["root/train/a/1.png", "root/val/a/1.png", "root/valid/a/1.png"],
            "root/valid: is the validation split, and so is root/val.",
        ),
        (
            ["root/a/1.png"],
            "data.split: training has 1 row, and none was assigned to train and validation by the shares validation",
        ),
    ],
)
def test_unusable_folder_is_one_message(paths: list[str], message: str) -> None:
    write(*paths)

    with pytest.raises(DataError, match="^" + re.escape(message)):
        folder().load(ROLES)


def test_broken_link_is_one_message() -> None:
    write("root/train/a/1.png", "root/val/a/1.png")
    Path("root/train/a/2.png").symlink_to("nowhere.png")

    with pytest.raises(DataError, match=r"^root/train/a/2\.png: cannot be read: No such file or directory\."):
        folder().load(ROLES)


def test_arguments_out_of_range_are_rejected() -> None:
    for changes, key in (
        ({"root": ""}, "root"),
        ({"split": SHARES | {"validation": 0}}, r"split\.validation"),
        ({"split": {"validation": 0.5, "test": 0.5}}, "split"),
        ({"split": {}}, "split"),
    ):
        with pytest.raises(ConfigError, match=f"^{key}: "):
            folder(**changes)  # type: ignore[arg-type]
    assert folder().describe_role("image") == "the column image of data=imagefolder"


def test_links_out_of_the_folder_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    write("root/a/1.png", "root/b/1.png", "else/c/3.png", "else/4.png")
    Path("root/b/inside.png").symlink_to(Path("root/a/1.png").absolute())
    Path("root/b/loop.png").symlink_to("loop.png")
    assert len(folder().images["train"]) == 4
    assert not caplog.messages
    Path("root/c").symlink_to(Path("else/c").absolute())
    Path("root/a/4.png").symlink_to(Path("else/4.png").absolute())
    assert len(folder().images["train"]) == 6
    place = Path("else/c").absolute()
    assert caplog.messages == [
        f"data.root: followed links out of root to 2 places; the first is root/c, which is {place}"
    ]


def test_a_split_that_is_a_link_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    write("else/a/1.png", "root/val/a/2.png")
    Path("root/train").symlink_to(Path("else").absolute())
    assert folder().images.keys() == {"train", "validation"}
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("data.root: followed links out of root to 1 place; the first is root/train, ")
