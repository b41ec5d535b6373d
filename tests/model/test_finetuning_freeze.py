import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.exported_models import IMAGE_AXES, assert_exports_equal, images
from trainer.errors import ConfigError
from trainer.model.finetuning import freeze, gradual_unfreezing
from trainer.model.resnet import ResNet
from trainer.model.text_encoder import TextEncoder


def encoder() -> TextEncoder:
    return TextEncoder(50, 3, 16, dim=8, depth=2, heads=2, hidden=16, dropout=0.1, pooling="mean")


def resnet(width: int = 4) -> ResNet:
    return ResNet(3, 3, (8, 8), depth=8, width=width, shortcut="projection")


def trainable(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


NAMES = [name for name, _ in encoder().named_parameters()]


def test_patterns_match_parameters_and_modules() -> None:
    cases: list[Any] = [
        ([], set()),
        (["blocks.0.*"], {name for name in NAMES if name.startswith("blocks.0.")}),
        (["blocks.0"], {name for name in NAMES if name.startswith("blocks.0.")}),
        (["*.bias", "head.weight"], {name for name in NAMES if name.endswith(".bias")} | {"head.weight"}),
        (["blocks.[01].feed_forward"], {name for name in NAMES if ".feed_forward." in name}),
        (["*"], set(NAMES)),
    ]
    for patterns, frozen in cases:
        model = encoder()
        assert set(freeze(model, patterns)) == frozen
        assert trainable(model) == set(NAMES) - frozen


def test_parameters_frozen_before_stay_frozen() -> None:
    model = encoder()
    freeze(model, ["head"])
    freeze(model, ["norm"])
    assert trainable(model) == {name for name in NAMES if not name.startswith(("head.", "norm."))}


def test_a_tied_weight_is_frozen_by_any_of_its_names() -> None:
    for pattern in ("embedding", "out", "out.weight"):
        model = nn.Module()
        model.embedding, model.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        model.out.weight = model.embedding.weight
        freeze(model, [pattern])
        assert "embedding.weight" not in trainable(model)
        assert ("out.bias" in trainable(model)) == (pattern != "out")


def test_a_shared_module_is_frozen_by_any_of_its_names() -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "third": nn.Linear(2, 2)})
    assert freeze(model, ["second"]) == ("first.weight", "first.bias")
    assert trainable(model) == {"third.weight", "third.bias"}


def test_patterns_without_a_match_are_reported_together() -> None:
    model = encoder()
    with pytest.raises(ConfigError) as error:
        freeze(model, ["block.0.*", "head", "dropout", "xyzzy"])
    first, second, third = error.value.messages
    assert "'block.0.*'. Similar names: blocks.0, blocks.1, blocks." in first
    assert "'dropout'. The model has token_embedding, position_embedding, blocks, norm, head." in second
    assert third.startswith("freeze: ")
    assert trainable(model) == set(NAMES)


class TestBatchNorm:
    def test_frozen_statistics_are_used_and_do_not_change(self) -> None:
        torch.manual_seed(0)
        model = resnet()
        model.train()
        for _ in range(3):
            model(**images(8, 3, 8, 8))
        freeze(model, ["blocks.0"])
        reference = copy.deepcopy(model)
        reference.blocks[0].eval()
        before = statistics(model)
        model.eval().train()
        output = model(**images(8, 3, 8, 8, seed=1))

        assert moved(model, before)
        assert not any(name.startswith("blocks.0.") for name in moved(model, before))
        assert torch.equal(output, reference(**images(8, 3, 8, 8, seed=1)))
        frozen = [module for module in model.blocks[0].modules() if isinstance(module, nn.BatchNorm2d)]
        assert frozen
        assert not any(module.training for module in frozen)
        assert [type(module).__name__ for module in frozen] == ["BatchNorm2d"] * len(frozen)

    def test_other_statistics_change(self) -> None:
        model = resnet().train()
        before = statistics(model)
        freeze(model, ["head", "*.bias"])
        model(**images(8, 3, 8, 8))
        assert moved(model, before) == set(before)

    def test_statistics_stay_frozen_in_a_copy_and_after_loading(self) -> None:
        model = resnet()
        freeze(model, ["blocks"])
        twin = copy.deepcopy(model)
        twin.load_state_dict(model.state_dict())
        before = statistics(twin)
        twin.train()
        twin(**images(8, 3, 8, 8))
        assert not any(name.startswith("blocks.") for name in moved(twin, before))
        assert list(twin.state_dict()) == list(resnet().state_dict())

    @pytest.mark.parametrize("norm", [nn.BatchNorm1d(4, affine=False), nn.InstanceNorm1d(4, track_running_stats=True)])
    def test_norms_without_parameters_follow_the_enclosing_module(self, norm: nn.Module) -> None:
        model = nn.Sequential(nn.Sequential(nn.Conv1d(4, 4, 1), nn.Sequential(norm)), nn.Conv1d(4, 4, 1))
        before = statistics(model)
        freeze(model, ["0"])
        model.train()
        model(torch.randn(3, 4, 5))
        assert not moved(model, before)

        free = nn.Sequential(nn.Conv1d(4, 4, 1), copy.deepcopy(norm))
        free.train()
        freeze(free, ["0.bias"])
        free[1].train()
        free(torch.randn(3, 4, 5))

    def test_norms_without_statistics_are_not_changed(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))
        freeze(model, ["0"])
        assert model.train()[0].training

    def test_exported_outputs_match(self, tmp_path: Path) -> None:
        model = resnet()
        freeze(model, ["blocks"])
        traced, *others = [images(count, 3, 8, 8, seed=count) for count in (4, 1, 9)]
        assert_exports_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


