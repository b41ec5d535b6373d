from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.errors import ConfigError
from trainer.model.weights import fit_weights


class Net(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, classes)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.lm_head = nn.Linear(4, 5)
        self.lm_head.weight = self.embedding.weight


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_state(model: nn.Module, expected: dict[str, Tensor]) -> None:
    actual = model.state_dict()
    assert set(actual) == set(expected)
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


def other(model: nn.Module) -> dict[str, Tensor]:
    """Return other values for all tensors of the model."""
    return {name: tensor + 1 for name, tensor in state(model).items()}


def error_of(model: nn.Module, tensors: dict[str, Tensor], rename: Any = (), ignore: Any = ()) -> str:
    before = state(model)
    with pytest.raises(ConfigError) as caught:
        fit_weights(model, tensors, rename, ignore)
    assert_state(model, before)
    assert caught.value.messages == (str(caught.value),)
    return str(caught.value)


def test_matching_weights_are_loaded_in_place() -> None:
    model = Net()
    tensors = other(model)
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    report = fit_weights(model, tensors, [], [])

    assert_state(model, tensors)
    assert {name: tensor.data_ptr() for name, tensor in model.state_dict().items()} == places
    assert set(report.loaded) == set(tensors)
    assert report.kept == report.unused == ()
    assert str(report) == "9 tensors loaded"
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in model.parameters())


def test_the_model_keeps_its_dtypes() -> None:
    for own in (torch.float32, torch.bfloat16):
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            model = nn.Linear(3, 2, dtype=own)
            tensors = {"weight": torch.randn(2, 3).to(dtype), "bias": torch.randn(2).to(dtype)}
            fit_weights(model, tensors, [], [])

            assert model.weight.dtype == own
            assert torch.equal(model.weight, tensors["weight"].to(own))


def test_integers_are_not_loaded_as_weights() -> None:
    message = error_of(nn.Linear(3, 2), {"weight": torch.ones(2, 3, dtype=torch.int8), "bias": torch.ones(2)})
    assert "\n    weight  (2, 3) int8  (2, 3)\n" in message


class TestRename:
    def test_pairs_are_applied_in_order(self) -> None:
        model = Net()
        tensors = other(model)
        theirs = {f"model.{name.replace('encoder', 'enc')}": tensor for name, tensor in tensors.items()}
        fit_weights(model, theirs, [["^model[.]", ""], ["enc", "encode"], [r"^(encode)\.", r"\1r."]], [])
        assert_state(model, tensors)

    def test_invalid_pairs_are_rejected(self) -> None:
        cases: list[tuple[Any, str, str]] = [
            ([["(", ""]], "entry 1", "unterminated subpattern"),
            ([["head", r"\2"]], "entry 1", "invalid group reference 2"),
            ([["head", "h"], ["bert", ""]], "entry 2", "got 'bert'. The names are encoder.0.weight, "),
            (["head"], "entry 1", "must be [regular expression, replacement], got 'head'."),
            ([["head"]], "entry 1", "must be [regular expression, replacement], got ['head']."),
            ([["encoder.[01].weight", "w"]], "", "encoder.0.weight and encoder.1.weight the same name, got 'w'."),
        ]
        for rename, entry, problem in cases:
            message = error_of(Net(), other(Net()), rename)
            assert message.startswith(f"weights_rename: {entry}")
            assert problem in message


class TestIgnore:
    def test_an_ignored_head_keeps_its_initial_values(self) -> None:
        model, theirs = Net(classes=7), other(Net(classes=3))
        theirs["extra.weight"] = torch.ones(2)
        before = state(model)
        report = fit_weights(model, theirs, [], ["head.*", "extra.*"])

        assert_state(model, {name: before[name] if "head" in name else theirs[name] for name in before})
        assert report.kept == ("head.weight", "head.bias")
        assert report.unused == ("head.weight", "head.bias", "extra.weight")
        assert str(report) == (
            "7 tensors loaded; as initialized: head.weight, head.bias; not used: head.weight, head.bias, extra.weight"
        )

    def test_ignored_missing_names_keep_their_initial_values(self) -> None:
        model, theirs = Net(), other(Net())
        before = state(model)
        for name in [name for name in theirs if "encoder.1" in name]:
            del theirs[name]
        report = fit_weights(model, theirs, [], ["*.1.*"])

        assert_state(model, {name: before[name] if "encoder.1" in name else theirs[name] for name in before})
        assert len(report.kept) == 5
        assert str(report).endswith(
            "as initialized: encoder.1.weight, encoder.1.bias, encoder.1.running_mean, encoder.1.running_var, "
            "encoder.1.num_batches_tracked"
        )

    def test_matching_weights_are_loaded_even_if_ignored(self) -> None:
        model = Net()
        tensors = other(model)
        fit_weights(model, tensors, [], ["head.*"])
        assert_state(model, tensors)

    def test_a_pattern_without_a_match_is_rejected(self) -> None:
        message = error_of(Net(), other(Net()), [], ["heads.*", "head.*"])
        assert message.startswith("weights_ignore: ")
        assert "got 'heads.*'. Did you mean head.bias" in message

    def test_ignoring_everything_is_rejected(self) -> None:
        assert error_of(Net(), {"x": torch.ones(1)}, [], ["*"]).startswith("weights_ignore: leaves nothing to load")


class TestTied:
    def test_one_name_is_enough(self) -> None:
        for name in ["embedding.weight", "lm_head.weight"]:
            model = Tied()
            tensors = {name: torch.randn(5, 4), "lm_head.bias": torch.randn(5)}
            report = fit_weights(model, tensors, [], [])

            assert model.lm_head.weight is model.embedding.weight
            assert torch.equal(model.embedding.weight, tensors[name])
            assert report.loaded == ("embedding.weight", "lm_head.weight", "lm_head.bias")
            assert report.kept == ()

    def test_both_names_must_have_equal_weights(self) -> None:
        model = Tied()
        tensors = other(model)
        fit_weights(model, tensors, [], [])
        assert_state(model, tensors)

        tensors["lm_head.weight"] = tensors["lm_head.weight"] + 1
        message = error_of(model, tensors)
        assert message.startswith("weights: embedding.weight and lm_head.weight are one tensor in the model")


@given(data=st.data())
def test_each_tensor_is_loaded_or_keeps_its_initial_value(data: st.DataObject) -> None:
    model, tensors = Net(), other(Net())
    before = state(model)
    missing = data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=8))
    shaped = data.draw(st.sets(st.sampled_from(sorted(tensors)), max_size=3))
    added = data.draw(st.sets(st.sampled_from(["a", "b.c", "head.scale"])))
    ignored = data.draw(st.sets(st.sampled_from(sorted({*tensors, *added}))))
    theirs = {
        name: torch.ones(77, dtype=tensor.dtype) if name in shaped else tensor
        for name, tensor in tensors.items()
        if name not in missing
    } | dict.fromkeys(added, torch.ones(1))
    mismatched = missing | shaped | added
    ignore = sorted(name for name in ignored if name in theirs or name in before)
    loadable = set(theirs) - mismatched
    if mismatched <= set(ignore) and loadable:
        report = fit_weights(model, theirs, [], ignore)
        assert_state(model, {name: theirs[name] if name in loadable else before[name] for name in before})
        assert set(report.loaded) == loadable
        assert set(report.kept) == set(before) - loadable
        assert set(report.unused) == set(theirs) - loadable
    else:
        message = error_of(model, theirs, [], ignore)
        assert all(name in message for name in mismatched - set(ignore))
