"""Dropout in front of the head: several masks share the features, and their losses are averaged."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from tests.support.jobs import assert_resumes, events, train, working_in, write_data
from tests.support.perturbed import CPU, Words, run_on, word_batches
from trainer.cli import main
from trainer.errors import ConfigError
from trainer.export.formats.torchscript import save_trace
from trainer.export.model import capture, silence
from trainer.loop import compute_gradients
from trainer.model.head_dropout import HeadDropout, add_head_dropout
from trainer.step_rng import StepRng

BASE = ["train.duration=6", "train.eval_every=3", "checkpoint.every=3", "checkpoint.keep=6"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("head-dropout")
    with working_in(folder):
        yield [*write_data(folder), *BASE]


def test_the_masks_are_independent_and_keep_the_mean() -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 3)
    features = torch.ones(50, 8)
    (dropped,) = HeadDropout(0.25, 400)(head, (features,)) or ()

    assert dropped.shape == (400, 50, 8)
    assert sorted(set(dropped.flatten().tolist())) == pytest.approx([0.0, 1 / 0.75])
    # 160,000 independent elements with a standard deviation of 0.58.
    assert dropped.mean().item() == pytest.approx(1.0, abs=4 * 0.58 / 400)
    assert (dropped[0] != dropped[1]).any()
    assert HeadDropout(0.25, 4)(head.eval(), (features,)) is None


def test_the_step_has_the_mean_of_the_losses_of_the_masks() -> None:
    batches = word_batches([4, 3])
    run = replace(run_on(batches, None), head_masks=3)
    add_head_dropout(run.model, 0.5, 3, "tokens")
    run.model.get_submodule("head").train()
    loss, _ = compute_gradients(run, 0, batches).tolist()
    actual = [parameter.grad.clone() for parameter in run.model.parameters() if parameter.grad is not None]
    run.model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for batch in batches:
        assert batch.target is not None
        StepRng(0, CPU).start(0, batch.piece)
        outputs = run.model(batch.inputs["x"])
        assert outputs.shape == (3, batch.num_samples, 3)
        for output in outputs:
            total = total + F.cross_entropy(output, batch.target, label_smoothing=0.1, reduction="sum") / (3 * 7)
    total.backward()

    assert loss == pytest.approx(total.item(), abs=1e-7)
    for gradient, parameter in zip(actual, run.model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-14)


def test_adding_it_changes_neither_outputs_nor_names() -> None:
    model = run_on(word_batches([2]), None).model
    x = torch.zeros(2, 3, dtype=torch.int64)
    before, names = model(x), list(model.state_dict())
    add_head_dropout(model, 0.5, 4, "tokens")

    assert list(model.state_dict()) == names
    assert torch.equal(model(x), before)


def test_the_exported_graphs_have_the_same_nodes(tmp_path: Path) -> None:
    inputs = {"x": torch.zeros(2, 3, dtype=torch.int64)}
    graphs = []
    for samples in (0, 1, 4):
        model = Words().eval()
        if samples:
            add_head_dropout(model, 0.5, samples, "tokens")
        program = capture(model, inputs, {"x": {0: "batch"}}, {})
        save_trace(model, inputs, tmp_path / "model.pt")
        with silence():
            trace = torch.jit.load(str(tmp_path / "model.pt")).inlined_graph
        nodes = [(node.op, str(node.target)) for node in program.graph.nodes]
        graphs.append((nodes, [node.kind() for node in trace.nodes()]))

    assert len(graphs[0][0]) > 10
    assert graphs[1:] == graphs[:1] * 2


class Undeclared(nn.Linear):
    """A model whose outputs do not come from its head."""

    def __init__(self) -> None:
        super().__init__(3, 2)
        self.head = nn.Linear(3, 2)


def test_a_model_without_a_head_is_rejected() -> None:
    for model, message in (
        (nn.Sequential(), "head_dropout: the model does not end with a linear head, got 0.5. Set model.head_dropout=0"),
        (Undeclared(), "head_dropout: Undeclared does not declare that its layer head makes its outputs, got"),
        (Words(), "head_dropout: Words does not declare"),
    ):
        with pytest.raises(ConfigError) as caught:
            add_head_dropout(model, 0.5, 4, "images")
        assert caught.value.messages[0].startswith(message)


def test_runs_resume_and_accumulate_and_artifacts_have_one_output(data: list[str], tmp_path: Path) -> None:
    masks = ["model.head_dropout=0.5", "model.multi_sample_dropout=3"]
    assert train(tmp_path / "run", *data, *masks, "train.accumulate=2", "export.formats=[torchscript]") == 0
    assert train(tmp_path / "plain", *data, "model.dropout=0.0") == 0
    # With a mask that drops nothing, the mean over masks is the plain loss.
    nothing = ["model.dropout=0.0", "model.head_dropout=1e-9", "model.multi_sample_dropout=3"]
    assert train(tmp_path / "nothing", *data, *nothing) == 0

    assert_resumes(tmp_path / "run", 3)
    ours, theirs = (events(tmp_path / name, "train") for name in ("nothing", "plain"))
    for left, right in zip(ours, theirs, strict=True):
        assert (left["loss"], left["grad_norm"]) == pytest.approx((right["loss"], right["grad_norm"]), rel=1e-5)
    files = [load_file(tmp_path / name / "model/model.safetensors") for name in ("run", "plain")]
    assert files[0].keys() == files[1].keys()
    assert main(["eval", f"run={tmp_path / 'run'}", "device=cpu"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["model.multi_sample_dropout=4"],
            "model.multi_sample_dropout: all masks are equal without model.head_dropout",
        ),
        (
            ["model.multi_sample_dropout=4", "model.head_dropout=0.3", "perturb=r_drop"],
            "model.multi_sample_dropout: does not support perturb=r_drop",
        ),
        (
            ["model.multi_sample_dropout=4", "model.head_dropout=0.3", "loss=dice"],
            "model.multi_sample_dropout: several dropout masks average the losses of targets",
        ),
        (
            ["model.head_dropout=0.3", "task=sentence_embedding"],
            "model.head_dropout: the model has no head, because task.dim is null, got 0.3. Set task.dim=128, or set",
        ),
        (
            ["model.head_dropout=0.3", "model=linear"],
            "model.head_dropout: linear of tokens has no layer whose inputs could be dropped, got 0.3. Use another",
        ),
        (["model.head_dropout=1.0"], "model.head_dropout: must be "),
    ],
)
def test_impossible_masks_are_rejected(
    overrides: list[str], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *data, *overrides]) == 2
    assert message in capsys.readouterr().err
