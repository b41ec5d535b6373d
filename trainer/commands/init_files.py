"""Propose a training job for data that is no table: plain texts, tagged sentences, folders of images or of splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from trainer.commands.init_proposal import (
    Look,
    Proposal,
    Setting,
    image_settings,
    language_model_sizes,
    length_limit,
    length_settings,
    model_sizes,
    split_settings,
)
from trainer.commands.init_tables import look_at_table
from trainer.data.cells import IMAGE_SUFFIXES
from trainer.data.imagefolder import SPLIT_OF_NAME, ImageFolder
from trainer.data.language import count_tokens, guess_language
from trainer.data.profile import MAX_ROWS, first_lines, list_counts, profile_table
from trainer.data.readers import format_suffix, format_suffixes
from trainer.display import counted
from trainer.errors import DataError, RowErrors, format_error

TEXT_SUFFIXES = (".txt", ".text", ".md", ".log", ".conll", ".conllu", ".bio", ".iob", ".iob2")
"""Suffixes of files that are read as text, plain or with a word per line; `.gz` may follow."""

_LEAST_DOCUMENTS = 20
_MAX_IMAGES = 2_000
_TAG_STARTS = ("B-", "I-", "S-", "E-", "L-", "U-")


def is_text_file(path: Path) -> bool:
    """Return whether a file is read as plain text: by its suffix."""
    names = path.name.lower().removesuffix(".gz")
    return names.endswith(TEXT_SUFFIXES)


def look_at_text_file(path: Path) -> Look:
    """Return the look of a plain text file, or of tagged sentences with a word per line.

    Raises:
        DataError: It cannot be read, or is too short.
    """
    lines = list(first_lines(path, MAX_ROWS))
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise DataError(format_error(str(path), "is empty", "Name another file"))
    is_conllu = path.name.lower().removesuffix(".gz").endswith(".conllu")
    tagged = [line for line in filled if not line.startswith("#")] if is_conllu else filled
    if is_conllu or _is_tagged(lines):
        return _look_at_sentences(path, lines, tagged, is_conllu=is_conllu)
    blocks = _num_blocks(lines)
    unit = "blank" if blocks >= _LEAST_DOCUMENTS and blocks < len(filled) / 1.5 else "line"
    documents = blocks if unit == "blank" else len(filled)
    if documents < _LEAST_DOCUMENTS:
        problem = f"has {documents} lines, which are too few to hold some out"
        raise DataError(format_error(str(path), problem, "Write one document per line"))
    tokens = sum(map(count_tokens, filled)) / documents
    language = guess_language(filled)
    described = f"{path}: {documents:,} {'paragraphs' if unit == 'blank' else 'lines'} of about {tokens:.0f} tokens"
    settings = [
        Setting("data.train", str(path)),
        Setting("data.documents", unit, "the lines up to a blank one are one text" if unit == "blank" else ""),
        *split_settings(documents),
        *language_model_sizes(),
        *length_settings(documents, is_whole=len(lines) < MAX_ROWS),
    ]
    proposal = Proposal(f"Learn to continue the texts of {path.name}", "causal_lm", "lines", settings)
    return Look([described + (f", {language}" if language else "")], proposal, documents, "texts")


def _num_blocks(lines: Sequence[str]) -> int:
    """Return the number of texts between blank lines."""
    starts = zip(["", *lines], lines, strict=False)
    return sum(bool(line.strip()) and not before.strip() for before, line in starts)


def _is_tagged(lines: Sequence[str]) -> bool:
    """Return whether lines are words with tags: columns of one number, and tags that repeat in the last one."""
    rows = [line.split() for line in lines[:5_000] if line.strip() and not line.startswith("-DOCSTART-")]
    widths = Counter(map(len, rows))
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    if width < 2 or count < len(rows) or _num_blocks(lines) < 2:
        return False
    tags = Counter(row[-1] for row in rows)
    return len(tags) <= max(3, len(rows) / 10) and (any(tag.startswith(_TAG_STARTS) for tag in tags) or width > 2)


def _look_at_sentences(path: Path, lines: Sequence[str], words: Sequence[str], *, is_conllu: bool) -> Look:
    column = 3 if is_conllu else -1
    cells = [line.rstrip("\n").split("\t") if is_conllu else line.split() for line in words]
    cells = [row for row in cells if len(row) > 1 and row[0] != "-DOCSTART-"]
    tags = Counter(row[column] for row in cells if len(row) > column)
    sentences = _num_blocks(lines)
    layout = {"data.word": 1, "data.tag": 3, "data.separator": "\t", "data.comment": "#"} if is_conllu else {}
    settings = [
        Setting("data.train", str(path)),
        *(Setting(key, value) for key, value in layout.items()),
        *split_settings(sentences),
        Setting("task.max_length", length_limit(3 * len(cells) // max(1, sentences)), "tokens of a sentence"),
        *model_sizes("text_encoder", sentences),
        *length_settings(sentences, is_whole=len(lines) < MAX_ROWS),
    ]
    summary = f"Tag each word of a sentence with one of {len(tags)} tags"
    described = [f"{path}: {sentences:,} sentences, {len(cells):,} words", f"  tags  {list_counts(tags)}"]
    return Look(described, Proposal(summary, "token_classification", "conll", settings), sentences, "sentences")


def look_at_folder(path: Path, target: str | None, text: str | None) -> Look | Path:
    """Return the look of a folder: images by class, or a file per split; the file if there is only one.

    Raises:
        DataError: It contains neither, or cannot be read.
    """
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.name.startswith(".")]
    data = [file for file in files if format_suffix(file) or is_text_file(file)]
    splits = {SPLIT_OF_NAME.get(file.name.partition(".")[0].casefold()): file for file in data if format_suffix(file)}
    if "train" in splits:
        return _look_at_splits({split: splits[split] for split in splits if split is not None}, target, text)
    if len(data) == 1:
        return data[0]
    if any(_has_images(folder) for folder in path.iterdir() if folder.is_dir()):
        return _look_at_images(path)
    if any(file.suffix.lower() in IMAGE_SUFFIXES for file in files):
        problem, remedy = "has images, but no folder for each class", f"Move them into folders: {path}/<class>/<file>"
        raise DataError(format_error(str(path), problem, remedy))
    problem = "has no folder of images for each class, and no file train with one of the suffixes of data"
    remedy = (
        f"Name a file, or a folder of images as {path}/<class>/<file>. Suffixes of data: {', '.join(format_suffixes())}"
    )
    raise DataError(format_error(str(path), problem, remedy))


def _has_images(folder: Path) -> bool:
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*"))


def _look_at_splits(splits: dict[str, Path], target: str | None, text: str | None) -> Look:
    look = look_at_table(profile_table(splits["train"]), target, text)
    names = [
        Setting(f"data.{split}", str(splits[split])) for split in ("train", "validation", "test") if split in splits
    ]
    replaced = {"data.train", *(f"data.split.{split}" for split in splits)}
    others = [setting for setting in look.proposal.settings if setting.key not in replaced]
    noted = [f"{split}: {file}" for split, file in splits.items()]
    return replace(look, lines=[*noted, *look.lines], proposal=replace(look.proposal, settings=[*names, *others]))


def _look_at_images(path: Path) -> Look:
    from PIL import Image, UnidentifiedImageError

    images = ImageFolder(str(path), None, {"validation": 0.1, "test": 0.1}, None).images
    counts = Counter(label for _, label in images["train"])
    num_images = counts.total()
    if len(counts) < 2:
        problem, remedy = "has one class only, so there is nothing to learn", "Add a folder for each other class"
        raise DataError(format_error(str(path), problem, remedy, value=next(iter(counts))))
    sizes: Counter[tuple[int, int]] = Counter()
    errors = RowErrors()
    for file, _ in images["train"][:: max(1, num_images // _MAX_IMAGES)]:
        try:
            with Image.open(file) as image:
                sizes[image.size] += 1
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            errors.add(format_error(str(file), "is no image that can be read", "Remove it, or write it again"))
    errors.raise_if_any()
    sides = sorted(min(size) for size in sizes.elements())
    side = sides[len(sides) // 2]
    size = None if len(sizes) == 1 and side <= 64 else min(64, max(16, side // 8 * 8))
    own = {f"data.split.{split}" for split in images}
    settings = [
        Setting("data.root", str(path)),
        *(setting for setting in split_settings(num_images) if setting.key not in own),
        *image_settings(size),
        *length_settings(num_images),
    ]
    described = "{} x {} pixels".format(*next(iter(sizes)))
    if len(sizes) > 1:
        shorter = f"{sides[0]} to {sides[-1]}" if sides[0] < sides[-1] else f"{side}"
        described = f"of {counted(len(sizes), 'size')}, the shorter side {shorter} pixels"
    lines = [
        f"{path}: {num_images:,} images in {len(counts)} classes, {described}",
        f"  classes  {list_counts(counts)}",
    ]
    summary = f"Predict the class of an image, one of {len(counts)}"
    return Look(lines, Proposal(summary, "image_classification", "imagefolder", settings), num_images, "images")
