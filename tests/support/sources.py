"""Small data files for every source that reads files."""

import gzip
import struct
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict
from PIL import Image

from tests.support.jobs import WORDS, rows

_SIZE = 14


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
    for prefix, number, seed in (("train", count, 0), ("t10k", count // 4, 1)):
        pictures, corners = images(number, seed)
        head = struct.pack(">IIII", 2051, number, _SIZE, _SIZE)
        if prefix == "train":
            (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pictures.tobytes(), mtime=0))
        else:
            (folder / f"{prefix}-images-idx3-ubyte").write_bytes(head + pictures.tobytes())
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, number) + corners.tobytes())


def write_images(folder: Path, count: int) -> None:
    """Write PNG files, one folder per corner."""
    for number, (picture, corner) in enumerate(zip(*images(count), strict=True)):
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
