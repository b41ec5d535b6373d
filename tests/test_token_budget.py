"""Micro-batches of a fixed number of tokens (`loader.tokens`): what a run learns is the same to rounding."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from tests.support.jobs import TINY, events, train, working_in, write_roles
from tests.support.ranks import run_ranks
from trainer.cli import main
from trainer.data.batch_plan import BatchPlan
from trainer.model.text_encoder import TextEncoder
from trainer.task.packing import divide_into_rows, pack

STEPS = 9
WIDTH = 16
"""`task.max_length` of the jobs."""

# Dropout draws by the position in the micro-batch, so it is off.
JOB = [
    *(f"train.duration={STEPS}", "model.dropout=0.0", "optimizer=sgd", "optimizer.lr=0.1", "ema.decay=null"),
    *("checkpoint.every=100", "train.eval_every=100"),
]
TASKS = {
    "classification": [],
    "pairs": ["task=pair_classification"],
    "regression": ["task=regression"],
    "dice": ["loss=dice"],
    "correlation": ["task=regression", "loss=mse_correlation"],
    "labels": ["task=multilabel_classification", "loss=binary_cross_entropy"],
    "tags": ["task=token_classification"],
    "spans": ["task=span_classification", "loss.head_size=8"],
    "masked words": ["task=masked_lm"],
    "decoder": ["task=causal_lm", "model=decoder"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    folder = tmp_path_factory.mktemp("tokens")
    with working_in(folder):
        yield write_roles(folder)


def final_weights(run_dir: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = load_file(run_dir / f"checkpoints/step-{STEPS:08d}/model.safetensors")
    return weights


def assert_close(run: Path, other: Path) -> None:
    torch.testing.assert_close(final_weights(run), final_weights(other), rtol=0, atol=1e-6)


@given(
    lengths=st.lists(st.integers(1, WIDTH), min_size=1, max_size=60),
    num_rows=st.integers(1, 5),
    size=st.integers(1, 4),
)
def test_devices_share_micro_batches_that_never_overflow(lengths: list[int], num_rows: int, size: int) -> None:
    def divide(ids: Sequence[int]) -> list[list[int]]:
        return divide_into_rows([lengths[sample] for sample in ids], WIDTH, num_rows)

    plan = BatchPlan(len(lengths), 20, seed=3, divide=divide)
    for step in range(plan.steps_per_epoch):
        alone = plan.micro_batches(step, 1)
        assert sorted(sample for batch in alone for sample in batch.ids) == sorted(plan.batch(step).ids)
        for batch in alone:
            assert len(pack([lengths[sample] for sample in batch.ids], WIDTH)) <= num_rows
        shares = [plan.micro_batches(step, 1, rank, size) for rank in range(size)]
        filled = [plan.micro_batches(step, 1, rank, size, fill=True) for rank in range(size)]
        assert sorted((batch for share in shares for batch in share), key=lambda batch: batch.piece) == alone
        assert {len(share) for share in filled} == {-(-len(alone) // size)}
        assert [[batch for batch in share if not batch.is_filler] for share in filled] == shares


@pytest.mark.parametrize("name", TASKS)
def test_a_run_learns_the_same_from_batches_of_one_shape(
    name: str, data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tmp_path / "plain", *data, *JOB, *TASKS[name]) == 0
    shapes: list[tuple[int, ...]] = []
    forward = torch.nn.Module.__call__

    def recorded(self: torch.nn.Module, *args: Any, **inputs: Any) -> Any:
        if self.training and "input_ids" in inputs:
            shapes.append(tuple(inputs["input_ids"].shape))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(torch.nn.Module, "__call__", recorded)
    assert train(tmp_path / "budget", *data, *JOB, *TASKS[name], f"loader.tokens={2 * WIDTH + 5}") == 0

    assert set(shapes) == {(2, WIDTH)}
    assert len(shapes) > STEPS
    assert_close(tmp_path / "budget", tmp_path / "plain")


def test_two_devices_and_shards_learn_the_same(data: list[str], tmp_path: Path) -> None:
    line = [*TINY, *data, *JOB, f"loader.tokens={2 * WIDTH}", "train.batch_size=10"]
    assert main(["train", *line, f"run.dir={tmp_path}/one"]) == 0
    for name, more in {"two": [], "shards": ["shard=true"]}.items():
        command = ["train", *line, *more, f"run.dir={tmp_path}/{name}"]
        assert run_ranks(command, 2, tmp_path / f"{name}-output") == [0, 0]
        one, several = ([event["loss"] for event in events(tmp_path / run, "train")] for run in ("one", name))
        assert several == pytest.approx(one, rel=1e-5)
    assert_close(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["loader.tokens=8"], "loader.tokens: a sample may have more tokens (task.max_length is 16), got 8. Set"),
        (["loader.tokens=64", "train.accumulate=2"], "train.accumulate: must be 1 if loader.tokens is set"),
        (["loader.tokens=64", "train.accumulate=auto"], "train.accumulate: must be 1 if loader.tokens is set"),
        (["loader.tokens=64", "loader.batching=padded"], "loader.batching: needs packed batches"),
        (["loader.tokens=64", "task=sentence_embedding", "loss=info_nce"], "loader.tokens: needs a task whose samples"),
    ],
)
def test_what_a_token_budget_cannot_do_is_refused(
    changes: list[str], message: str, data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tmp_path / "run", *data, *changes) == 2
    assert message in capsys.readouterr().err


def test_a_budget_that_exceeds_the_memory_names_its_key(
    data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward, limit = TextEncoder.forward, 2 * WIDTH

    def limited(self: TextEncoder, input_ids: torch.Tensor, **inputs: Any) -> Any:
        if self.training and input_ids.numel() > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, input_ids, **inputs)

    monkeypatch.setattr(TextEncoder, "forward", limited)
    assert train(tmp_path / "large", *data, *JOB, f"loader.tokens={5 * WIDTH}") == 2
    message = "loader.tokens: a micro-batch does not fit into memory, got 80. Set loader.tokens=32, with which"
    assert message in capsys.readouterr().err
    assert train(tmp_path / "small", *data, *JOB, f"loader.tokens={2 * WIDTH}") == 0
    limit = 0
    assert train(tmp_path / "none", *data, *JOB, f"loader.tokens={WIDTH}") == 2
    assert "does not fit into memory, got 16. Use a smaller model, shorter samples" in capsys.readouterr().err


def test_plan_shows_the_micro_batches_and_their_padding(data: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = ["plan", *TINY, *data, "train.duration=8", "loader.tokens=32", "trial=false", "json=true"]
    assert main(line) == 0
    document = json.loads(capsys.readouterr().out)
    fewest, most = document["steps"]["token_budget"]["micro_batches"]
    # An epoch of 8 steps: its micro-batches have at least as many positions as the data has tokens.
    tokens, share = document["data"]["tokens"]["epoch"], document["data"]["tokens"]["empty_share"]
    assert 8 * 32 * fewest <= tokens / (1 - share) <= 8 * 32 * most
    assert main(line[:-1]) == 0
    assert f"8 samples = {fewest} to {most} micro-batches of 32 tokens" in capsys.readouterr().out