PATTERNS = st.sampled_from(["*", "blocks.*", "blocks.0", "*.bias", "head.weight", "*embedding*", "norm"])
ENTRIES = st.lists(st.tuples(PATTERNS, st.integers(0, 6)), max_size=5)


def matches(name: str, pattern: str) -> bool:
    parents = [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)]
    return any(fnmatchcase(part, pattern) for part in parents)


class TestGradualUnfreezing:
    @given(entries=ENTRIES, steps=st.lists(st.integers(0, 8), min_size=1, max_size=8))
    def test_result_depends_only_on_the_step(self, entries: list[tuple[str, int]], steps: Sequence[int]) -> None:
        model = encoder()
        unfreeze = gradual_unfreezing(model, entries)
        assert trainable(model) == set(NAMES)
        for step in steps:
            unfreeze(step)
            starts = {name: [start for pattern, start in entries if matches(name, pattern)] for name in NAMES}
            assert trainable(model) == {name for name in NAMES if not starts[name] or starts[name][-1] <= step}

    def test_permanently_frozen_parameters_stay_frozen(self) -> None:
        model = encoder()
        freeze(model, ["blocks.0"])
        unfreeze = gradual_unfreezing(model, [("blocks", 2)])
        unfreeze(1)
        assert not any(name.startswith("blocks.") for name in trainable(model))
        unfreeze(2)
        assert {name for name in trainable(model) if name.startswith("blocks.")} == {
            name for name in NAMES if name.startswith("blocks.1.")
        }

    def test_norms_are_frozen_until_their_parameters_are_trained(self) -> None:
        model = resnet().train()
        unfreeze = gradual_unfreezing(model, [("blocks.0", 2)])

        def changed_in_block(step: int) -> set[str]:
            unfreeze(step)
            before = statistics(model)
            model(**images(4, 3, 8, 8))
            return {name for name in moved(model, before) if name.startswith("blocks.0.")}

        everything = {name for name in statistics(model) if name.startswith("blocks.0.")}
        assert changed_in_block(0) == set()
        model.eval().train()
        assert changed_in_block(1) == set()
        assert changed_in_block(2) == everything
        model.eval().train()
        assert changed_in_block(3) == everything
        assert changed_in_block(1) == set()
        model.eval()
        unfreeze(2)
        assert not any(module.training for module in model.modules())

    def test_parameters_are_updated_from_their_step_on(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        unfreeze = gradual_unfreezing(model, [("0", 2)])
        for step in range(4):
            before = model[0].weight.detach().clone()
            unfreeze(step)
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            assert torch.equal(model[0].weight, before) == (step < 2)

    def test_steps_between_entries_do_no_work(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = encoder()
        unfreeze = gradual_unfreezing(model, [("blocks.0", 3), ("blocks.1", 5)])
        calls: list[bool] = []
        changed = nn.Parameter.requires_grad_

        def counted(parameter: nn.Parameter, value: bool = True) -> Tensor:
            calls.append(value)
            return changed(parameter, value)

        monkeypatch.setattr(nn.Parameter, "requires_grad_", counted)
        counts = []
        for step in (0, 1, 2, 3, 4, 5, 6, 7):
            unfreeze(step)
            counts.append(len(calls))
            calls.clear()
        assert [count > 0 for count in counts] == [True, False, False, True, False, True, False, False]

    def test_problems_are_reported_together(self) -> None:
        model = encoder()
        freeze(model, ["norm"])
        with pytest.raises(ConfigError) as error:
            gradual_unfreezing(model, [("block", 3), ("norm.*", 1), ("head", -1)])
        first, second, third = error.value.messages
        assert "'block'. Similar names: blocks, blocks.1, blocks.0." in first
        assert "always frozen, got 'norm.*'" in second
        assert "the step of head must be at least 0, got -1." in third
