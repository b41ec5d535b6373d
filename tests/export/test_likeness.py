import math

import pytest
import torch
from torch import Tensor

from trainer.errors import ProofError
from trainer.export.likeness import Likeness, decisions
from trainer.protocols import Target


def likeness(expected: Tensor, got: Tensor, target: Tensor | None = None, kind: Target = "values") -> Likeness:
    found = Likeness(kind)
    for half in (slice(None, 3), slice(3, None)):  # no two halves have one mean
        found.update(expected[half], got[half], torch.zeros(len(expected))[half] if target is None else target[half])
    return found


def test_relative_difference_is_by_the_spread_around_the_means() -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.randn(20, 3, generator=generator) + torch.tensor([0.5, -0.5, 0.0])
    got = expected + 0.1 * torch.randn(20, 3, generator=generator)
    spread = (expected - expected.mean(0)).norm()
    assert likeness(expected, got).relative_difference == pytest.approx(
        float((got - expected).norm() / spread), rel=1e-5
    )
    constant = expected.mean(0).expand(20, 3)
    assert likeness(expected, constant).relative_difference == pytest.approx(1.0)
    assert likeness(expected, expected).relative_difference == 0.0


def test_outputs_that_hardly_differ_are_measured_by_their_size() -> None:
    expected = 3.0 + 1e-6 * torch.arange(8.0)[:, None]
    assert likeness(expected, expected * 1.01).relative_difference == pytest.approx(0.05, rel=1e-3)
    nothing = torch.zeros(8, 1)
    assert likeness(nothing, nothing).relative_difference == 0.0
    assert likeness(nothing, nothing + 1e-9).relative_difference == math.inf


def test_places_without_a_target_do_not_count() -> None:
    expected = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    target = torch.zeros(6, 4, dtype=torch.int64)
    target[:, 2:] = -100
    got = expected.clone()
    got[:, 2:] = got[:, 2:].roll(1, -1)
    found = likeness(expected, got, target, "class")
    assert (found.agreement, found.relative_difference) == (1.0, 0.0)
    assert likeness(expected, got, target.abs(), "class").agreement == 0.5


def test_equal_infinities_are_no_difference() -> None:
    expected = torch.tensor([[0.0, -torch.inf], [1.0, 2.0], [2.0, 1.0], [0.0, 0.0]])
    assert likeness(expected, expected.clone()).relative_difference == 0.0


@pytest.mark.parametrize(("flips", "refused"), [(2, False), (3, True)])
def test_a_quarter_of_the_decisions_may_be_others(flips: int, refused: bool) -> None:
    expected = torch.tensor([[0.0, 0.1, 9.0]] * 4 + [[9.0, 0.1, 0.0]] * 4)
    expected[:flips] = torch.tensor([0.0, 0.1, 0.11])
    got = expected.clone()
    got[:flips] = torch.tensor([0.0, 0.11, 0.1])
    found = likeness(expected, got, torch.zeros(8, dtype=torch.int64), "class")
    if refused:
        with pytest.raises(
            ProofError, match=r"^model\.onnx: decisions .* agree with PyTorch's in 0\.75 .*, got 0\.625"
        ):
            found.prove("model.onnx")
    else:
        found.prove("model.onnx")


def test_what_an_output_decides() -> None:
    output = torch.tensor([[-1.0, 2.0], [3.0, 1.0]])

    assert torch.equal(decisions(output, "class"), torch.tensor([1, 0]))
    assert torch.equal(decisions(output, "multi_hot"), torch.tensor([[False, True], [True, True]]))
    assert decisions(output, "values") is None
    assert decisions(output[:, :1], "class") is None
