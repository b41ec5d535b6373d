"""Attention from the starts of the samples equals attention with a mask, with a kernel that computes sample by sample.

The kernel of CUDA itself is tested in tests/test_gpu.py.
"""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.jobs import events, train, working_in, write_roles
from tests.support.pretrained_folders import CONFIGS, FACTS, KEYS, LANGUAGE, Folders, layouts, places
from tests.support.token_batches import VOCAB_SIZE, packed, padded, samples
from tests.support.varlen_attention import kernel_on_the_cpu
from tests.test_resume import STEPS, STOPS, Figure, check_resumes
from trainer.model import attention
from trainer.model.decoder import Decoder
from trainer.model.gradient_checkpointing import checkpoint_blocks
from trainer.model.pretrained import Pretrained
from trainer.model.text_encoder import TextEncoder
from trainer.protocols import Batch
from trainer.task.packing import add_empty_rows, lay_out, token_inputs

SHAPE: dict[str, Any] = {"dim": 32, "depth": 2, "heads": 4, "hidden": 48, "dropout": 0.0, "pooling": "mean"}
SIZES: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "num_outputs": 5, "max_length": 64}
NO_DROPOUT = {
    **{name: {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0} for name in CONFIGS},
    "distilbert": {"attention_dropout": 0.0, "dropout": 0.0},
    "gpt2": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0},
    "modernbert": {},
}


def own_models(**changes: Any) -> Iterator[nn.Module]:
    torch.manual_seed(0)
    yield TextEncoder(**(SIZES | SHAPE | changes)).double()
    yield Decoder(**(SIZES | SHAPE | {"tie_embeddings": False} | changes)).double()


