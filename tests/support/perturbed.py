"""A tiny model of words, and steps of it whose weights are moved."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.test_loop import make_run
from trainer.distributed.ranks import Ranks
from trainer.distributed.sharding import Sharding
from trainer.loop import compute_gradients
from trainer.perturb.awp import Awp
from trainer.perturb.fgm import Fgm
from trainer.perturb.moved_weights import MovedWeights, select_weights
from trainer.perturb.pgd import Pgd
from trainer.protocols import Batch, PerturbsWeights
from trainer.run import Run

CPU = torch.device("cpu")


class Words(nn.Module):
    """Class scores of samples of three words of seven."""

    ends_with_head = ("tokens",)

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.embeddings = nn.Embedding(7, 4)
        self.norm = nn.BatchNorm1d(4)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(4, 3)

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.embeddings(x).mean(dim=1))
        output: Tensor = self.head(self.dropout(hidden).tanh())
        return output


def fgm(**keys: Any) -> Fgm:
    return Fgm(**{"epsilon": 1.0, "weight": 1.0, "start_steps": 0, "targets": None} | keys)


def pgd(**keys: Any) -> Pgd:
    return Pgd(**{"weight": 1.0, "start_steps": 0, "targets": None} | keys)


def awp(**keys: Any) -> Awp:
    return Awp(**{"gamma": 0.1, "weight": 1.0, "start_steps": 0, "targets": None} | keys)


METHODS = {"fgm": fgm(epsilon=0.4), "pgd": pgd(epsilon=0.5, alpha=0.3, moves=3), "awp": awp()}


def word_batches(sizes: list[int]) -> list[Batch]:
    """Return micro-batches of these numbers of samples."""
    torch.manual_seed(sum(sizes))
    return [
        Batch({"x": torch.randint(7, (size, 3))}, torch.randint(3, (size,)), size, tuple(range(size)), piece)
        for piece, size in enumerate(sizes)
    ]


def run_on(
    batches: list[Batch],
    method: PerturbsWeights | None,
    *,
    dtype: torch.dtype = torch.float64,
    dropout: float = 0.0,
    model_type: type[Words] = Words,
    ranks: Ranks | None = None,
) -> Run:
    """Return a run of `Words`, in evaluation mode, so that samples do not mix.

    With `ranks`, its weights are in shards.
    """
    torch.manual_seed(0)
    model = model_type(dropout).to(dtype).eval()
    if ranks is not None:
        Sharding(ranks, ranks.size, CPU).shard(model)
    optimizer = torch.optim.SGD(model.named_parameters(), lr=0.1)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    moved = None if method is None else MovedWeights(method, model, select_weights(method, model))
    return make_run([batches], model=model, optimizer=optimizer, moved_weights=moved, ranks=ranks or Ranks())


def gradients_of(batches: list[Batch], name: str | None) -> dict[str, Tensor]:
    """Return the gradients of a step by the name of a method; None moves nothing."""
    run = run_on(batches, None if name is None else METHODS[name])
    compute_gradients(run, 0, batches)
    return {name: value.grad.clone() for name, value in run.model.named_parameters() if value.grad is not None}


def mean_loss(model: nn.Module, batches: list[Batch]) -> Tensor:
    """Return the mean loss of a step, computed at once."""
    inputs = torch.cat([batch.inputs["x"] for batch in batches])
    target = torch.cat([batch.target for batch in batches if batch.target is not None])
    return F.cross_entropy(model(inputs), target, label_smoothing=0.1)


@contextmanager
def add_to(weight: Tensor, offset: Tensor) -> Iterator[None]:
    """Move a weight inside the block."""
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(offset)
    yield
    with torch.no_grad():
        weight.copy_(before)
