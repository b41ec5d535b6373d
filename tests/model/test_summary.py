import torch
from torch import nn

from trainer.model.summary import summarize


class Tied(nn.Module):
    """A model with tied weights, a module that is used twice, and one that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2)])
        self.again = self.blocks[0]
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight
        self.unused = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.ones(()), requires_grad=False)

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.embedding(ids)
        for block in self.blocks:
            hidden = block(hidden)
        return {"logits": self.head(self.again(hidden)) * self.scale}


def test_parameters_of_the_rows_add_up_at_any_depth() -> None:
    model = Tied()
    for depth in (0, 1, 2, 9):
        rows = summarize(model, depth)

        assert sum(row.parameters for row in rows) == sum(p.numel() for p in model.parameters())
        assert sum(row.trainable for row in rows) == sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert all(row.name.count(".") < max(depth, 1) for row in rows)
        assert {row.output for row in rows} == {None}


def test_names_classes_and_shapes() -> None:
    model = Tied()
    rows = {row.name: row for row in summarize(model, 2, lambda: model(torch.zeros(3, 5, dtype=torch.int64)))}

    assert list(rows) == ["", "embedding", "blocks", "blocks.0", "blocks.1", "head", "unused"]
    assert (rows[""].kind, rows[""].output, rows[""].parameters, rows[""].trainable) == ("Tied", (3, 5, 7), 1, 0)
    assert (rows["blocks.0"].kind, rows["blocks.0"].output, rows["blocks.0"].parameters) == (
        "Sequential",
        (3, 5, 4),
        20,
    )
    # The head shares the weight of the embedding.
    assert (rows["head"].parameters, rows["embedding"].parameters) == (7, 28)
    assert rows["unused"].output is None


def test_no_hooks_remain() -> None:
    model = Tied()
    summarize(model, 1, lambda: model(torch.zeros(1, 1, dtype=torch.int64)))

    assert not any(module._forward_hooks for module in model.modules())
