"""What makes a folder of transformers one of sentence-transformers: the modules behind the model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor

DENSE: Final = "2_Dense/model.safetensors"
_MODES: Final = {"cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "last": "lasttoken"}
"""Our names of the ways to pool, and theirs, which versions before 5 and after know."""


def write_sentence_modules(
    folder: Path, width: int, pooling: str, head: Mapping[str, Tensor], *, max_length: int
) -> None:
    """Writes `modules.json` and a folder for each module behind the model: pooling and, where there is one, the head.

    Args:
        folder: That of the model.
        width: Of its hidden states.
        pooling: `cls`, `mean`, `max` or `last`.
        head: A linear layer's `head.weight` (D, width) and `head.bias`; empty: the pooled states are the embedding.
        max_length: Tokens of a text.
    """
    from safetensors.torch import save_file

    kinds = ["Transformer", "Pooling", *(["Dense"] if head else [])]
    paths = ["", "1_Pooling", "2_Dense"]
    modules = [
        {"idx": number, "name": str(number), "path": paths[number], "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(folder / "config_sentence_transformers.json", {"similarity_fn_name": "cosine"})
    modes = {f"pooling_mode_{theirs}": ours == pooling for ours, theirs in _MODES.items()}
    _write(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": width, **modes})
    if not head:
        return
    size = head["head.weight"].shape[0]
    dense = {"in_features": width, "out_features": size, "bias": True}
    _write(folder / "2_Dense" / "config.json", dense | {"activation_function": "torch.nn.modules.linear.Identity"})
    renamed = {f"linear.{name.removeprefix('head.')}": tensor.contiguous() for name, tensor in head.items()}
    save_file(renamed, folder / DENSE)


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
