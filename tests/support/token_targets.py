"""Batches of a task with an output for each token, and the models that read them."""

from collections.abc import Sequence
from typing import Any, get_args

import torch
from datasets import Dataset
from torch import Tensor, nn

from trainer.data.batch_plan import BatchIndices
from trainer.data.batches import Batches
from trainer.loss.cross_entropy import CrossEntropy
from trainer.model.decoder import Decoder
from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batch, Batching, Task

LAYOUTS: tuple[Batching, ...] = get_args(Batching)
_SIZES: dict[str, Any] = {"dim": 16, "depth": 2, "heads": 2, "hidden": 32, "dropout": 0.0, "pooling": "mean"}


def fitted(task: Any, **columns: Sequence[Any]) -> tuple[Any, Dataset]:
    """The task after learning from a split of these columns, and that split encoded."""
    raw = Dataset.from_dict(columns)
    task.fit(raw)
    return task, raw.map(task.encode, batched=True, remove_columns=raw.column_names)


def batch_of(
    task: Task, encoded: Dataset, ids: Sequence[int], batching: Batching, *, seed: int = 0, epoch: int = 0
) -> Batch:
    return Batches(encoded, task, batching, seed)[BatchIndices(epoch, tuple(ids))]


def encoder(task: Task, num_outputs: int | None = None) -> nn.Module:
    return _model(TextEncoder, task, **({} if num_outputs is None else {"num_outputs": num_outputs}))


def decoder(task: Task) -> nn.Module:
    return _model(Decoder, task, tie_embeddings=True)


def loss_and_gradient(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """The summed cross entropy of a batch, and its gradient, flat, over all parameters."""
    assert batch.target is not None
    loss = CrossEntropy(None, 0.0, -100)
    value = loss(model(**batch.inputs), batch.target)
    gradients = torch.autograd.grad(value, list(model.parameters()))
    return value.detach(), torch.cat([gradient.flatten() for gradient in gradients])


def measured(task: Task, model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """The task's metrics over batches."""
    metrics = task.metrics()
    with torch.inference_mode():
        for batch in batches:
            metrics.update(model(**batch.inputs), batch.target)
    return {name: value.item() for name, value in metrics.compute().items()}


def assert_layouts_agree(task: Task, encoded: Dataset, model: nn.Module) -> None:
    """Losses, gradients, metrics and the number of targets are those of the padded layout in each other."""
    ids = range(len(encoded))
    batches = {batching: batch_of(task, encoded, ids, batching) for batching in LAYOUTS}
    wanted, gradient = loss_and_gradient(model, batches["padded"])
    metrics = measured(task, model, [batches["padded"]])
    targets = {name: batch.target for name, batch in batches.items() if batch.target is not None}
    assert len(targets) == len(LAYOUTS)
    assert len({int((target != -100).sum()) for target in targets.values()}) == 1
    for batch in batches.values():
        value, found = loss_and_gradient(model, batch)
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-5)
        for name, metric in measured(task, model, [batch]).items():
            assert abs(metric - metrics[name]) <= 1e-5 * max(1.0, metrics[name]), name


def _model(kind: type[nn.Module], task: Task, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    names = ("vocab_size", "num_outputs", "max_length", "output_level")
    facts = {name: value for name, value in task.info().arguments().items() if name in names}
    # Spread weights: outputs then differ from token to token.
    model = kind(**(facts | _SIZES | options)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model
