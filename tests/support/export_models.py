"""A small text classifier with attention, and its task, for the tests of exports."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from trainer.export.artifacts import Artifact, publish
from trainer.export.model import ExportModel
from trainer.protocols import Batch, Batching, Columns, Inputs, Target, TaskInfo
from trainer.task.class_targets import class_predictions

MAX_LENGTH = 24
LABELS = ["red", "green", "blue"]
WORDS = [f"w{number}" for number in range(50)]
SAMPLES = [{"text": text, "label": "red"} for text in ("w1 w2 w3", "w4", " ".join(["w7", "w8"] * 30), "w9 w49")]


class ToyModel(nn.Module):
    """Embedding, one attention layer, mean over the tokens, a linear head; much dropout."""

    def __init__(self, dim: int = 16, heads: int = 2) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.heads = heads
        self.tokens = nn.Embedding(len(WORDS), dim)
        self.positions = nn.Embedding(MAX_LENGTH, dim)
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(dim, len(LABELS))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> Tensor:
        """Token ids and mask (B, T) to logits (B, C)."""
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)
        hidden = self.dropout(self.tokens(input_ids) + self.positions(position_ids))
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.query_key_value(hidden).chunk(3, dim=-1)
        )
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask[:, None, None, :].bool())
        hidden = hidden + attended.transpose(1, 2).flatten(2)
        weight = attention_mask[:, :, None].to(hidden.dtype)
        return self.head((hidden * weight).sum(1) / weight.sum(1))


class ToyTask:
    """Words `w0` to `w49` in, a colour out."""

    monitor = "accuracy"
    target: Target = "class"
    inputs: Inputs = "tokens"
    script: tuple[str, str] | None = ("texts", "classes")

    def columns(self) -> tuple[str, ...]:
        return ("text", "label")

    def input_columns(self) -> tuple[str, ...]:
        return ("text",)

    def info(self) -> TaskInfo:
        return TaskInfo(pad_id=0, num_outputs=len(LABELS))

    def encode_inputs(self, rows: Columns) -> dict[str, list[Any]]:
        return {"input_ids": [[int(word[1:]) for word in text.split()][:MAX_LENGTH] for text in rows["text"]]}

    def model_inputs(self, encoded: Columns, batching: Batching) -> dict[str, Tensor]:
        return inputs_of(encoded["input_ids"])

    def axes(self) -> dict[str, dict[int, str]]:
        return {name: {0: "batch", 1: "sequence"} for name in ("input_ids", "attention_mask")}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return {"sequence": (1, MAX_LENGTH)}

    def example(self, sizes: Mapping[str, int], generator: np.random.Generator) -> dict[str, Tensor]:
        lengths = generator.integers(1, sizes["sequence"], size=sizes["batch"], endpoint=True)
        lengths[0] = sizes["sequence"]
        return inputs_of([generator.integers(len(WORDS), size=length) for length in lengths])

    def metrics(self) -> MetricCollection:
        classes = len(LABELS)
        return MetricCollection(
            {"accuracy": MulticlassAccuracy(classes, average="micro"), "macro_f1": MulticlassF1Score(classes)}
        )

    def predictions(
        self, output: Tensor, *, rows: Columns, encoded: Columns, batching: Batching, top: int
    ) -> list[dict[str, Any]]:
        return class_predictions(output, LABELS, top)

    def artifact_files(self) -> dict[str, str]:
        return {"labels.json": json.dumps(LABELS), "tokenizer.json": tokenizer().to_str()}


def toy_export_model(model: nn.Module, task: Any = None, **others: Any) -> ExportModel:
    """Return the toy model, or another model for its task, with its data; `others` are further attributes."""
    return ExportModel(
        **{
            "original": model,
            "task": task or ToyTask(),
            "evaluation": batches,
            "training": lambda count: batches(),
            "samples": SAMPLES,
            "architecture": {},
            "provenance": {},
            **others,
        }
    )


def publish_toy(folder: Path, model: ExportModel, formats: list[Any], **settings: Any) -> list[Artifact]:
    """Publish with defaults for the settings that a test does not need."""
    defaults = {"half": False, "int8": None, "calibration": 8, "golden": 4, "tolerance": 1e-4, "metric_budget": 0.0}
    return publish(folder, model, formats=formats, **{**defaults, **settings})


def tokenizer() -> Tokenizer:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="w0"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return words


def inputs_of(samples: Sequence[Sequence[int] | np.ndarray]) -> dict[str, Tensor]:
    """Token ids to padded inputs, both (B, T) int64."""
    width = max(len(sample) for sample in samples)
    input_ids, attention_mask = (torch.zeros(len(samples), width, dtype=torch.int64) for _ in range(2))
    for row, sample in enumerate(samples):
        input_ids[row, : len(sample)] = torch.as_tensor(np.asarray(sample))
        attention_mask[row, : len(sample)] = 1
    return {"input_ids": input_ids, "attention_mask": attention_mask}


def batches(num_batches: int = 4, batch_size: int = 16) -> Iterator[Batch]:
    """An evaluation split: random texts with random labels."""
    generator = np.random.default_rng(7)
    for number in range(num_batches):
        lengths = generator.integers(1, MAX_LENGTH, size=batch_size, endpoint=True)
        inputs = inputs_of([generator.integers(len(WORDS), size=length) for length in lengths])
        target = torch.from_numpy(generator.integers(len(LABELS), size=batch_size))
        ids = tuple(range(number * batch_size, (number + 1) * batch_size))
        yield Batch(inputs, target, batch_size, ids)
