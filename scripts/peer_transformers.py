"""Train a text classifier with transformers' Trainer: the peer of the default job in `bench_peers.py`.

    python scripts/peer_transformers.py DATA OUTPUT [--epochs 3] [--limit N] [--seed 0] [--log-every 10]

DATA contains train.jsonl, validation.jsonl and test.jsonl with the columns `text` and `label`, and tokenizer.json. The
script is written as the documentation of transformers teaches: `load_dataset`, `map`, a collator that pads each batch,
and Trainer, which evaluates and saves in each epoch and ends with the best checkpoint. It scores the test split, saves
the model, and writes its scores into scores.json. It uses nothing of this project.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from datasets import load_dataset
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertPreTrainedModel,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    set_seed,
)

MAX_LENGTH = 128


class MeanPooledBert(BertPreTrainedModel):  # type: ignore[misc]
    """A BERT, the mean of its last hidden states, and a linear layer: learns sooner from scratch than with [CLS]."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Return `logits` (B, C), and the mean `loss` if `labels` are given."""
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        logits = self.head((hidden * mask).sum(1) / mask.sum(1))
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def accuracy(prediction: Any) -> dict[str, float]:
    """Return the fraction of the rows whose label has the largest output."""
    return {"accuracy": float(np.mean(prediction.predictions.argmax(-1) == prediction.label_ids))}


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--limit", type=int, help="number of rows of each split; all without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log-every", type=int, default=10)
    options = parser.parse_args()
    set_seed(options.seed)

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(options.data / "tokenizer.json"), pad_token="[PAD]", unk_token="[UNK]"
    )
    files = {split: str(options.data / f"{split}.jsonl") for split in ("train", "validation", "test")}
    data = load_dataset("json", data_files=files, cache_dir=str(options.data / "cache"))
    labels = sorted(set(data["train"]["label"]))
    number = {label: index for index, label in enumerate(labels)}
    if options.limit is not None:
        data = {split: rows.select(range(min(options.limit, len(rows)))) for split, rows in data.items()}

    def encode(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = tokenizer(rows["text"], truncation=True, max_length=MAX_LENGTH, return_token_type_ids=False)
        return {**encoded, "labels": [number[label] for label in rows["label"]]}

    splits = {split: rows.map(encode, batched=True, remove_columns=rows.column_names) for split, rows in data.items()}
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        max_position_embeddings=MAX_LENGTH,
        num_labels=len(labels),
    )
    arguments = TrainingArguments(
        output_dir=str(options.output),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=128,
        learning_rate=1e-3,
        weight_decay=0.01,
        max_grad_norm=1.0,
        warmup_steps=0.05,
        lr_scheduler_type="linear",
        logging_steps=options.log_every,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=MeanPooledBert(config),
        args=arguments,
        train_dataset=splits["train"],
        eval_dataset=splits["validation"],
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer),
        compute_metrics=accuracy,
    )
    trainer.train()
    test = trainer.evaluate(splits["test"], metric_key_prefix="test")
    trainer.save_model()
    scores = {"validation": trainer.state.best_metric, "test": test["test_accuracy"]}
    (options.output / "scores.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
