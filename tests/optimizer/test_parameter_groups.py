import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.support.optimizer_reference import assert_resumes_bitwise_equal
from trainer.errors import ConfigError
from trainer.optimizer.parameter_groups import (
    can_fuse,
    hidden_matrix_names,
    layer_indices,
    make_parameter_groups,
    no_decay_names,
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.plane = nn.LayerNorm((4, 5))
        self.norm = nn.LayerNorm(4)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(4, 7)


class Block(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Stacked(nn.Module):
    """Embedding, blocks, norm, and a head that is itself a (smaller) list."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.project = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(depth))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 7))


def job(model: nn.Module, loss: nn.Module | None = None) -> nn.ModuleDict:
    return nn.ModuleDict({"model": model} if loss is None else {"model": model, "loss": loss})


def group_parameters(module: nn.Module, **changes):
    facts = {"lr": 0.01, "weight_decay": 0.1, "no_decay": no_decay_names(module), "layers": layer_indices(module)}
    return make_parameter_groups(module.named_parameters(), **{**facts, **changes})


def names(group):
    return [name for name, _ in group["params"]]


def rates(groups):
    return {name: group["lr"] for group in groups for name in names(group)}


def decays(groups):
    return {name: group["weight_decay"] for group in groups for name in names(group)}


class TestDecay:
    def test_matrices_decay_and_nothing_else(self):
        groups = group_parameters(Net())
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 0.1), (0.01, 0.0)]
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

    def test_weight_decay_zero_does_not_change_the_groups(self):
        with_none = group_parameters(Net(), weight_decay=0.0)
        assert [names(group) for group in with_none] == [names(group) for group in group_parameters(Net())]
        assert [group["weight_decay"] for group in with_none] == [0.0, 0.0]

    def test_decay_all(self):
        net = Net()
        (group,) = group_parameters(net, decay="all")
        assert names(group) == [name for name, _ in net.named_parameters()]
        assert group["weight_decay"] == 0.1

    def test_an_optimizer_without_weight_decay(self):
        net = Net()
        (group,) = group_parameters(net, weight_decay=None)
        assert names(group) == [name for name, _ in net.named_parameters()]
        assert group.keys() == {"params", "lr"}
        groups = group_parameters(net, weight_decay=None, overrides=[{"match": "*.bias", "weight_decay": 0.3}])
        assert [group.get("weight_decay") for group in groups] == [None, 0.3]

    def test_an_optimizer_without_learning_rate(self):
        groups = group_parameters(Net(), lr=None)
        assert [group.keys() for group in groups] == [{"params", "weight_decay"}] * 2
        groups = group_parameters(Net(), lr=None, overrides=[{"match": "head.*", "lr": 0.5}])
        assert [(group.get("lr"), len(group["params"])) for group in groups] == [
            (None, 1),
            (0.5, 1),
            (None, 7),
            (0.5, 1),
        ]

    def test_a_group_without_parameters_is_left_out(self):
        assert [names(group) for group in group_parameters(nn.Linear(2, 2, bias=False))] == [["weight"]]

    def test_every_trainable_parameter_is_in_one_group(self):
        net = Net()
        net.tokens.requires_grad_(False)
        net.head.bias.requires_grad_(False)
        grouped = [name for group in group_parameters(net) for name in names(group)]
        expected = {name for name, _ in net.named_parameters()} - {"tokens.weight", "head.bias"}
        assert len(grouped) == len(set(grouped))
        assert set(grouped) == expected

    def test_tied_weights_count_as_the_embeddings(self):
        net = Net()
        net.head.weight = net.tokens.weight
        assert no_decay_names(net) == {"tokens.weight", "plane.weight", "plane.bias", "norm.weight", "norm.bias"}
        grouped = [name for group in group_parameters(net) for name in names(group)]
        assert grouped.count("tokens.weight") == 1
        assert "head.weight" not in grouped
        net = nn.Sequential(nn.Linear(4, 7), nn.Embedding(7, 4))
        net[1].weight = net[0].weight
        assert no_decay_names(net) == {"0.weight"}


class TestLayers:
    def test_a_stack_between_an_embedding_and_a_head(self):
        layers = layer_indices(job(Stacked()))
        assert layers["model.tokens.weight"] == 0
        assert layers["model.project.bias"] == 0
        for number in range(3):
            assert layers[f"model.blocks.{number}.norm.weight"] == number + 1
            assert layers[f"model.blocks.{number}.feed_forward.2.bias"] == number + 1
        assert layers["model.norm.weight"] == 4
        assert layers["model.head.0.weight"] == layers["model.head.1.bias"] == 4
        assert layers.keys() == {name for name, _ in job(Stacked()).named_parameters()}

    def test_a_loss_belongs_to_the_last_layer_and_its_lists_are_no_stack(self):
        loss = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 100))
        layers = layer_indices(job(Stacked(), loss))
        assert layers["loss.0.weight"] == layers["loss.1.bias"] == 4
        assert layers["model.blocks.2.norm.bias"] == 3
        assert set(layer_indices(job(nn.Linear(2, 2), loss)).values()) == {0}

    def test_entries_without_parameters_are_not_counted(self):
        net = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        assert layer_indices(job(net)) == {
            "model.1.weight": 1,
            "model.1.bias": 1,
            "model.3.weight": 2,
            "model.3.bias": 2,
        }
        assert layer_indices(net) == {"1.weight": 1, "1.bias": 1, "3.weight": 2, "3.bias": 2}

    def test_without_a_list(self):
        assert set(layer_indices(job(Net())).values()) == {0}
        net = Net()
        net.nothing = nn.Sequential(nn.ReLU(), nn.Dropout())
        assert set(layer_indices(job(net)).values()) == {0}

    def test_a_shared_parameter_belongs_to_its_first_layer(self):
        net = Stacked()
        net.head[1].weight = net.tokens.weight
        net.blocks[2] = net.blocks[0]
        layers = layer_indices(job(net))
        assert layers["model.tokens.weight"] == 0
        assert {name: layer for name, layer in layers.items() if ".blocks.0." in name}.keys()
        assert max(layers.values()) == 3
        assert not any(".blocks.2." in name or name == "model.head.1.weight" for name in layers)

    def test_learning_rates_decay_from_the_head_down(self):
        found = rates(group_parameters(job(Stacked(), nn.Linear(2, 2)), layer_decay=0.5))
        assert found["model.head.1.weight"] == found["model.norm.bias"] == found["loss.weight"] == 0.01
        assert found["model.blocks.2.norm.weight"] == 0.01 * 0.5
        assert found["model.blocks.1.feed_forward.0.weight"] == 0.01 * 0.25
        assert found["model.blocks.0.norm.bias"] == 0.01 * 0.125
        assert found["model.tokens.weight"] == found["model.project.weight"] == 0.01 * 0.0625

    def test_a_group_for_each_rate_and_decay_in_the_order_of_the_model(self):
        groups = group_parameters(job(Stacked()), layer_decay=0.5)
        assert [(group["lr"] / 0.01, group["weight_decay"]) for group in groups] == [
            (rate, decay) for decay in (0.1, 0.0) for rate in (0.0625, 0.125, 0.25, 0.5, 1.0)
        ]

    @pytest.mark.parametrize("layer_decay", [None, 1.0])
    def test_without_layer_decay_there_are_two_groups(self, layer_decay):
        groups = group_parameters(job(Stacked()), layer_decay=layer_decay)
        assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.01, 0.1), (0.01, 0.0)]


class TestHidden:
    def test_the_matrices_of_the_stack(self):
        expected = {f"model.blocks.{number}.feed_forward.{part}.weight" for number in range(3) for part in (0, 2)}
        assert hidden_matrix_names(job(Stacked())) == expected
        assert hidden_matrix_names(job(Stacked(), nn.Linear(2, 2))) == expected

    def test_the_last_matrix_of_a_sequential_model_is_the_output(self):
        net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
        assert hidden_matrix_names(job(net)) == {"model.0.weight", "model.2.weight"}
        # The loss scores the classes, so the model's last matrix is hidden.
        loss = nn.Linear(2, 9, bias=False)
        assert hidden_matrix_names(job(net, loss)) == {"model.0.weight", "model.2.weight", "model.3.weight"}

    def test_tied_weights_leave_the_stack_whole(self):
        net = Stacked()
        net.head = nn.Linear(4, 7, bias=False)
        net.head.weight = net.tokens.weight
        assert len(hidden_matrix_names(job(net))) == 6

    def test_without_a_stack(self):
        net = nn.Module()
        net.tokens, net.first, net.second, net.norm = (
            nn.Embedding(7, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.LayerNorm(4),
        )
        net.head = nn.Linear(4, 2)
        assert hidden_matrix_names(job(net)) == {"model.first.weight", "model.second.weight"}
        assert hidden_matrix_names(job(nn.Conv1d(2, 2, 2))) == frozenset()
        assert hidden_matrix_names(job(nn.ReLU())) == frozenset()


class TestOverrides:
    def test_an_overridden_learning_rate_is_not_decayed(self):
        overrides = [{"match": "blocks.*", "lr": 0.5}, {"match": "blocks.0.*", "lr": 0.25, "weight_decay": 0.7}]
        groups = group_parameters(job(Stacked()), layer_decay=0.5, overrides=overrides)
        assert rates(groups)["model.blocks.1.norm.bias"] == 0.5
        assert rates(groups)["model.blocks.0.norm.bias"] == 0.25
        assert decays(groups)["model.blocks.0.norm.bias"] == 0.7
        assert decays(groups)["model.blocks.1.norm.bias"] == 0.0
        assert rates(groups)["model.head.0.bias"] == 0.01

    def test_equal_values_share_one_group(self):
        overrides = [{"match": "*.bias", "weight_decay": 0.1}, {"match": "conv.weight", "weight_decay": 0}]
        groups = group_parameters(Net(), overrides=overrides)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        assert names(groups[0]) == ["conv.bias", "plane.bias", "norm.bias", "head.weight", "head.bias"]
        assert names(groups[1]) == ["scale", "tokens.weight", "conv.weight", "plane.weight", "norm.weight"]

    def test_patterns_match_parameters_of_the_loss(self):
        groups = group_parameters(job(Net(), nn.Linear(2, 2)), overrides=[{"match": "loss.*", "lr": 0.3}])
        assert {name for name, rate in rates(groups).items() if rate == 0.3} == {"loss.weight", "loss.bias"}

    @given(
        st.sampled_from(["matrices", "all"]),
        st.sampled_from([None, 1.0, 0.75, 0.5]),
        st.sampled_from([0.0, 0.1]),
        st.lists(
            st.fixed_dictionaries(
                {"match": st.sampled_from(["*", "*.bias", "blocks.1.*", "head.*"]), "lr": st.sampled_from([0.01, 0.3])},
                optional={"weight_decay": st.sampled_from([0.0, 0.1, 0.2])},
            ),
            max_size=3,
        ),
        st.sets(st.integers(0, 22)),
    )
    def test_every_parameter_has_the_defined_values(self, decay, layer_decay, weight_decay, overrides, frozen):
        module = job(Stacked())
        for position, parameter in enumerate(module.parameters()):
            parameter.requires_grad_(position not in frozen)
        layers, no_decay = layer_indices(module), no_decay_names(module)
        if any(not self._fits(entry, module) for entry in overrides):
            with pytest.raises(ConfigError, match="only frozen parameters"):
                group_parameters(module, overrides=overrides)
            return
        groups = group_parameters(
            module, decay=decay, layer_decay=layer_decay, weight_decay=weight_decay, overrides=overrides
        )
        expected = {}
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            rate = 0.01 * (layer_decay or 1.0) ** (4 - layers[name])
            exempt = decay == "matrices" and (parameter.ndim < 2 or name in no_decay)
            weight = 0.0 if exempt else weight_decay
            for entry in overrides:
                if self._matches(entry["match"], name):
                    rate, weight = entry["lr"], entry.get("weight_decay", weight)
            expected[name] = (rate, weight)
        assert {name: (rates(groups)[name], decays(groups)[name]) for name in rates(groups)} == expected
        assert sum(len(group["params"]) for group in groups) == len(expected)
        if weight_decay:
            pairs = [(group["lr"], group["weight_decay"]) for group in groups]
            assert len(set(pairs)) == len(pairs)
        positions = {name: position for position, (name, _) in enumerate(module.named_parameters())}
        for group in groups:
            assert names(group) == sorted(names(group), key=positions.__getitem__)

    @staticmethod
    def _matches(pattern: str, name: str) -> bool:
        name = name.removeprefix("model.")
        if pattern.startswith("*"):
            return name.endswith(pattern[1:])
        return name.startswith(pattern[:-1])

    def _fits(self, entry, module) -> bool:
        return any(self._matches(entry["match"], name) for name, p in module.named_parameters() if p.requires_grad)


class TestProblems:
    @pytest.mark.parametrize("layer_decay", [0.0, -0.5, 1.1, math.nan])
    def test_a_layer_decay_out_of_range(self, layer_decay):
        with pytest.raises(ConfigError, match=r"^layer_decay: must be greater than 0 and at most 1, got "):
            group_parameters(Net(), layer_decay=layer_decay)

    def test_layer_decay_needs_a_learning_rate(self):
        with pytest.raises(ConfigError, match=r"^layer_decay: needs a base learning rate"):
            group_parameters(Net(), layer_decay=0.5, lr=None)

    def test_all_problems_are_reported_together(self):
        overrides = [{"match": "hed.*", "lr": 0.1}, {"match": "conv.*", "lr": -1}]
        with pytest.raises(ConfigError) as error:
            group_parameters(Net(), decay="matrixes", layer_decay=2.0, overrides=overrides)
        first, second, third, fourth = error.value.messages
        assert (
            first
            == "overrides: entry 1, match: matches no parameter, got 'hed.*'. Similar names: head.bias, head.weight."
        )
        assert second == "overrides: entry 2, lr: must be greater than 0, got -1."
        assert third == "decay: must be matrices or all, got 'matrixes'. Did you mean matrices?"
        assert fourth.startswith("layer_decay: ")


@pytest.mark.parametrize(
    ("device", "dtype", "fused"),
    [
        ("cpu", torch.float32, True),
        ("cpu", torch.bfloat16, True),
        ("cpu", torch.complex64, False),
        ("meta", torch.float32, False),
    ],
)
def test_can_fuse_if_every_parameter_is_supported(device, dtype, fused):
    parameters = nn.ParameterDict(
        {
            "plain": nn.Parameter(torch.zeros(2, 2)),
            "other": nn.Parameter(torch.zeros(2, 2, device=device, dtype=dtype)),
        }
    )
    assert can_fuse(group_parameters(parameters)) is fused


FOREIGN = {
    "NAdam": {"lr": 0.01, "decoupled_weight_decay": True},
    "RAdam": {"lr": 0.01},
    "Adagrad": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "momentum": 0.9},
    "Adadelta": {"lr": 0.5},
    "Adamax": {"lr": 0.01},
    "ASGD": {"lr": 0.01},
    "Rprop": {"lr": 0.01},
}


@pytest.mark.parametrize(("name", "weight_decay"), list(zip(FOREIGN, [None, 0.1] * 4, strict=True)))
def test_torchs_other_optimizers_accept_the_groups_and_resume(name, weight_decay):
    overrides = [{"match": "bias", "lr": 0.02}]

    def make(params):
        optimizer = getattr(torch.optim, name)(params, **FOREIGN[name])
        found = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
        assert found["bias"] == 0.02
        return optimizer

    assert_resumes_bitwise_equal(make, FOREIGN[name]["lr"], weight_decay, overrides=overrides)
