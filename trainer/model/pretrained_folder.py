"""A pretrained model back in a folder of its own library, as that library's own `save_pretrained` would leave it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_image import PretrainedImage
from trainer.model.pretrained_inputs import save_image_processor, save_tokenizer
from trainer.model.pretrained_loading import Kind, make_model, quiet
from trainer.model.sentence_folder import DENSE, write_sentence_modules

LibraryModel = Pretrained | PretrainedImage
"""A model of ours around one of a library."""

HEAD: Final = "head.safetensors"
ABOUT: Final = "trainer.json"
"""What a run says of its model beside it; a folder with this file was written by `save`."""

_SAME: Final = 1e-5
"""Outputs that differ by less are equal but for rounding."""

_HEAD_CONFIG: Final = "head.json"


def save(
    model: LibraryModel,
    folder: Path,
    example: Mapping[str, Tensor],
    files: Mapping[str, str],
    *,
    max_length: int | None,
    half: bool,
) -> dict[str, Any]:
    """Writes a model as its library would: `config.json` and `model.safetensors`.

    The class is that of a language model with its own head; `model.headed`, where its head on these weights gives this
    model's outputs; else that of the model without a head, and this model's own head lies beside it in
    `head.safetensors`, with `head.json`, which says what it reads. Embeddings have the layout of sentence-transformers
    in place of that. What makes the model's inputs lies there too; see `pretrained_inputs`.

    Args:
        model: It stays as it is.
        folder: Made here.
        example: Inputs to compare at.
        files: The task's: `labels.json`, `tokenizer.json`, `image.json`.
        max_length: Of embeddings of texts: tokens of a text; None: the outputs are something else.
        half: Weights in float16.

    Returns:
        `library` and `class`, and `head` where that is a file of its own.
    """
    labels = json.loads(files.get("labels.json", "null"))
    whole, names = _whole(model, labels, None if max_length is not None else example)
    state = {
        name: tensor.half() if half and tensor.is_floating_point() else tensor for name, tensor in _own(model).items()
    }
    whole.load_state_dict({theirs: state[ours] for ours, theirs in names.items()}, assign=True)
    whole.tie_weights()
    with quiet():
        whole.save_pretrained(folder)
        save_tokenizer(folder, files, list(example))
        save_image_processor(folder, files)
    said = {"library": "transformers", "class": type(whole).__name__}
    rest = {name: tensor for name, tensor in state.items() if name not in names}
    if max_length is not None:
        write_sentence_modules(folder, model.config.hidden_size, model.pooling, rest, max_length=max_length)
        return {**said, "library": "sentence-transformers"}
    if rest:
        _save_head(folder, model, rest)
        said["head"] = HEAD
    return said


def load(model: LibraryModel, folder: Path) -> None:
    """Reads such a folder's weights into the model in place."""
    model.load_state_dict(read(model, folder))


def read(model: LibraryModel, folder: Path) -> dict[str, Tensor]:
    """The weights of such a folder, by transformers' `from_pretrained`, under this model's names."""
    import transformers
    from safetensors.torch import load_file

    (name,) = json.loads((folder / "config.json").read_text("utf-8"))["architectures"]
    with quiet():
        whole = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    theirs = whole.state_dict()
    state = {ours: theirs[name] for ours, name in _names(model, whole).items() if name in theirs}
    if (folder / HEAD).exists():
        state |= load_file(folder / HEAD)
    if (folder / DENSE).exists():
        state |= {f"head.{name.removeprefix('linear.')}": value for name, value in load_file(folder / DENSE).items()}
    return state


def weights_of_run(model: nn.Module, path: str) -> dict[str, Tensor] | None:
    """The weights of a run's `model/`, or of that folder, by this model's names; None where it has another layout."""
    given = Path(path).expanduser()
    folder = next((each for each in (given, given / "model") if (each / ABOUT).is_file()), None)
    return read(model, folder) if folder is not None and isinstance(model, LibraryModel) else None


def _own(model: LibraryModel) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}


def _made(model: LibraryModel, kind: Kind, labels: list[str] | None) -> Any:
    config = deepcopy(model.config)
    if isinstance(model.head, nn.Linear):
        config.num_labels = model.head.out_features
        if labels is not None and len(labels) == model.head.out_features:
            config.id2label, config.label2id = dict(enumerate(labels)), {each: n for n, each in enumerate(labels)}
    made = make_model(kind, config, None, None)
    if kind == "AutoModelForCausalLM":
        made.config.use_cache = True  # whoever gets the folder may generate with it
    return made


def _whole(
    model: LibraryModel, labels: list[str] | None, example: Mapping[str, Tensor] | None
) -> tuple[Any, dict[str, str]]:
    """The library's own model, on the device `meta`, and its names of the tensors of ours that it has, by ours.

    With an `example` it has a head where that gives our outputs there.
    """
    own: Kind = model.architecture["class"]
    kinds = [own] if own != "AutoModel" or example is None else [model.headed, own]
    for kind in kinds:
        names = _fitting(model, kind, labels, example if kind == model.headed else None)
        if names is not None:
            break
    assert names is not None, "its own class fits"
    with torch.device("meta"):
        return _made(model, kind, labels), names


def _fitting(
    model: LibraryModel, kind: Kind, labels: list[str] | None, example: Mapping[str, Tensor] | None
) -> dict[str, str] | None:
    """The model's names of tensors in a class of the library, by ours; None where that has others, or other outputs."""
    try:
        with torch.device("meta"):
            whole = _made(model, kind, labels)
    except ConfigError:
        return None
    names = _names(model, whole)
    theirs, ours = whole.state_dict(), _own(model)
    names = {
        name: other for name, other in names.items() if other in theirs and theirs[other].shape == ours[name].shape
    }
    if set(names.values()) != set(theirs):
        return None
    if example is None:
        return names
    if set(names) != set(ours):
        return None
    real = _made(model, kind, labels).eval()
    real.load_state_dict({other: ours[name] for name, other in names.items()}, assign=True)
    # Without padding: what comes out at its places means nothing, and need not be equal.
    filled = {name: torch.ones_like(value) if name == "attention_mask" else value for name, value in example.items()}
    wanted, got = model(**filled), real(**filled).logits
    same = got.shape == wanted.shape and torch.allclose(got, wanted, rtol=0, atol=_SAME)
    return names if same else None


def _names(model: LibraryModel, whole: Any) -> dict[str, str]:
    """The names of the model's tensors, by ours, as the library's model may have them."""
    prefix = "" if whole.base_model is whole else f"{whole.base_model_prefix}."
    names = {}
    heads = [name.rpartition(".")[0] for name in whole.state_dict() if name.endswith(".weight")]
    linear = next((name for name in heads if prefix and not name.startswith(prefix)), "")
    for name in _own(model):
        part, _, rest = name.partition(".")
        if part == "base":
            names[name] = f"{prefix}{rest}"
        elif part == "head" and prefix:
            names[name] = f"{linear}.{rest}" if isinstance(model.head, nn.Linear) else rest
    return names


def _save_head(folder: Path, model: LibraryModel, tensors: Mapping[str, Tensor]) -> None:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / HEAD)
    of_tokens = isinstance(model, Pretrained) and model.output_level == "token"
    reads = "last_hidden_state" if of_tokens else f"last_hidden_state, pooled: {model.pooling}"
    content = {
        "reads": reads,
        "computes": "x @ head.weight.T + head.bias" if isinstance(model.head, nn.Linear) else type(model.head).__name__,
        "tensors": {name: list(tensor.shape) for name, tensor in tensors.items()},
    }
    (folder / _HEAD_CONFIG).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
