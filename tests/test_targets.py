import time
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer import targets
from trainer.errors import DataError, RowError
from trainer.loss.adaptive_softmax import AdaptiveSoftmax
from trainer.loss.asymmetric import Asymmetric
from trainer.loss.binary_cross_entropy import BinaryCrossEntropy
from trainer.loss.cosine_embedding import CosineEmbedding
from trainer.loss.cross_entropy import CrossEntropy
from trainer.loss.dice import Dice
from trainer.loss.focal import Focal
from trainer.loss.huber import Huber
from trainer.loss.mse import Mse
from trainer.loss.poly import Poly
from trainer.protocols import Batch


def batch(target: Tensor, ids: tuple[int, ...]) -> Batch:
    return Batch({"x": torch.zeros(len(ids), 2)}, target, len(ids), ids)


class Checked(CrossEntropy):
    def check(self, target: Tensor) -> None:
        targets.check_classes(target, 3, -100)


def checked() -> Checked:
    return Checked(None, 0.0, -100)


def test_targets_are_counted() -> None:
    assert targets.count_targets(checked(), batch(torch.tensor([0, 2, -100]), (7, 8, 9))) == 2.0


def test_error_names_the_sample_of_a_wrong_target() -> None:
    with pytest.raises(
        DataError, match=r"^sample 8 \(position in its split\): target: must be a class in 0 \.\.\. 2, or"
    ):
        targets.count_targets(checked(), batch(torch.tensor([0, 3, 5]), (7, 8, 9)))


def test_error_names_all_samples_if_rows_are_not_samples() -> None:
    with pytest.raises(DataError, match=r"^one of the samples 7, 8 \(positions in their split\): target: "):
        targets.count_targets(checked(), batch(torch.tensor([0, 3, 5]), (7, 8)))


def test_a_loss_without_a_check_accepts_any_target() -> None:
    class Trusting:
        def __call__(self, output: Tensor, target: Tensor) -> Tensor:
            return output.sum()

        def num_targets(self, target: Tensor) -> Tensor:
            return torch.tensor(target.numel())

    assert targets.count_targets(Trusting(), batch(torch.tensor([900]), (0,))) == 1.0


def test_a_loss_that_needs_inputs_gets_them() -> None:
    class Guided:
        needs_inputs = True

        def __call__(self, output: Tensor, target: Tensor, inputs: dict[str, Tensor]) -> Tensor:
            return (output - inputs["x"]).sum()

        def num_targets(self, target: Tensor) -> Tensor:
            return torch.tensor(target.numel())

    part = batch(torch.tensor([0]), (0,))
    assert targets.compute_loss(Guided(), part.inputs["x"] + 1, part).item() == 2.0  # type: ignore[arg-type]