def results(model: nn.Module, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the outputs, and the gradient of every parameter."""
    model.zero_grad()
    output = model(**inputs)
    weights = torch.randn(output.shape, dtype=output.dtype, generator=torch.Generator().manual_seed(0))
    (output * weights).sum().backward()
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    return {"output": output.detach(), **gradients}


def assert_equal_with_a_kernel(model: nn.Module, inputs: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    masked = results(model, inputs)
    with kernel_on_the_cpu() as calls:
        varlen = results(model, inputs)
    assert calls
    assert varlen.keys() == masked.keys()
    for name, value in varlen.items():
        torch.testing.assert_close(value, masked[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=20),
    spare=st.integers(0, 3),
    batching=st.sampled_from(["packed", "full_rows"]),
)
def test_starts_divide_the_rows_into_samples_and_padding(lengths: list[int], spare: int, batching: Any) -> None:
    layout = lay_out(lengths, max_length=12, batching=batching)
    inputs = token_inputs([torch.ones(length).long().numpy() for length in lengths], layout, pad_id=0)
    rows = layout.shape[0] + spare
    inputs = add_empty_rows(Batch(inputs, None, len(lengths), ()), rows, "token").inputs
    with kernel_on_the_cpu():
        made = attention.sample_starts(inputs["sequence_ids"], inputs["token_index"], head_size=8, dtype=torch.float32)

    assert made is not None
    assert made.dtype == torch.int32
    assert made.shape[:3] == (1, 1, 1)
    starts = made.flatten().tolist()
    width = layout.shape[1]
    wanted = {*layout.starts.tolist()} | {row * width for row in range(rows)}
    ends = {*(layout.starts + layout.lengths).tolist()}
    assert set(starts) == wanted | ends | {rows * width}
    assert starts == sorted(starts)
    assert len(starts) - 1 == 1 << (len(lengths) + rows - 1).bit_length()


@pytest.mark.parametrize("level", ["sample", "token"])
def test_own_models_give_the_results_of_masked_rows(level: str) -> None:
    for model in own_models(output_level=level):
        inputs = packed(samples(13))
        assert_equal_with_a_kernel(model, inputs)
        assert_equal_with_a_kernel(model, add_empty_rows(Batch(inputs, None, 13, ()), 9, None).inputs)


def test_samples_of_one_length_are_computed_as_padded_rows(folder: Folders) -> None:
    texts = [sample[:7] for sample in samples(9) if len(sample) >= 7]
    inputs, rows = packed(texts), padded(texts, width=7)
    models = [*own_models(), *own_models(output_level="token")]
    for model in [*models, *(pretrained(folder(name), name) for name in CONFIGS)]:
        found, expected = results(model, inputs), results(model, rows)
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    for model in models:
        assert_equal_with_a_kernel(model, inputs)


@pytest.mark.parametrize("mode", ["blocks", "selective"])
def test_gradient_checkpointing_gives_the_same_results(mode: Any) -> None:
    for model in own_models():
        checkpoint_blocks(model, mode)
        assert_equal_with_a_kernel(model, packed(samples(13)))


def test_a_causal_kernel_looks_only_back() -> None:
    windows = []
    for model in own_models():
        with kernel_on_the_cpu() as calls:
            model(**packed(samples(5)))
        windows.append(calls)

    assert [len(calls) for calls in windows] == [2, 2]
    assert [{right for _, right in calls} for calls in windows] == [{-1}, {0}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return Folders(tmp_path_factory)


def pretrained(path: Path, name: str, **changes: Any) -> Pretrained:
    torch.manual_seed(0)
    keys = KEYS | {"path": str(path), "config": NO_DROPOUT[name]}
    return Pretrained(**(FACTS | keys | changes)).double().train()


@pytest.mark.parametrize("name", CONFIGS)
def test_models_of_transformers_give_the_results_of_masked_rows(name: str, folder: Folders) -> None:
    inputs, index = layouts(13, typed=True)[1], places(13)[1]
    # Rotary position embeddings are computed in float32, also in a float64 model.
    tolerance = 1e-6 if name == "modernbert" else 1e-10
    for changes, more in (({}, {}), (LANGUAGE, {"output_index": index})):
        model = pretrained(folder(name), name, **changes)
        assert model.base.training
        assert_equal_with_a_kernel(model, inputs | more, tolerance)


def test_gradient_checkpointing_of_transformers_models_gives_the_same_results(folder: Folders) -> None:
    for name in ("bert", "gpt2"):
        model = pretrained(folder(name), name)
        checkpoint_blocks(model, "selective")
        assert_equal_with_a_kernel(model, layouts(7)[1])


def test_a_mask_serves_where_the_kernel_cannot(folder: Folders, caplog: pytest.LogCaptureFixture) -> None:
    inputs = packed(samples(5))
    tokens = {name: value for name, value in inputs.items() if name != "token_index"}
    encoder, narrow = (next(own_models(output_level="token", **changes)) for changes in ({}, {"heads": 8}))
    bert = pretrained(folder("bert"), "bert", config={})
    eager, sdpa = (pretrained(folder("bert"), "bert", attention=name) for name in ("eager", "sdpa"))
    cases: list[tuple[nn.Module, dict[str, Tensor], tuple[torch.dtype, ...], str | None]] = [
        (encoder, tokens, (), "masked, because the batch has no token_index"),
        (narrow, inputs, (), "masked, because a head has 4 features, which is no multiple of 8 up to 256"),
        (bert, inputs, (), "masked, because attention has a dropout of 0.1"),
        (encoder, inputs, (torch.bfloat16,), "masked, because the type is float64"),
        (eager, inputs, (), None),
        (sdpa, inputs, (), None),
    ]
    for model, batch, dtypes, message in cases:
        attention._log_once.cache_clear()
        caplog.clear()
        with kernel_on_the_cpu(*dtypes) as calls, caplog.at_level(logging.INFO, "trainer.model.attention"):
            model(**batch)
            model(**batch)
        assert not calls
        assert [record.getMessage() for record in caplog.records] == ([f"attention: {message}"] if message else [])
    bert.eval()
    with kernel_on_the_cpu() as calls, caplog.at_level(logging.INFO, "trainer.model.attention"):
        bert(**inputs)
    assert len(calls) == 2
    assert caplog.messages == ["attention: variable-length (reference)"]


def test_pytorchs_kernel_takes_what_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the kernel of CUDA, forward and backward, with tensors that have a type and a shape but no values."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    kernel = attention._flash_attention()
    assert kernel is not None
    monkeypatch.setitem(attention.KERNELS, "meta", kernel)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: False)  # it does not know the device "meta"
    shape, options = (3, 4, 40, 64), {"dtype": torch.bfloat16, "device": "meta", "requires_grad": True}
    starts = torch.zeros(1, 1, 1, 17, dtype=torch.int32, device="meta")
    for causal in (False, True):
        parts = [torch.empty(shape, **options) for _ in range(3)]  # type: ignore[arg-type]
        attended = attention.attend(*parts, starts, causal=causal, scale=0.1)
        attended.sum().backward()

        assert (attended.shape, attended.dtype) == (shape, torch.bfloat16)
        assert all(part.grad is not None and part.grad.shape == shape for part in parts)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert attention._flash_attention() is None


# Whole jobs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    made = tmp_path_factory.mktemp("attention")
    with working_in(made):
        yield write_roles(made)


JOBS = {
    "token budget": ["loader.tokens=37"],
    "masked words": ["task=masked_lm", "train.accumulate=2"],
    "decoder": ["task=causal_lm", "model=decoder", "loader.tokens=32", "model.gradient_checkpointing=selective"],
    "bf16": ["precision=bf16"],
}


@pytest.mark.parametrize("name", JOBS)
def test_a_run_learns_the_same(name: str, data: list[str], tmp_path: Path) -> None:
    job = [*data, "train.duration=9", "train.eval_every=100", "checkpoint.every=100", "model.dropout=0.0", *JOBS[name]]
    job += ["optimizer=sgd", "optimizer.lr=0.1"]  # Adam makes a rounding error of a gradient near 0 a whole step
    assert train(tmp_path / "masked", *job) == 0
    with kernel_on_the_cpu() as calls:
        assert train(tmp_path / "varlen", *job) == 0

    assert len(calls) >= 9
    tolerance = 1e-2 if name == "bf16" else 1e-5
    masked, varlen = (events(tmp_path / run, "train") for run in ("masked", "varlen"))
    for key in ("loss", "grad_norm"):
        assert [event[key] for event in varlen] == pytest.approx([event[key] for event in masked], rel=tolerance)


def test_resumed_run_is_bitwise_equal(data: list[str], tmp_path: Path, figure: Figure) -> None:
    job = [*data, f"train.duration={STEPS}", "train.eval_every=4", "checkpoint.every=1"]
    with kernel_on_the_cpu() as calls:
        check_resumes(job, ["loader.tokens=32"], tmp_path, STOPS[:1], figure)
    assert calls
