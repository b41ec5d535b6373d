import copy
import math

import pytest
import torch

from tests.support.optimizer_reference import (
    assert_out_of_range,
    assert_resumes_bitwise_equal,
    gradients,
    groups,
    named_parameters,
    train,
)
from trainer.errors import ConfigError
from trainer.optimizer.muon import muon

VALUES = {
    "lr": 0.01,
    "momentum": 0.95,
    "nesterov": True,
    "ns_steps": 5,
    "adjust_lr_fn": "match_rms_adamw",
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.3,
}
SHAPES = {"weight": (6, 4), "wide": (4, 16), "table": (5, 2), "bias": (6,), "head": (3, 4)}
HIDDEN = {"weight", "wide"}


def make(params, **changes):
    return muon(params, **{"hidden": HIDDEN, **VALUES, **changes})


def random_gradients(step, parameter):
    """Return gradients of full rank, unlike the rows of a sine: Muon scales rounding errors up to the rest."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def orthogonalize(matrix: torch.Tensor, steps: int) -> torch.Tensor:
    """Iterate X <- a X + b (X X') X + c (X X')^2 X (Jordan) from the matrix over its norm."""
    x = matrix / matrix.norm()
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


def evaluate_paper(start: torch.Tensor, steps: int, *, nesterov: bool, ns_steps: int, factor: float) -> torch.Tensor:
    value, buffer = start.clone(), torch.zeros_like(start)
    for t in range(1, steps + 1):
        g = random_gradients(t, value)
        buffer = 0.95 * buffer + g
        step = orthogonalize(g + 0.95 * buffer if nesterov else buffer, ns_steps)
        value = value - 0.01 * (0.3 * value + factor * step)
    return value


@pytest.mark.parametrize(
    ("nesterov", "ns_steps", "adjust"),
    [(True, 5, "match_rms_adamw"), (False, 1, "original"), (True, 1, "original"), (False, 5, "match_rms_adamw")],
)
def test_updates_of_hidden_matrices_match_the_paper(nesterov, ns_steps, adjust):
    steps = 4
    parameters = named_parameters(SHAPES)
    start = {name: parameter.detach().clone() for name, parameter in parameters}
    changes = {"nesterov": nesterov, "ns_steps": ns_steps, "adjust_lr_fn": adjust}
    optimizer = make(groups(parameters, 0.01, 0.3), **changes)
    for step in range(1, steps + 1):
        for _, parameter in parameters:
            parameter.grad = random_gradients(step, parameter)
        optimizer.step()
    for name, end in parameters:
        if name not in HIDDEN:
            continue
        rows, columns = SHAPES[name]
        factor = 0.2 * max(rows, columns) ** 0.5 if adjust == "match_rms_adamw" else max(1, rows / columns) ** 0.5
        expected = evaluate_paper(start[name], steps, nesterov=nesterov, ns_steps=ns_steps, factor=factor)
        # Torch iterates in bfloat16, which has 8 bits.
        assert (end - expected).norm() < 0.02 * (end - start[name]).norm()


def test_updates_match_torchs_muon_and_adamw():
    joined = named_parameters(SHAPES)
    train(make(groups(joined, 0.01, 0.3)), joined, 1, 10)
    named = dict(named_parameters(SHAPES))
    decayed = {"weight_decay": 0.3, "lr": 0.01}
    matrices = torch.optim.Muon([named[name] for name in ("weight", "wide")], adjust_lr_fn="match_rms_adamw", **decayed)
    rest = [{"params": [named["head"]]}, {"params": [named["table"], named["bias"]], "weight_decay": 0.0}]
    others = torch.optim.AdamW(rest, betas=(0.9, 0.99), fused=True, **decayed)
    for step in range(1, 11):
        for parameter in named.values():
            parameter.grad = gradients(step, parameter)
        matrices.step()
        others.step()
    for name, parameter in joined:
        torch.testing.assert_close(parameter, named[name], rtol=1e-12, atol=1e-13)


def test_a_step_is_about_as_large_as_adamws():
    shapes = {"weight": (64, 32), "table": (64, 32)}
    parameters = named_parameters(shapes)
    start = {name: parameter.detach().clone() for name, parameter in parameters}
    optimizer = make(groups(parameters, 0.01, 0.0), hidden={"weight"})
    generator = torch.Generator().manual_seed(0)
    for _, parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    optimizer.step()
    moved = (dict(parameters)["weight"].detach() - start["weight"]) / 0.01
    assert 0.1 < moved.square().mean().sqrt() < 0.3
    # The singular values of the step are near each other.
    values = torch.linalg.svdvals(moved) / (0.2 * 64**0.5)
    assert values.min() > 0.5
    assert values.max() < 1.5


def test_both_optimizers_have_one_list_of_groups_and_one_state():
    parameters = named_parameters(SHAPES)
    optimizer = make(groups(parameters, 0.01, 0.3))
    train(optimizer, parameters, 1, 1)
    names = [group["param_names"] for group in optimizer.param_groups]
    assert names == [["weight", "wide"], ["head"], ["table", "bias"]]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.3, 0.0]
    state = {name: set(optimizer.state[parameter]) for name, parameter in parameters}
    assert all(state[name] == {"momentum_buffer"} for name in HIDDEN)
    assert all(state[name] == {"step", "exp_avg", "exp_avg_sq"} for name in state.keys() - HIDDEN)
    assert [group.get("fused") for group in optimizer.param_groups] == [None, True, True]
    optimizer.zero_grad()
    assert all(parameter.grad is None for _, parameter in parameters)


def test_a_learning_rate_set_on_the_groups_applies_to_both():
    parameters = named_parameters(SHAPES)
    optimizer = make(groups(parameters, 0.01, 0.3))
    before = [parameter.detach().clone() for _, parameter in parameters]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(optimizer, parameters, 1, 2)
    assert all(torch.equal(parameter, value) for (_, parameter), value in zip(parameters, before, strict=True))


def test_a_scaler_skips_an_update_that_is_not_finite():
    parameters = named_parameters(SHAPES, torch.float32)
    optimizer = make(groups(parameters, 0.01, 0.3))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = [parameter.detach().clone() for _, parameter in parameters]
    for value, moves in ((math.inf, False), (1.0, True)):
        scaler.scale(sum((parameter * value).sum() for _, parameter in parameters)).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        for (_, parameter), start in zip(parameters, before, strict=True):
            assert torch.equal(parameter, start) is not moves
    assert scaler.get_scale() == 2.0


@pytest.mark.parametrize("way", ["state_dict", "copy"])
def test_copies_and_torch_state_keep_one_state(way):
    whole = named_parameters(SHAPES)
    optimizer = make(groups(whole, 0.01, 0.3))
    train(optimizer, whole, 1, 3)
    if way == "copy":
        parts, resumed = copy.deepcopy((whole, optimizer))
    else:
        parts = named_parameters(SHAPES)
        resumed = make(groups(parts, 0.01, 0.3))
        resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for (_, parameter), (_, value) in zip(parts, whole, strict=True):
            parameter.data.copy_(value.data)
    train(optimizer, whole, 4, 5)
    train(resumed, parts, 4, 5)
    assert len(resumed.state) == len(SHAPES)
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(whole, parts, strict=True))


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_resumed_run_is_bitwise_equal(decay):
    assert_resumes_bitwise_equal(lambda params: make(params, hidden={"weight", "column"}), 0.01, 0.3, decay=decay)


def test_a_model_of_only_hidden_matrices():
    parameters = named_parameters({"weight": (6, 4)})
    optimizer = make(groups(parameters, 0.01, 0.3))
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"]]


def test_a_model_without_hidden_matrix_raises():
    with pytest.raises(ConfigError, match=r"^_target_: the model has no hidden matrix.*Use optimizer=adamw"):
        make(groups(named_parameters(), 0.01, 0.3), hidden=())


def test_values_out_of_range_raise():
    assert_out_of_range(
        make,
        ("lr", 0.0),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("ns_steps", 0),
        ("ns_steps", 100),
        ("betas", (0.9, 1.0)),
        ("eps", 0.0),
        ("weight_decay", math.nan),
    )
