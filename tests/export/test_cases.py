import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.export_models import ToyModel, ToyTask
from trainer.export.cases import forward_of, proof_cases, timed_inputs, traced_inputs

LIMITS = st.tuples(st.integers(1, 9), st.integers(0, 12)).map(lambda pair: (pair[0], pair[0] + pair[1]))


class Picture(ToyTask):
    """A task with two axes in addition to the batch, without a mask."""

    def __init__(self, **limits: tuple[int, int]) -> None:
        self.limits = limits

    def axes(self) -> dict[str, dict[int, str]]:
        return {"pixels": {0: "batch", 2: "height", 3: "width"}}

    def axis_limits(self) -> dict[str, tuple[int, int]]:
        return self.limits

    def example(self, sizes: dict[str, int], generator: np.random.Generator) -> dict[str, torch.Tensor]:
        shape = (sizes["batch"], 3, sizes["height"], sizes["width"])
        return {"pixels": torch.from_numpy(generator.random(shape, dtype=np.float32))}


@given(height=LIMITS, width=LIMITS)
def test_proof_shapes_cover_the_limits_and_are_never_traced(height: tuple[int, int], width: tuple[int, int]) -> None:
    task = Picture(height=height, width=width)
    cases = proof_cases(task, lambda inputs: inputs["pixels"].sum((1, 2, 3)))
    traced = traced_inputs(task)["pixels"].shape
    assert {case.sizes["batch"] for case in cases} == {1, 3, 8}
    for axis, place, (low, high) in (("height", 2, height), ("width", 3, width)):
        sizes_of_axis = {case.sizes[axis] for case in cases}
        assert {low, high} <= sizes_of_axis
        assert all(low <= size <= high for size in sizes_of_axis)
        assert low <= traced[place] <= high
        assert traced[place] >= 2 or high == 1
        if high - low >= 5:
            assert any(size % 2 and size not in (low, high) for size in sizes_of_axis)
    for case in cases:
        assert case.inputs["pixels"].shape == (case.sizes["batch"], 3, case.sizes["height"], case.sizes["width"])
        assert not case.padded
        assert case.sizes["batch"] != traced[0]


def test_axes_do_not_grow_together() -> None:
    cases = proof_cases(Picture(height=(1, 9), width=(1, 9)), lambda inputs: inputs["pixels"].sum((1, 2, 3)))
    assert all(case.sizes["height"] != case.sizes["width"] for case in cases)


def test_every_length_above_one_is_tried_with_and_without_padding() -> None:
    with torch.no_grad():
        cases = proof_cases(ToyTask(), forward_of(ToyModel().eval()))
    shapes = {(case.sizes["batch"], case.sizes["sequence"], case.padded) for case in cases}
    assert {(batch, length, False) for batch in (1, 3) for length in (1, 24)} <= shapes
    assert {(1, 24, True), (3, 24, True)} <= shapes
    for case in cases:
        assert case.padded == bool((case.inputs["attention_mask"] == 0).any())


def test_inputs_are_the_same_every_time() -> None:
    first, second = (proof_cases(ToyTask(), lambda inputs: inputs["input_ids"]) for _ in range(2))
    assert all(torch.equal(one.expected, other.expected) for one, other in zip(first, second, strict=True))


def test_timed_inputs_have_small_and_large_shapes() -> None:
    timed = timed_inputs(ToyTask())
    expected = [{"batch": batch, "sequence": length} for batch in (1, 8) for length in (3, 12, 24)]
    assert [sizes for sizes, _ in timed] == expected
    assert [tuple(inputs["input_ids"].shape) for _, inputs in timed] == [tuple(each.values()) for each in expected]
