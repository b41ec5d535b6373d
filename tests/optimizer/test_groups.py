import pytest
import torch
from torch import nn

from trainer.errors import ConfigError
from trainer.optimizer.groups import can_fuse, parameter_groups, undecayed_names


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.plane = nn.LayerNorm((4, 5))
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 7)


def names(group):
    return [name for name, _ in group["params"]]


def test_matrices_decay_and_nothing_else():
    net = Net()
    groups = parameter_groups(net.named_parameters(), 0.1, undecayed_names(net))
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert names(groups[0]) == ["conv.weight", "head.weight"]
    assert names(groups[1]) == [
        "scale",
        "tokens.weight",
        "conv.bias",
        "plane.weight",
        "plane.bias",
        "norm.weight",
        "norm.bias",
        "head.bias",
    ]


def test_every_trainable_parameter_is_in_one_group():
    net = Net()
    net.tokens.requires_grad_(False)
    net.head.bias.requires_grad_(False)
    groups = parameter_groups(net.named_parameters(), 0.1, undecayed_names(net))
    grouped = [name for group in groups for name in names(group)]
    expected = {name for name, _ in net.named_parameters()} - {"tokens.weight", "head.bias"}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == expected


def test_a_group_without_parameters_is_left_out():
    groups = parameter_groups(nn.Linear(2, 2, bias=False).named_parameters(), 0.1, ())
    assert [names(group) for group in groups] == [["weight"]]


def test_tied_weights_count_as_the_embeddings():
    net = Net()
    net.head.weight = net.tokens.weight
    assert undecayed_names(net) == {"tokens.weight", "plane.weight", "plane.bias", "norm.weight", "norm.bias"}
    net = nn.Sequential(nn.Linear(4, 7), nn.Embedding(7, 4))
    net[1].weight = net[0].weight
    assert undecayed_names(net) == {"0.weight"}


def test_a_frozen_job_is_refused():
    with pytest.raises(ConfigError, match="nothing to optimize"):
        parameter_groups(Net().requires_grad_(False).named_parameters(), 0.1, ())


@pytest.mark.parametrize(
    ("device", "dtype", "fused"),
    [
        ("cpu", torch.float32, True),
        ("cpu", torch.bfloat16, True),
        ("cpu", torch.complex64, False),
        ("meta", torch.float32, False),
    ],
)
def test_fused_where_every_parameter_can_be(device, dtype, fused):
    parameters = [
        ("plain", nn.Parameter(torch.zeros(2, 2))),
        ("other", nn.Parameter(torch.zeros(2, 2, device=device, dtype=dtype))),
    ]
    assert can_fuse(parameter_groups(parameters, 0.1, ())) is fused
