"""Example outputs and targets for losses, and checks that a loss is a sum over its rows."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainer.protocols import Loss


def logits_and_classes(rows: int = 64, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return logits (rows, 5) and classes; every seventh is -100, ignored."""
    generator = torch.Generator().manual_seed(5)
    logits = 4 * torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(5, (rows,), generator=generator)
    target[::7] = -100
    return logits.to(dtype), target


def logits_and_labels(dtype: torch.dtype = torch.float64, rows: int = 32) -> tuple[Tensor, Tensor]:
    """Return logits (rows, 4) and labels; some rows and some single entries are -100, ignored."""
    generator = torch.Generator().manual_seed(17)
    logits = 4 * torch.randn(rows, 4, generator=generator, dtype=torch.float64)
    target = torch.randint(2, (rows, 4), generator=generator).float()
    target[::7] = -100
    target[1::5, 2] = -100
    return logits.to(dtype), target


def outputs_and_values(rows: int = 24, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Return outputs (rows, 3) and target values in float32."""
    generator = torch.Generator().manual_seed(2)
    output = 3 * torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    target = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    return output.to(dtype), target.float()


def value_and_gradient(
    loss: Callable[[Tensor, Tensor], Tensor], output: Tensor, target: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss and its gradient with respect to the output."""
    output = output.clone().requires_grad_()
    value = loss(output, target)
    value.backward()
    assert output.grad is not None
    return value.detach(), output.grad


def check_reference(
    loss: Callable[[Tensor, Tensor], Tensor],
    reference: Callable[[Tensor, Tensor], Tensor],
    output: Tensor,
    target: Tensor,
) -> None:
    """Check value and gradient against a reference to a few ulp."""
    value, gradient = value_and_gradient(loss, output, target)
    expected, expected_gradient = value_and_gradient(reference, output, target)
    digits = torch.finfo(output.dtype).eps
    assert (value.shape, value.dtype) == ((), output.dtype)
    assert math.isclose(value.item(), expected.item(), rel_tol=8 * digits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=16 * digits, atol=8 * digits)


def check_parts_add_up(loss: Loss, output: Tensor, target: Tensor, split: int) -> None:
    """Check that two micro-batches have the loss, the gradients and the count of the whole batch."""
    whole, gradient = value_and_gradient(loss, output, target)
    first = value_and_gradient(loss, output[:split], target[:split])
    second = value_and_gradient(loss, output[split:], target[split:])
    assert math.isclose(first[0] + second[0], whole, rel_tol=1e-13)
    assert torch.allclose(torch.cat([first[1], second[1]]), gradient, rtol=1e-12, atol=1e-14)
    counts = loss.num_targets(target[:split]) + loss.num_targets(target[split:])
    assert torch.equal(counts, loss.num_targets(target))


def check_no_target_is_zero(loss: Loss, output: Tensor, target: Tensor) -> None:
    """Check that ignored targets have no loss, no gradient and no count in any precision."""
    assert (target == -100).all()
    assert loss.num_targets(target).item() == 0
    for dtype in (torch.float32, torch.bfloat16):
        value, gradient = value_and_gradient(loss, output.to(dtype), target)
        assert value.item() == 0
        assert torch.equal(gradient, torch.zeros_like(output, dtype=dtype))


def check_order_is_free(loss: Loss, output: Tensor, target: Tensor, order: Sequence[int]) -> None:
    """Check that the order of the rows does not matter."""
    with torch.no_grad():
        assert math.isclose(loss(output[list(order)], target[list(order)]), loss(output, target), rel_tol=1e-13)


def check_ignored_rows_are_left_out(loss: Loss, output: Tensor, target: Tensor, kept: Sequence[bool]) -> None:
    """Check that a row of -100 adds nothing to the loss, the gradients and the count."""
    mask = torch.tensor(kept)
    ignoring = target.clone()
    ignoring[~mask] = -100
    value, gradient = value_and_gradient(loss, output, ignoring)
    expected, rows = value_and_gradient(loss, output[mask], target[mask])
    assert math.isclose(value, expected, rel_tol=1e-13)
    assert torch.allclose(gradient[mask], rows, rtol=1e-12, atol=1e-14)
    assert not gradient[~mask].any()
    assert torch.equal(loss.num_targets(ignoring), loss.num_targets(target[mask]))
