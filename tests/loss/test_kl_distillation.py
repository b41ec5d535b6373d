import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trainer.errors import ConfigError, RowError
from trainer.loss.kl_distillation import KlDistillation


def teacher_model(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the teacher's logits, which are the input."""
    return inputs["logits"]


def make_loss(temperature: float = 2.0, weight: float = 0.5) -> KlDistillation:
    return KlDistillation("runs/teacher", temperature, weight, -100, 5, teacher_model)


def example(rows: int = 20, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits of the student, labels, logits of the teacher."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(rows, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(5, (rows,), generator=generator)
    target[::6] = -100
    return student.to(dtype), target, teacher.to(dtype)


def softmax(row: list[float], temperature: float) -> list[float]:
    norm = math.fsum(math.exp(x / temperature) for x in row)
    return [math.exp(x / temperature) / norm for x in row]


@pytest.mark.parametrize(("temperature", "weight"), [(0.5, 0.3), (1.0, 0.0), (4.0, 1.0)])
def test_value_matches_the_definition(temperature, weight):
    student, target, teacher = example()
    value = make_loss(temperature, weight)(student, target, {"logits": teacher})
    expected = 0.0
    for row, y, teacher_row in zip(student.tolist(), target.tolist(), teacher.tolist(), strict=True):
        if y != -100:
            p, q = softmax(teacher_row, temperature), softmax(row, temperature)
            divergence = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            expected += (1 - weight) * -math.log(softmax(row, 1.0)[y]) + weight * temperature**2 * divergence
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_value_and_gradient_match_torch():
    student, target, teacher = example()
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    kept = target != -100
    value = make_loss(3.0, 0.4)(ours, target, {"logits": teacher})
    divergence = F.kl_div((theirs / 3)[kept].log_softmax(1), (teacher / 3)[kept].softmax(1), reduction="sum")
    expected = 0.6 * F.cross_entropy(theirs, target, reduction="sum") + 0.4 * 9 * divergence
    value.backward()
    expected.backward()
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_the_loss_of_the_teachers_own_logits_is_zero(dtype):
    student, target, _ = example(dtype=dtype)
    student.requires_grad_()
    value = make_loss(2.0, 1.0)(student, target, {"logits": student.detach().clone()})
    value.backward()
    assert value.item() == 0
    assert torch.allclose(student.grad, torch.zeros_like(student), atol=1e-6)


def test_weight_zero_is_cross_entropy():
    student, target, teacher = example()
    expected = F.cross_entropy(student, target, reduction="sum")
    torch.testing.assert_close(make_loss(2.0, 0.0)(student, target, {"logits": teacher}), expected)


def test_a_high_temperature_matches_centered_logits():
    # Hinton et al. 2015, section 2.1: then the loss is half the squared distance of the centered logits, over C.
    student, _, teacher = example()
    target = torch.zeros(20, dtype=torch.int64)
    centered = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    value = make_loss(1e4, 1.0)(student, target, {"logits": teacher})
    assert math.isclose(value.item(), (centered.square().sum() / 10).item(), rel_tol=1e-3)


def test_gradient():
    student, target, teacher = example(rows=7)
    loss = make_loss()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, {"logits": teacher}), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Linear(3, 5)
    loss = KlDistillation("runs/teacher", 2.0, 0.5, -100, 5, lambda inputs: teacher(**inputs))
    student = nn.Linear(3, 5)
    inputs = {"input": torch.randn(4, 3)}
    loss(student(**inputs), torch.tensor([0, 1, 2, 3]), inputs).backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_the_teacher_is_no_submodule():
    class Teacher(nn.Linear):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(inputs["x"])

    loss = KlDistillation("runs/teacher", 2.0, 0.5, -100, 5, Teacher(3, 5))
    assert list(loss.parameters()) == list(loss.children()) == []
    assert loss.state_dict() == {}


@settings(max_examples=30)
@given(order=st.permutations(range(20)), split=st.integers(0, 20), weight=st.sampled_from([0.0, 0.5, 1.0]))
def test_loss_is_a_sum_over_labels(order, split, weight):
    student, target, teacher = example()
    loss = make_loss(weight=weight)
    x, y, z = student[order], target[order], teacher[order]
    parts = loss(x[:split], y[:split], {"logits": z[:split]}) + loss(x[split:], y[split:], {"logits": z[split:]})
    assert math.isclose(parts.item(), loss(student, target, {"logits": teacher}).item(), rel_tol=1e-12)
    assert loss.num_targets(y[:split]) + loss.num_targets(y[split:]) == loss.num_targets(target) == 16


def test_leading_axes_are_flattened():
    student, target, teacher = example()
    loss = make_loss()
    shaped = loss(student.view(5, 4, 5), target.view(5, 4), {"logits": teacher.view(5, 4, 5)})
    assert torch.equal(shaped, loss(student, target, {"logits": teacher}))


@pytest.mark.parametrize("rows", [0, 4])
def test_loss_without_labels_is_zero(rows):
    student = torch.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100)
    value = make_loss()(student, target, {"logits": torch.randn(rows, 5)})
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert make_loss().num_targets(target).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_stay_finite(dtype):
    student = torch.tensor([[1e4, -1e4, 0, 0, 0]] * 3, dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0, 0, 0], [1e4, -1e4, 0, 0, 0], [0, 0, 1e4, 0, 0]], dtype=dtype)
    value = make_loss()(student, torch.tensor([1, 0, -100]), {"logits": teacher})
    value.backward()
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), 0.5 * 2e4 + 0.5 * 4 * 1e4, rel_tol=1e-2)
    assert torch.isfinite(student.grad).all()
    assert torch.equal(student.grad[2], torch.zeros(5, dtype=dtype))


def test_wrong_arguments_raise():
    for change, message in [
        ({"temperature": 0.0}, r"^temperature: must be "),
        ({"temperature": math.inf}, r"^temperature: must be "),
        ({"weight": 1.5}, r"^weight: must be between 0 and 1, "),
        ({"weight": math.nan}, r"^weight: must be between 0 and 1, "),
        ({"teacher_model": None}, r"^teacher: no model was loaded from it, got 'runs/teacher'\. Name a run folder\.$"),
    ]:
        keys = {"temperature": 2.0, "weight": 0.5, "ignore_index": -100, "teacher_model": teacher_model}
        with pytest.raises(ConfigError, match=message):
            KlDistillation("runs/teacher", **keys | change)


def test_wrong_arguments_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        KlDistillation("runs/teacher", 0.0, 2.0, -100)
    assert [message.split(":")[0] for message in caught.value.messages] == ["temperature", "weight"]


def test_mismatched_shapes_raise():
    student, target, teacher = example()
    with pytest.raises(
        ValueError, match=r"^teacher and student must return logits of one shape: the teacher's are \(20, 4\)"
    ):
        make_loss()(student, target, {"logits": teacher[:, :4]})
    with pytest.raises(ValueError, match="do not fit"):
        make_loss()(student, target[:, None], {"logits": teacher})


def test_check_names_the_first_wrong_label():
    with pytest.raises(
        RowError, match=r"^target: must be a class in 0 \.\.\. 4, or -100 to be left out, got 5"
    ) as caught:
        make_loss().check(torch.tensor([4, -100, 5]))
    assert caught.value.position == 2
