"""Small data files for every source that reads files."""

import csv
import gzip
import json
import struct
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image

from tests.support.jobs import TINY, WORDS, rows, write_roles

_SIZE = 14
_SETS = ("clean", "noisy")
_IDX_FILES = {name: f"{{images: idx/{name}-images-idx3-ubyte, labels: idx/{name}-labels-idx1-ubyte}}" for name in _SETS}

IDX_SETS = (
    "task=image_classification",
    *("data=idx", "data.folder=idx", "data.cache_dir=cache", "data.split.test=0"),
    f"data.validation={{{', '.join(f'{name}: {files}' for name, files in _IDX_FILES.items())}}}",
)
FOLDER_SETS = (
    "task=image_classification",
    *("data=imagefolder", "data.root=images", "data.cache_dir=cache", "data.split.test=0"),
    "data.validation={clean: clean, noisy: noisy}",
)
"""Two named validation sets of images, of `write_image_sets`, in the working directory."""

HUB_SPLITS = (
    *("data=hub", "data.path=saved_splits", "data.cache_dir=cache", "data.split.test=0"),
    "data.splits={train: [one, two], validation: validation, test: null}",
    *("data.mix={one: 1, two: 2}", "loader.sampler=weighted", "loader.weights=weight"),
)
"""Training on two splits of a saved data set in other shares than their rows, by the weights of a column."""

CORRECTED = (
    *("data=files", "data.train=train.jsonl", "data.validation=validation.jsonl", "data.test=test.jsonl"),
    *("data.cache_dir=cache", "data.corrections=corrections.csv"),
)
"""Training on labels some of which a file corrects."""

ON_SOURCES = {
    "corrections": [*TINY[:6], *CORRECTED, "loader.sampler=balanced"],
    "hub splits": [*TINY[:6], *HUB_SPLITS],
    "sets of idx": [*IDX_SETS, "checkpoint.monitor=noisy/loss"],
    "sets of imagefolder": [*FOLDER_SETS, "checkpoint.monitor=noisy/accuracy", "loader.workers=1"],
}
"""Jobs on what `write_job_sources` writes, in the working directory, with their data and their sizes."""


def write_job_sources(folder: Path) -> None:
    """Write what the jobs of `ON_SOURCES` read."""
    write_roles(folder)
    write_image_sets(folder)
    texts = rows(81)
    columns = {
        "text": [text for text, _ in texts],
        "label": [label for _, label in texts],
        "weight": [1.0 + number % 3 for number in range(len(texts))],
    }
    parts = {"one": slice(0, 41), "two": slice(41, 61), "validation": slice(61, 81)}
    splits = {name: {key: values[part] for key, values in columns.items()} for name, part in parts.items()}
    saved = {name: Dataset.from_dict(table) for name, table in splits.items()}
    DatasetDict(saved).save_to_disk(folder / "saved_splits")
    with (folder / "corrections.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "row", "label", "correction"])
        for number, line in enumerate((folder / "train.jsonl").read_text(encoding="utf-8").splitlines(), 1):
            label = json.loads(line)["label"]
            if number % 4 == 0:
                writer.writerow(["train.jsonl", number, label, "tool" if label == "animal" else "animal"])


def write_image_sets(folder: Path) -> None:
    """Write what `IDX_SETS` and `FOLDER_SETS` read."""
    write_idx(folder / "idx", 61)
    write_images(folder / "images", 61)
    for seed, name in enumerate(_SETS, 2):
        write_images(folder / name, 20, seed)
        write_idx_pair(folder / "idx" / name, 20, seed)


def write_sources(folder: Path) -> None:
    """Write `lines.txt`, `tagged.conll`, `idx/`, `images/` and `saved/` in a folder."""
    texts = rows(120)
    (folder / "lines.txt").write_text("\n".join(text for text, _ in texts) + "\n", encoding="utf-8")
    sentences = [[(word, "B-TOOL" if word in WORDS["tool"] else "O") for word in text.split()] for text, _ in texts]
    tagged = "\n".join("".join(f"{word} {tag}\n" for word, tag in sentence) for sentence in sentences)
    (folder / "tagged.conll").write_text(tagged, encoding="utf-8")
    write_idx(folder / "idx", 120)
    write_images(folder / "images", 60)
    columns = {"text": [text for text, _ in texts], "label": [label for _, label in texts]}
    parts = {"train": slice(0, 80), "validation": slice(80, 100), "test": slice(100, 120)}
    saved = {
        name: Dataset.from_dict({key: value[part] for key, value in columns.items()}) for name, part in parts.items()
    }
    DatasetDict(saved).save_to_disk(folder / "saved")


def images(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return noisy gray images (N, 14, 14), uint8, with a bright square in a corner, and the corners (N,), 0 to 3."""
    random = np.random.default_rng(seed)
    pictures = random.integers(0, 60, size=(count, _SIZE, _SIZE), dtype=np.uint8)
    corners = np.arange(count, dtype=np.uint8) % 4
    for picture, corner in zip(pictures, corners, strict=True):
        top, left = 8 * (corner // 2), 8 * (corner % 2)
        picture[top : top + 5, left : left + 5] += 150
    return pictures, corners


def write_idx(folder: Path, count: int) -> None:
    """Write four files with the names of MNIST's; the training images are compressed."""
    folder.mkdir()
    write_idx_pair(folder / "train", count, 0)
    write_idx_pair(folder / "t10k", count // 4, 1)
    plain = folder / "train-images-idx3-ubyte"
    plain.with_name(f"{plain.name}.gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
    plain.unlink()


def write_idx_pair(start: Path, count: int, seed: int) -> None:
    """Write a file of images and a file of labels whose names start with the name of `start`."""
    pictures, corners = images(count, seed)
    head = struct.pack(">IIII", 2051, count, _SIZE, _SIZE)
    start.with_name(f"{start.name}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
    labels = struct.pack(">II", 2049, count) + corners.tobytes()
    start.with_name(f"{start.name}-labels-idx1-ubyte").write_bytes(labels)


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    """Write PNG files, one folder per corner."""
    for number, (picture, corner) in enumerate(zip(*images(count, seed), strict=True)):
        place = folder / f"corner_{corner}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{number}.png")


def write_pretrained(folder: Path) -> None:
    """Write `bert/` (with a tokenizer) and `resnet/`, tiny models of transformers with random weights."""
    from transformers import BertConfig, BertModel, ResNetConfig, ResNetModel

    from trainer.task.tokenization import train_wordpiece

    tokenizer = train_wordpiece([[text for text, _ in rows(60)]], vocab_size=200, lowercase=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    size = tokenizer.get_vocab_size()
    BertModel(BertConfig(vocab_size=size, max_position_embeddings=32, **sizes)).save_pretrained(folder / "bert")
    tokenizer.save(str(folder / "bert/tokenizer.json"))
    small = ResNetConfig(num_channels=1, embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(small).save_pretrained(folder / "resnet")
