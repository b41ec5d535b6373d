import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

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


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def moved(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


NAMES = [name for name, _ in encoder().named_parameters()]


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ([], set()),
        (["blocks.0.*"], {name for name in NAMES if name.startswith("blocks.0.")}),
        (["blocks.0"], {name for name in NAMES if name.startswith("blocks.0.")}),
        (["blocks"], {name for name in NAMES if name.startswith("blocks.")}),
        (["*embedding*"], {"token_embedding.weight", "position_embedding.weight"}),
        (["*.bias", "head.weight"], {name for name in NAMES if name.endswith(".bias")} | {"head.weight"}),
        (["*norm"], {name for name in NAMES if "norm." in name}),
        (["blocks.[01].feed_forward"], {name for name in NAMES if ".feed_forward." in name}),
        (["*"], set(NAMES)),
    ],
)
def test_patterns_name_parameters_or_modules(patterns: list[str], frozen: set[str]) -> None:
    model = encoder()
    assert set(freeze(model, patterns)) == frozen
    assert trained(model) == set(NAMES) - frozen


def test_what_was_frozen_before_stays() -> None:
    model = encoder()
    freeze(model, ["head"])
    freeze(model, ["norm"])
    assert trained(model) == {name for name in NAMES if not name.startswith(("head.", "norm."))}


def test_a_tied_weight_is_frozen_by_each_of_its_names() -> None:
    for pattern in ("embedding", "out", "out.weight"):
        model = nn.Module()
        model.embedding, model.out = nn.Embedding(5, 4), nn.Linear(4, 5)
        model.out.weight = model.embedding.weight
        freeze(model, [pattern])
        assert "embedding.weight" not in trained(model)
        assert ("out.bias" in trained(model)) == (pattern != "out")


def test_a_shared_module_is_frozen_by_each_of_its_names() -> None:
    layer = nn.Linear(2, 2)
    model = nn.ModuleDict({"first": layer, "second": layer, "third": nn.Linear(2, 2)})
    assert freeze(model, ["second"]) == ("first.weight", "first.bias")
    assert trained(model) == {"third.weight", "third.bias"}


def test_patterns_without_a_match_come_together() -> None:
    model = encoder()
    with pytest.raises(ConfigError) as caught:
        freeze(model, ["block.0.*", "head", "dropout", "xyzzy"])
    assert caught.value.messages == (
        "freeze: fits no parameter, got 'block.0.*'. Near it: blocks.0, blocks.1, blocks.",
        "freeze: fits no parameter, got 'dropout'. There are token_embedding, position_embedding, blocks, norm, head.",
        "freeze: fits no parameter, got 'xyzzy'. There are token_embedding, position_embedding, blocks, norm, head.",
    )
    assert trained(model) == set(NAMES)


class TestBatchNorm:
    def test_frozen_statistics_stay_and_are_used(self) -> None:
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

    def test_without_freezing_all_move(self) -> None:
        model = resnet().train()
        before = statistics(model)
        freeze(model, ["head", "*.bias"])
        model(**images(8, 3, 8, 8))
        assert moved(model, before) == set(before)

    def test_in_a_copy_and_after_loading_too(self) -> None:
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
    def test_norms_without_parameters_follow_the_module_around(self, norm: nn.Module) -> None:
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

    def test_norms_without_statistics_are_left_alone(self) -> None:
        model = nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False))
        freeze(model, ["0"])
        assert model.train()[0].training

    def test_artifacts_are_equal(self, tmp_path: Path) -> None:
        model = resnet()
        freeze(model, ["blocks"])
        traced, *others = [images(count, 3, 8, 8, seed=count) for count in (4, 1, 9)]
        assert_exports_equal(model, traced, others, IMAGE_AXES, {}, tmp_path)


PATTERNS = st.sampled_from(["*", "blocks.*", "blocks.0", "*.bias", "head.weight", "*embedding*", "norm"])
ENTRIES = st.lists(st.tuples(PATTERNS, st.integers(0, 6)), max_size=5)


def fits(name: str, pattern: str) -> bool:
    parents = [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)]
    return any(fnmatchcase(part, pattern) for part in parents)


class TestGradual:
    @given(entries=ENTRIES, steps=st.lists(st.integers(0, 8), min_size=1, max_size=8))
    def test_it_is_a_function_of_the_step(self, entries: list[tuple[str, int]], steps: Sequence[int]) -> None:
        model = encoder()
        thaw = gradual_unfreezing(model, entries)
        assert trained(model) == set(NAMES)
        for step in steps:
            thaw(step)
            starts = {name: [start for pattern, start in entries if fits(name, pattern)] for name in NAMES}
            assert trained(model) == {name for name in NAMES if not starts[name] or starts[name][-1] <= step}

    def test_what_is_frozen_for_good_stays_frozen(self) -> None:
        model = encoder()
        freeze(model, ["blocks.0"])
        thaw = gradual_unfreezing(model, [("blocks", 2)])
        thaw(1)
        assert not any(name.startswith("blocks.") for name in trained(model))
        thaw(2)
        assert {name for name in trained(model) if name.startswith("blocks.")} == {
            name for name in NAMES if name.startswith("blocks.1.")
        }

    def test_norms_are_held_until_their_parameters_train(self) -> None:
        model = resnet().train()
        thaw = gradual_unfreezing(model, [("blocks.0", 2)])

        def of_the_block(step: int) -> set[str]:
            thaw(step)
            before = statistics(model)
            model(**images(4, 3, 8, 8))
            return {name for name in moved(model, before) if name.startswith("blocks.0.")}

        everything = {name for name in statistics(model) if name.startswith("blocks.0.")}
        assert of_the_block(0) == set()
        model.eval().train()
        assert of_the_block(1) == set()
        assert of_the_block(2) == everything
        model.eval().train()
        assert of_the_block(3) == everything
        assert of_the_block(1) == set()
        model.eval()
        thaw(2)
        assert not any(module.training for module in model.modules())

    def test_a_frozen_parameter_is_not_updated_and_then_it_is(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
        thaw = gradual_unfreezing(model, [("0", 2)])
        for step in range(4):
            before = model[0].weight.detach().clone()
            thaw(step)
            optimizer.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
            assert torch.equal(model[0].weight, before) == (step < 2)

    def test_nothing_is_written_where_nothing_changes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model = encoder()
        thaw = gradual_unfreezing(model, [("blocks.0", 3), ("blocks.1", 5)])
        calls: list[bool] = []
        changed = nn.Parameter.requires_grad_

        def counted(parameter: nn.Parameter, value: bool = True) -> Tensor:
            calls.append(value)
            return changed(parameter, value)

        monkeypatch.setattr(nn.Parameter, "requires_grad_", counted)
        counts = []
        for step in (0, 1, 2, 3, 4, 5, 6, 7):
            thaw(step)
            counts.append(len(calls))
            calls.clear()
        assert [count > 0 for count in counts] == [True, False, False, True, False, True, False, False]

    def test_faults_come_together(self) -> None:
        model = encoder()
        freeze(model, ["norm"])
        with pytest.raises(ConfigError) as caught:
            gradual_unfreezing(model, [("block", 3), ("norm.*", 1), ("head", -1)])
        assert caught.value.messages == (
            "freeze: fits no parameter, got 'block'. Near it: blocks, blocks.1, blocks.0.",
            "freeze: fits parameters only that are frozen for good, got 'norm.*'.",
            "freeze: the step of head must be at least 0, got -1.",
        )
