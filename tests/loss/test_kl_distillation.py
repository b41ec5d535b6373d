import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trainer.errors import ConfigError, RowError
from trainer.loss.kl_distillation import KlDistillation


def teach(inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """A teacher that was asked before: its logits are the input."""
    return inputs["logits"]


def loss_of(temperature: float = 2.0, weight: float = 0.5) -> KlDistillation:
    return KlDistillation("runs/teacher", temperature, weight, -100, 5, teach)


def job(rows: int = 20, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of the student, labels, logits of the teacher."""
    generator = torch.Generator().manual_seed(3)
    student, teacher = (3 * torch.randn(rows, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    target = torch.randint(5, (rows,), generator=generator)
    target[::6] = -100
    return student.to(dtype), target, teacher.to(dtype)


def softmax(row: list[float], temperature: float) -> list[float]:
    norm = math.fsum(math.exp(x / temperature) for x in row)
    return [math.exp(x / temperature) / norm for x in row]


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_is_the_formulas(temperature, weight):
    student, target, teacher = job()
    value = loss_of(temperature, weight)(student, target, {"logits": teacher})
    expected = 0.0
    for row, y, wanted in zip(student.tolist(), target.tolist(), teacher.tolist(), strict=True):
        if y != -100:
            p, q = softmax(wanted, temperature), softmax(row, temperature)
            divergence = math.fsum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
            expected += (1 - weight) * -math.log(softmax(row, 1.0)[y]) + weight * temperature**2 * divergence
    assert (value.shape, value.dtype) == ((), torch.float64)
    assert math.isclose(value.item(), expected, rel_tol=1e-12)


def test_value_and_gradient_are_torchs():
    student, target, teacher = job()
    ours, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    kept = target != -100
    value = loss_of(3.0, 0.4)(ours, target, {"logits": teacher})
    divergence = F.kl_div((theirs / 3)[kept].log_softmax(1), (teacher / 3)[kept].softmax(1), reduction="sum")
    expected = 0.6 * F.cross_entropy(theirs, target, reduction="sum") + 0.4 * 9 * divergence
    value.backward()
    expected.backward()
    assert torch.allclose(value, expected, rtol=1e-12)
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_teachers_own_logits_leave_nothing_to_learn(dtype):
    student, target, _ = job(dtype=dtype)
    student.requires_grad_()
    value = loss_of(2.0, 1.0)(student, target, {"logits": student.detach().clone()})
    value.backward()
    assert value.item() == 0
    assert torch.allclose(student.grad, torch.zeros_like(student), atol=1e-6)


def test_without_a_share_it_is_cross_entropy():
    student, target, teacher = job()
    expected = F.cross_entropy(student, target, reduction="sum")
    assert torch.equal(loss_of(2.0, 0.0)(student, target, {"logits": teacher}), expected)


def test_a_high_temperature_matches_centred_logits():
    # Hinton et al. 2015, section 2.1: then it is half the squared distance of the centred logits, over C.
    student, _, teacher = job()
    target = torch.zeros(20, dtype=torch.int64)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    value = loss_of(1e4, 1.0)(student, target, {"logits": teacher})
    assert math.isclose(value.item(), (centred.square().sum() / 10).item(), rel_tol=1e-3)


def test_gradient_in_float64():
    student, target, teacher = job(rows=7)
    loss = loss_of()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, {"logits": teacher}), student.requires_grad_())


def test_no_gradient_reaches_the_teacher():
    teacher = nn.Linear(3, 5)
    loss = KlDistillation("runs/teacher", 2.0, 0.5, -100, 5, lambda inputs: teacher(**inputs))
    student = nn.Linear(3, 5)
    inputs = {"input": torch.randn(4, 3)}
    loss(student(**inputs), torch.tensor([0, 1, 2, 3]), inputs).backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_the_teacher_is_no_part_of_the_loss():
    class Teacher(nn.Linear):
        def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return super().forward(inputs["x"])

    loss = KlDistillation("runs/teacher", 2.0, 0.5, -100, 5, Teacher(3, 5))
    assert list(loss.parameters()) == list(loss.children()) == []
    assert loss.state_dict() == {}


@given(order=st.permutations(range(20)), split=st.integers(0, 20), weight=st.sampled_from([0.0, 0.5, 1.0]))
def test_it_is_a_sum_over_the_labels(order, split, weight):
    student, target, teacher = job()
    loss = loss_of(weight=weight)
    x, y, z = student[order], target[order], teacher[order]
    parts = loss(x[:split], y[:split], {"logits": z[:split]}) + loss(x[split:], y[split:], {"logits": z[split:]})
    assert math.isclose(parts.item(), loss(student, target, {"logits": teacher}).item(), rel_tol=1e-12)
    assert loss.num_targets(y[:split]) + loss.num_targets(y[split:]) == loss.num_targets(target) == 16


def test_leading_axes_are_flattened():
    student, target, teacher = job()
    loss = loss_of()
    shaped = loss(student.view(5, 4, 5), target.view(5, 4), {"logits": teacher.view(5, 4, 5)})
    assert torch.equal(shaped, loss(student, target, {"logits": teacher}))


@pytest.mark.parametrize("rows", [0, 4])
def test_without_labels_it_is_zero(rows):
    student = torch.randn(rows, 5, requires_grad=True)
    target = torch.full((rows,), -100)
    value = loss_of()(student, target, {"logits": torch.randn(rows, 5)})
    value.backward()
    assert value.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))
    assert loss_of().num_targets(target).item() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_stay_finite(dtype):
    student = torch.tensor([[1e4, -1e4, 0, 0, 0]] * 3, dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-1e4, 1e4, 0, 0, 0], [1e4, -1e4, 0, 0, 0], [0, 0, 1e4, 0, 0]], dtype=dtype)
    value = loss_of()(student, torch.tensor([1, 0, -100]), {"logits": teacher})
    value.backward()
    assert value.dtype == torch.float32
    assert math.isclose(value.item(), 0.5 * 2e4 + 0.5 * 4 * 1e4, rel_tol=1e-2)
    assert torch.isfinite(student.grad).all()
    assert torch.equal(student.grad[2], torch.zeros(5, dtype=dtype))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.0}, r"^temperature: must be finite and above 0, got 0\.0"),
        ({"temperature": math.inf}, r"^temperature: must be finite and above 0, got inf"),
        ({"weight": 1.5}, r"^weight: must be between 0 and 1, got 1\.5"),
        ({"weight": math.nan}, r"^weight: must be between 0 and 1, got nan"),
        ({"teacher_model": None}, r"^teacher: no model was loaded from it, got 'runs/teacher'\. Name a run folder\.$"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    keys = {"temperature": 2.0, "weight": 0.5, "ignore_index": -100, "teacher_model": teach}
    with pytest.raises(ConfigError, match=message):
        KlDistillation("runs/teacher", **keys | change)


def test_several_faults_are_named_together():
    with pytest.raises(ConfigError) as caught:
        KlDistillation("runs/teacher", 0.0, 2.0, -100)
    assert [message.split(":")[0] for message in caught.value.messages] == ["temperature", "weight", "teacher"]


def test_shapes_that_do_not_fit():
    student, target, teacher = job()
    with pytest.raises(
        ValueError, match=r"^teacher and student must give logits of one shape: the teacher's are \(20, 4\)"
    ):
        loss_of()(student, target, {"logits": teacher[:, :4]})
    with pytest.raises(ValueError, match="do not fit"):
        loss_of()(student, target[:, None], {"logits": teacher})


def test_a_label_at_fault_is_named():
    with pytest.raises(
        RowError, match=r"^target: must be a class in 0 \.\.\. 4, or -100 to be left out, got 5"
    ) as caught:
        loss_of().check(torch.tensor([4, -100, 5]))
    assert caught.value.position == 2
