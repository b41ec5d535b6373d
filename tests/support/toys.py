"""Parts that tests plug in as a user would."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batch, Batching, Columns
from trainer.sample_rng import SampleRng
from trainer.task.text_classification import TextClassification


class NormedTokens(nn.Module):
    """An embedding with batch norm, whose statistics follow the training batches."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding
        self.norm = nn.BatchNorm1d(embedding.embedding_dim)

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.embedding(ids)
        normed: Tensor = self.norm(tokens.flatten(0, 1))
        return normed.view_as(tokens)


class NormedEncoder(TextEncoder):
    """A model with buffers that change during training."""

    def __init__(self, vocab_size: int, num_outputs: int, max_length: int, **options: Any) -> None:
        super().__init__(vocab_size, num_outputs, max_length, **options)
        self.token_embedding = NormedTokens(self.token_embedding)  # type: ignore[assignment]


class PuttingEncoder(TextEncoder):
    """A model with an operation that PyTorch has only in a version that is not deterministic."""

    def forward(self, *arguments: Any, **inputs: Any) -> Any:
        output = super().forward(*arguments, **inputs)
        index = torch.zeros(2, dtype=torch.int64, device=output.device)
        return output + output.new_zeros(3).put_(index, output.new_zeros(2)).sum()


class AugmentedText(TextClassification):
    """A task that drops random tokens, different ones for each sample and epoch."""

    def collate(self, rows: Columns, draws: SampleRng, batching: Batching) -> Batch:
        kept = []
        for position, ids in enumerate(rows["input_ids"]):
            keep = draws.generator(position).random(len(ids)) < 0.8
            keep[0] = True
            kept.append(ids[keep])
        return super().collate({**rows, "input_ids": kept}, draws, batching)


AUGMENTED = (
    "task._target_=tests.support.toys.AugmentedText",
    "task.tokenizer=null",
    "task.lowercase=true",
    "model._target_=tests.support.toys.NormedEncoder",
    "model.dropout=0.1",
    "model.pooling=mean",
)
"""The overrides of a job with the task and the model above; resuming it needs `trust=[tests]`."""
