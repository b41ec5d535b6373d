"""Save and load a pretrained model in the folder layout of its own library, as its `save_pretrained` would.

The library is transformers, or sentence-transformers for embeddings of texts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.layout import MODEL, TOKENIZER, Document, expand_home
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_image import PretrainedImage
from trainer.model.pretrained_loading import AutoClass, make_model, quiet
from trainer.shapes import to_json

if TYPE_CHECKING:
    # Takes seconds; a model of ours does not need the library.
    from transformers import PreTrainedModel

LibraryModel = Pretrained | PretrainedImage
"""A model of ours that wraps a model of a library."""

HEAD: Final = "head.safetensors"
ABOUT: Final = "trainer.json"
"""Describes the model next to it; a folder with this file was written by `save`."""

_TOLERANCE: Final = 1e-5
"""Largest difference between outputs that are equal up to rounding."""

_HEAD_CONFIG: Final = "head.json"
_DENSE: Final = "2_Dense/model.safetensors"
_POOLING_MODES: Final = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
"""Names of pooling modes in sentence-transformers, which versions before and after 5 understand."""

_SPECIAL_TOKENS: Final[Mapping[str, tuple[str, ...]]] = {
    "pad_token": ("[PAD]", "<pad>", "<|pad|>", "<|endoftext|>", "</s>"),
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]", "<s>"),
    "sep_token": ("[SEP]", "</s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""Usual names of a tokenizer's special tokens, the most likely first."""

_PIL_BILINEAR: Final = 2


def save(
    model: LibraryModel,
    folder: Path,
    example: Mapping[str, Tensor],
    files: Mapping[str, str],
    *,
    max_length: int | None,
    half: bool,
) -> Document:
    """Write a model as its library would: `config.json`, `model.safetensors`, and the tokenizer or image processor.

    The class is a language model with its own head; or `model.headed`, if that class gives this model's outputs with
    these weights; or else the class without a head. In the last case this model's head is written to
    `head.safetensors`, and `head.json` describes its input and names its outputs. Text embeddings have the layout of
    sentence-transformers instead.

    Args:
        model: The model; not changed.
        folder: Is created.
        example: Inputs for comparing outputs.
        files: The task's artifact files: `labels.json`, `tokenizer.json`, `image.json`.
        max_length: For text embeddings, the maximum number of tokens of a text; None for other outputs.
        half: Write the weights in float16.

    Returns:
        `library` and `class`, and `head` if the head is a file of its own.
    """
    labels = json.loads(files.get("labels.json", "null"))
    whole, names = _library_model(model, labels, None if max_length is not None else example)
    state = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor
        for name, tensor in _state_dict(model).items()
    }
    whole.load_state_dict({theirs: state[ours] for ours, theirs in names.items()}, assign=True)
    whole.tie_weights()
    with quiet():
        whole.save_pretrained(folder)
        save_tokenizer(folder, files, list(example))
        save_image_processor(folder, files)
    about = {"library": "transformers", "class": type(whole).__name__}
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    if max_length is not None:
        write_sentence_modules(folder, model.config.hidden_size, model.pooling, rest, max_length=max_length)
        return {**about, "library": "sentence-transformers"}
    if rest:
        _save_head(folder, model, rest, labels)
        about["head"] = HEAD
    return about


def load(model: LibraryModel, folder: Path) -> None:
    """Load the weights of such a folder into the model in place."""
    model.load_state_dict(read(model, folder))


def read(model: LibraryModel, folder: Path) -> dict[str, Tensor]:
    """Return the weights of such a folder, read by transformers' `from_pretrained`, under this model's names."""
    import transformers
    from safetensors.torch import load_file

    (name,) = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
    with quiet():
        whole = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    theirs = whole.state_dict()
    state = {ours: theirs[name] for ours, name in _names(model, whole).items() if name in theirs}
    if (folder / HEAD).exists():
        state |= load_file(folder / HEAD)
    if (folder / _DENSE).exists():
        state |= {f"head.{name.removeprefix('linear.')}": value for name, value in load_file(folder / _DENSE).items()}
    return state


def read_run_weights(model: nn.Module, path: str) -> dict[str, Tensor] | None:
    """Return the weights of a run's `model/` or of such a folder, under this model's names; None for other layouts."""
    root = Path(expand_home(path))
    folder = next((candidate for candidate in (root, root / MODEL) if (candidate / ABOUT).is_file()), None)
    return read(model, folder) if folder is not None and isinstance(model, LibraryModel) else None


# The library's model for a model of ours


