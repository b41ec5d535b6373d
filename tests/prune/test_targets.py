import pytest
import torch
from torch import nn

from tests.support.prune_reference import Layers, layers, weights_of
from trainer.errors import ConfigError
from trainer.prune.targets import pruned_parameters


def test_linear_layers_and_convolutions_but_the_head() -> None:
    model = layers()
    found = pruned_parameters(model, None)

    assert list(found) == list(weights_of(model))
    assert all(found[name] is model.get_parameter(name) for name in found)


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (["head"], ["head.weight"]),
        (["*linear*", "embedding.weight"], ["embedding.weight", "linear.weight"]),
        (["stack"], ["stack.0.weight", "stack.1.weight"]),
        (["*"], ["embedding.weight", "linear.weight", "stack.0.weight", "stack.1.weight", "head.weight"]),
    ],
)
def test_patterns_of_names_fit_weights_and_never_biases(patterns: list[str], names: list[str]) -> None:
    assert list(pruned_parameters(layers(), patterns)) == names


def test_what_fits_nothing_is_told_with_what_is_near() -> None:
    with pytest.raises(ConfigError) as caught:
        pruned_parameters(layers(), ["linaer.weight", "*.bias", "head"])
    assert caught.value.messages == (
        "targets: fits no parameter with two axes or more, got 'linaer.weight'. Did you mean linear.weight.",
        "targets: fits no parameter with two axes or more, got '*.bias'. Known: "
        "embedding.weight, head.weight, linear.weight, stack.0.weight, stack.1.weight.",
    )


def test_a_model_of_a_head_alone() -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 2)})
    with pytest.raises(ConfigError, match=r"targets: .* but its head. Name weights: prune\.targets=\[head\.weight\]"):
        pruned_parameters(model, None)


def test_tied_weights_are_one_and_belong_to_the_embedding() -> None:
    class Tied(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.output = nn.Linear(6, 11, bias=False)
            self.output.weight = self.embedding.weight

    torch.manual_seed(0)
    assert "embedding.weight" not in pruned_parameters(Tied(), None)
    assert list(pruned_parameters(Tied(), ["output"])) == ["embedding.weight"]


def test_gpt2s_linear_layers() -> None:
    from transformers.pytorch_utils import Conv1D

    model = nn.ModuleDict({"attention": Conv1D(6, 2), "head": nn.Linear(6, 2)})
    assert list(pruned_parameters(model, None)) == ["attention.weight"]