def test_scores_are_the_output_unless_the_loss_has_a_head() -> None:
    class Own(nn.Module):
        in_features = 2

        def scores(self, output: Tensor) -> Tensor:
            return output + 1

    output = torch.zeros(2)
    assert targets.compute_scores(checked(), output) is output
    assert torch.equal(targets.compute_scores(Own(), output), output + 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("target", "position", "message"),
    [
        (torch.tensor([0.0, 1.0]), 0, r"must be classes \(int64\), got 'torch.float32'"),
        (torch.tensor([[0, 1], [2, -1]]), 1, r"must be a class in 0 \.\.\. 2, or -100 to be left out, got -1"),
        (torch.tensor([0, 1, 3]), 2, "got 3"),
    ],
)
def test_check_classes(target: Tensor, position: int, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        targets.check_classes(target, 3, -100)
    assert caught.value.position == position


def test_classes_without_a_known_number_of_classes() -> None:
    targets.check_classes(torch.tensor([900, -100]), None, -100)
    with pytest.raises(RowError, match="must be a class, 0 or more"):
        targets.check_classes(torch.tensor([-3]), None, -100)


@pytest.mark.parametrize(
    ("target", "position", "message"),
    [
        (torch.tensor([[0, 1]]), 0, r"float \(B, 2\), got 'int64 \(1, 2\)'"),
        (torch.ones(3), 0, r"float \(B, 2\), got 'float32 \(3,\)'"),
        (torch.ones(3, 3), 0, r"float \(B, 2\)"),
        (torch.tensor([[0.0, 1.0], [0.5, 1.0]]), 1, r"must be 0, 1, or -100 to be left out, got 0\.5"),
    ],
)
def test_check_multi_hot(target: Tensor, position: int, message: str) -> None:
    targets.check_multi_hot(torch.tensor([[0.0, 1.0], [-100.0, 1.0]]), 2, -100)
    with pytest.raises(RowError, match=message) as caught:
        targets.check_multi_hot(target, 2, -100)
    assert caught.value.position == position


def test_check_values() -> None:
    targets.check_values(torch.tensor([[1e30]]), None)
    with pytest.raises(RowError, match="must be finite, got nan") as caught:
        targets.check_values(torch.tensor([[1.0], [float("nan")]]), 1)
    assert caught.value.position == 1


def test_check_similarity() -> None:
    targets.check_similarity(torch.tensor([1.0, -1.0]))
    with pytest.raises(RowError, match=r"must be -1 or 1, got 0\.0"):
        targets.check_similarity(torch.tensor([1.0, 0.0]))
    with pytest.raises(RowError, match=r"must be -1 or 1 for each pair, \(B,\)"):
        targets.check_similarity(torch.tensor([[1.0]]))


def test_check_views() -> None:
    targets.check_views(torch.tensor([[4, 4], [5, 5]]))
    with pytest.raises(RowError, match="at least two views"):
        targets.check_views(torch.tensor([[4], [5]]))


def test_a_model_with_a_loss_head_outputs_scores_and_keeps_its_input_names() -> None:
    class Named(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class Own(nn.Module):
        in_features = 2

        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(3.0))

        def scores(self, output: Tensor) -> Tensor:
            return output + self.shift

    model, x = Named(), torch.ones(2)
    made = targets.with_loss_head(model, Own())  # type: ignore[arg-type]
    program = torch.export.export(made, (), {"x": x})

    assert torch.equal(made(x=x), torch.full((2,), 5.0))
    assert torch.equal(program.module()(x=x), torch.full((2,), 5.0))
    assert torch.equal(model(x=x), torch.full((2,), 2.0))
    assert targets.with_loss_head(model, checked()) is model


CLASSES, LABELS, VALUES = torch.tensor([0, 2, 1, -100, 3]), torch.eye(4)[[0, 2, 2, 1, 3]], torch.randn(5, 4)
WEIGHT = [1.0, 0.5, 2.0, 0.0]


@pytest.mark.parametrize(
    ("loss", "target", "views"),
    [
        (CrossEntropy(WEIGHT, 0.2, -100, num_outputs=4), CLASSES, 1),
        (CrossEntropy(WEIGHT, 0.2, -100, num_outputs=4), LABELS, 1),
        (Poly(0.5, WEIGHT, 0.2, -100, num_outputs=4), CLASSES, 1),
        (Focal(2.0, 0.3, 0.1, -100), CLASSES, 1),
        (Focal(0.0, None, 0.1, -100), LABELS, 1),
        (Focal(2.0, None, 0.1, -100, train_target="shares"), LABELS, 1),
        (BinaryCrossEntropy(None, 0.1, -100), LABELS, 1),
        (Asymmetric(4.0, 1.0, 0.05, -100), LABELS, 1),
        (Mse(), VALUES, 1),
        (Huber(0.7), VALUES, 1),
        (CosineEmbedding(0.1), torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0]), 2),
        (Dice(1.0, "sample", -100), CLASSES, 1),
        (AdaptiveSoftmax(4, [2], 1.0, False, -100, num_outputs=4, class_counts=[5, 4, 3, 2]), CLASSES, 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_row_losses_are_the_losses_of_single_rows(loss: Any, target: Tensor, views: int) -> None:
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(5 * views, 4, generator=generator)
    with torch.inference_mode():
        losses = targets.compute_row_losses(loss, output, target)
        single = [loss(output[i * views : (i + 1) * views], target[i : i + 1]) for i in range(5)]
        torch.testing.assert_close(losses, torch.stack(single))
        torch.testing.assert_close(losses.sum(), loss(output, target))


@pytest.mark.parametrize(
    ("values", "names", "expected"),
    [
        ({"a": 2.0, 1: 3.0}, ["1", "a"], {"a": 2.0, "1": 3.0}),
        ({True: 2.0, 100000.0: 3.0}, ["1e5", "true"], {"true": 2.0, "1e5": 3.0}),
        ({1: 2.0}, ["01", "1"], {"1": 2.0}),
        ({1: 2.0}, ["01", "1.0"], {"1": 2.0}),  # no class, as two are alike
        ({False: 2.0}, ["0", "False"], {"False": 2.0}),
        ({"b": 2.0}, ["nan", "a"], {"b": 2.0}),
        ({"1e5": 2.0, 100000.0: 3.0}, ["1e5", "b"], {"1e5": 2.0, "100000.0": 3.0}),  # no class, as it has a value
        ({1: 2.0}, ["1.0", "true"], {"1.0": 2.0}),
    ],
)
def test_values_are_found_by_names_that_are_read_as_numbers_or_truth_values(
    values: dict[Any, float], names: list[str], expected: dict[str, float]
) -> None:
    assert targets.by_class_name(values, names) == expected


def test_values_of_many_classes_are_found_in_one_pass() -> None:
    names = [f"{n}.0" for n in range(50_000)]
    began = time.process_time()
    assert list(targets.by_class_name(dict.fromkeys(range(50_000), 1.0), names)) == names
    assert time.process_time() - began < 60  # each key compared with each name takes many minutes