def _state_dict(model: LibraryModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _make(model: LibraryModel, auto_class: AutoClass, labels: list[str] | None) -> Any:
    config = deepcopy(model.config)
    if auto_class == "AutoModel":
        # Names of classes would make a class with a head look loadable, and its head would be random. The default
        # number of labels is not written.
        config.num_labels = 2
    elif isinstance(model.head, nn.Linear):
        config.num_labels = model.head.out_features
        if labels is not None and len(labels) == model.head.out_features:
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
    made = make_model(auto_class, config, None, None)
    if auto_class == "AutoModelForCausalLM":
        made.config.use_cache = True  # users of the folder may generate with it
    return made


def _library_model(
    model: LibraryModel, labels: list[str] | None, example: Mapping[str, Tensor] | None
) -> tuple[PreTrainedModel, dict[str, str]]:
    """Return the library's model on the device `meta`, and its tensor names by ours.

    With an `example`, the model has a head if the head gives our outputs for the example.
    """
    own: AutoClass = model.architecture["class"]
    classes = [own] if own != "AutoModel" or example is None else [model.headed, own]
    for auto_class in classes:
        names = _matching_names(model, auto_class, labels, example if auto_class == model.headed else None)
        if names is not None:
            break
    assert names is not None, "the model's own class matches"
    with torch.device("meta"):
        return _make(model, auto_class, labels), names


def _matching_names(
    model: LibraryModel, auto_class: AutoClass, labels: list[str] | None, example: Mapping[str, Tensor] | None
) -> dict[str, str] | None:
    """Return the tensor names of a class of the library by ours; None if it has other tensors or other outputs."""
    try:
        with torch.device("meta"):
            whole = _make(model, auto_class, labels)
    except ConfigError:
        return None
    names = _names(model, whole)
    theirs, ours = whole.state_dict(), _state_dict(model)
    names = {
        name: other for name, other in names.items() if other in theirs and theirs[other].shape == ours[name].shape
    }
    if set(names.values()) != set(theirs):
        return None
    if example is None:
        return names
    if set(names) != set(ours):
        return None
    real = _make(model, auto_class, labels).eval()
    real.load_state_dict({other: ours[name] for name, other in names.items()}, assign=True)
    # Without padding: outputs at padding are meaningless and may differ.
    filled = {name: torch.ones_like(value) if name == "attention_mask" else value for name, value in example.items()}
    expected, actual = model(**filled), real(**filled).logits
    same = actual.shape == expected.shape and torch.allclose(actual, expected, rtol=0, atol=_TOLERANCE)
    return names if same else None


def _names(model: LibraryModel, whole: PreTrainedModel) -> dict[str, str]:
    """Return the names that the library's model may have for our tensors, by ours."""
    prefix = "" if whole.base_model is whole else f"{whole.base_model_prefix}."
    names = {}
    heads = [name.rpartition(".")[0] for name in whole.state_dict() if name.endswith(".weight")]
    linear = next((name for name in heads if prefix and not name.startswith(prefix)), "")
    for name in _state_dict(model):
        part, _, rest = name.partition(".")
        if part == "base":
            names[name] = f"{prefix}{rest}"
        elif part == "head" and prefix:
            names[name] = f"{linear}.{rest}" if isinstance(model.head, nn.Linear) else rest
    return names


# The other files


def _save_head(folder: Path, model: LibraryModel, tensors: Mapping[str, Tensor], labels: list[str] | None) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / HEAD)
    per_token = isinstance(model, Pretrained) and model.output_level == "token"
    content = {
        "reads": "last_hidden_state" if per_token else f"last_hidden_state, pooled: {model.pooling}",
        "computes": "x @ head.weight.T + head.bias" if isinstance(model.head, nn.Linear) else type(model.head).__name__,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    content |= {} if labels is None else {"labels": labels}
    (folder / _HEAD_CONFIG).write_text(to_json(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def save_tokenizer(folder: Path, files: Mapping[str, str], inputs: list[str]) -> None:
    """Write the files that `AutoTokenizer` reads, if the task has a tokenizer.

    Args:
        folder: The model's folder.
        files: The task's artifact files; `tokenizer.json` is used.
        inputs: Names of the model's inputs.
    """
    if TOKENIZER not in files:
        return
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_str(files[TOKENIZER])
    vocabulary = tokenizer.get_vocab()
    special = {
        role: next(token for token in names if token in vocabulary)
        for role, names in _SPECIAL_TOKENS.items()
        if any(token in vocabulary for token in names)
    }
    truncation = tokenizer.truncation
    tokenizer.no_truncation()
    length = {"model_max_length": truncation["max_length"]} if truncation else {}
    make: Any = PreTrainedTokenizerFast
    make(tokenizer_object=tokenizer, model_input_names=inputs, **length, **special).save_pretrained(folder)


def save_image_processor(folder: Path, files: Mapping[str, str]) -> None:
    """Write `preprocessor_config.json`, which `AutoImageProcessor` reads, if the task reads images.

    The class is the image processor of ViT for all models, because it only resizes and normalizes. It has no equivalent
    of the task's cropping and padding; in that case images are not resized at all, so that most models reject an image
    of another size instead of reading it differently.

    Args:
        folder: The model's folder.
        files: The task's artifact files; `image.json` is used.
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
        "resample": _PIL_BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": settings["mean"],
        "image_std": settings["std"],
    }
    _write_json(folder / "preprocessor_config.json", content)


def write_sentence_modules(
    folder: Path, width: int, pooling: str, head: Mapping[str, Tensor], *, max_length: int
) -> None:
    """Write `modules.json` of sentence-transformers and a folder per module after the model: pooling and the head.

    Args:
        folder: The model's folder.
        width: Width of the model's hidden states.
        pooling: `cls`, `mean`, `max` or `last`.
        head: A linear layer's `head.weight` (D, width) and `head.bias`; empty if the pooled states are the embedding.
        max_length: Maximum number of tokens of a text.
    """
    from safetensors.torch import save_file

    classes = ["Transformer", "Pooling", *(["Dense"] if head else [])]
    paths = ["", "1_Pooling", "2_Dense"]
    modules = [
        {"idx": index, "name": str(index), "path": paths[index], "type": f"sentence_transformers.models.{name}"}
        for index, name in enumerate(classes)
    ]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write_json(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    modes = {f"pooling_mode_{theirs}": ours == pooling for ours, theirs in _POOLING_MODES.items()}
    _write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    if not head:
        return
    size = head["head.weight"].shape[0]
    dense = {"in_features": width, "out_features": size, "bias": True}
    _write_json(folder / "2_Dense" / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
    renamed = {f"linear.{name.removeprefix('head.')}": tensor.contiguous() for name, tensor in head.items()}
    save_file(renamed, folder / _DENSE)


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(to_json(content, indent=2) + "\n", encoding="utf-8")
