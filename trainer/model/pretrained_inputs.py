"""What `from_pretrained` reads beside a model: the tokenizer, or the image processor, that makes its inputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_SPECIAL: Final[Mapping[str, tuple[str, ...]]] = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""What a tokenizer's special tokens are called, the likeliest first."""

_BILINEAR: Final = 2
"""PIL's number for it."""


def save_tokenizer(folder: Path, files: Mapping[str, str], inputs: list[str]) -> None:
    """Writes what `AutoTokenizer` reads, where the task has a tokenizer.

    Args:
        folder: The model's.
        files: The task's, of which `tokenizer.json` is read.
        inputs: The model's inputs, by name.
    """
    if "tokenizer.json" not in files:
        return
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    vocabulary = tokenizer.get_vocab()
    special = {
        role: next(token for token in names if token in vocabulary)
        for role, names in _SPECIAL.items()
        if any(token in vocabulary for token in names)
    }
    truncation = tokenizer.truncation
    tokenizer.no_truncation()
    length = {"model_max_length": truncation["max_length"]} if truncation else {}
    make: Any = PreTrainedTokenizerFast
    made = make(tokenizer_object=tokenizer, model_input_names=inputs, **length, **special)
    made.save_pretrained(folder)


def save_image_processor(folder: Path, files: Mapping[str, str]) -> None:
    """Writes `preprocessor_config.json`, which `AutoImageProcessor` reads, where the task reads images.

    Its class is ViT's, which does nothing but scale, for a model of any family. Cropping and padding to a size as the
    task does it has no counterpart there: then images are not scaled at all, so that one of another size is refused
    by most models rather than read in another way.

    Args:
        folder: The model's.
        files: The task's, of which `image.json` is read.
    """
    if "image.json" not in files:
        return
    settings = json.loads(files["image.json"])
    height, width = settings["size"]
    content = {
        "image_processor_type": "ViTImageProcessor",
        "do_convert_rgb": settings["channels"] == 3,
        "do_resize": settings["resize"] == "stretch",
        "size": {"height": height, "width": width},
        "resample": _BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": settings["mean"],
        "image_std": settings["std"],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
