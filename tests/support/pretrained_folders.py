"""Tiny models of transformers with random weights, saved as transformers saves them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.token_batches import MAX_LENGTH, VOCAB_SIZE, samples
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_loading import quiet
from trainer.task.packing import lay_out, token_inputs
from trainer.task.tokenization import train_wordpiece

_SIZES: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "max_position_embeddings": MAX_LENGTH}
_BERT = _SIZES | {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_ROBERTA = _BERT | {"max_position_embeddings": MAX_LENGTH + 2, "type_vocab_size": 1}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "camembert": _ROBERTA,
    "distilbert": _SIZES | {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48},
    "electra": _BERT | {"embedding_size": 16},
    "gpt2": {"vocab_size": VOCAB_SIZE, "n_positions": MAX_LENGTH, "n_embd": 32, "n_layer": 2, "n_head": 4}
    | {"bos_token_id": 0, "eos_token_id": 0},
    # A window of 8 tokens to either side, so that most samples are longer; full, sliding, sliding, full attention.
    "modernbert": _BERT
    | {"num_hidden_layers": 4, "local_attention": 16, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    | {"cls_token_id": 2, "sep_token_id": 3},
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA,
}
"""By `model_type`."""

KEYS: dict[str, Any] = {
    "config": {},
    "pooling": "mean",
    "attention": None,
    "pretrained": True,
}
FACTS: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "num_outputs": 5, "max_length": MAX_LENGTH}
LANGUAGE: dict[str, Any] = {"num_outputs": VOCAB_SIZE, "output_level": "token"}

TYPED = ("bert", "electra")
"""Families with embeddings of two token types."""


def language_model(name: str) -> Any:
    """Return the language model class of a family in transformers."""
    import transformers

    return transformers.AutoModelForCausalLM if name == "gpt2" else transformers.AutoModelForMaskedLM


def save(name: str, folder: Path, **changes: Any) -> Path:
    """Save a tiny language model of a family with perturbed weights, and a tokenizer."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    model = language_model(name).from_config(AutoConfig.for_model(name, **(CONFIGS[name] | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    tokenizer = train_wordpiece([["a few words to learn from"] * 9], vocab_size=VOCAB_SIZE, lowercase=True)
    with quiet():
        model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def reference(auto: Any, path: Path, **arguments: Any) -> Any:
    """Load a folder with transformers, in evaluation mode."""
    with quiet():
        return auto.from_pretrained(path, **arguments).eval()


def texts(count: int, seed: int = 0) -> list[Any]:
    """Return samples of 1 to 64 tokens without special tokens, which some models treat as padding."""
    return [sample % (VOCAB_SIZE - 5) + 5 for sample in samples(count, seed)]


def layouts(count: int, *, pooled: bool = True, typed: bool = False) -> list[dict[str, Tensor]]:
    """Return the same samples padded and packed."""
    made = texts(count)
    types = [(sample > VOCAB_SIZE // 2).astype("int64") for sample in made]
    results = []
    for batching in ("padded", "packed"):
        layout = lay_out([len(text) for text in made], max_length=MAX_LENGTH, batching=batching)  # type: ignore[arg-type]
        inputs = token_inputs(made, layout, pad_id=0)
        if not pooled:
            inputs.pop("token_index", None)
        if typed:
            inputs["token_type_ids"] = layout.fill(types, 0)
        results.append(inputs)
    return results


def places(count: int) -> tuple[Tensor, Tensor]:
    """Return the positions of every third token of each sample in the padded and packed rows of `layouts`."""
    made = texts(count)
    results = []
    for batching in ("padded", "packed"):
        layout = lay_out([len(text) for text in made], max_length=MAX_LENGTH, batching=batching)  # type: ignore[arg-type]
        results.append(layout.index([torch.arange(0, len(text), 3).numpy() for text in made]))
    return results[0], results[1]


class Folders:
    """Folders of tiny models by family, created on first use."""

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._made: dict[str, Path] = {}

    def __call__(self, name: str) -> Path:
        if name not in self._made:
            self._made[name] = save(name, self._factory.mktemp(name))
        return self._made[name]


def model_of(path: Path, **changes: Any) -> Pretrained:
    torch.manual_seed(0)
    return Pretrained(**(FACTS | KEYS | {"path": str(path)} | changes)).eval()


def last_hidden(model: Pretrained, inputs: dict[str, Tensor]) -> Tensor:
    """Return the hidden states of the base model."""
    seen: list[Tensor] = []
    hook = model.base.register_forward_hook(lambda *arguments: seen.append(arguments[-1].last_hidden_state))
    model(**inputs)
    hook.remove()
    return seen[0]


def gradients(model: nn.Module, inputs: dict[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (model(**inputs) * weights).sum().backward()
    return {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
