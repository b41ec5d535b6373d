"""The decoder's cached steps, eager and exported, compared with the whole forward."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.support.decoders import decoder, tokens
from trainer.model.decoder import Decoder
from trainer.protocols import Cache


class TestCache:
    @torch.no_grad()
    def test_steps_give_the_logits_of_the_whole_sequence(self) -> None:
        ids = tokens(3, 64)
        for changes in ({}, {"tie_embeddings": False}):
            model = decoder(**changes)
            whole = model(ids)
            for cuts in (range(65), (0, 64), (0, 40, 41, 42, 64)):
                cache = model.empty_cache(3)
                for start, stop in pairwise(cuts):
                    logits, cache = model.step(ids[:, start:stop], cache)

                    torch.testing.assert_close(logits, whole[:, stop - 1], rtol=0, atol=1e-5)
                    assert [tuple(part.shape) for part in cache] == [(3, 4, stop, 8)] * 6

    @torch.no_grad()
    def test_a_cache_is_not_changed_and_can_be_extended_twice(self) -> None:
        model, ids = decoder(), tokens(2, 9)
        _, cache = model.step(ids[:, :8], model.empty_cache(2))
        kept = [part.clone() for part in cache]
        first, _ = model.step(ids[:, 8:], cache)
        model.step((ids[:, 8:] + 1) % 50, cache)
        again, _ = model.step(ids[:, 8:], cache)

        assert torch.equal(first, again)
        assert all(torch.equal(part, copy) for part, copy in zip(cache, kept, strict=True))

    @torch.no_grad()
    def test_sequences_can_be_reordered(self) -> None:
        model, ids, order = decoder(), tokens(3, 9), torch.tensor([2, 0, 0])
        _, cache = model.step(ids[:, :8], model.empty_cache(3))
        logits, _ = model.step(ids[order, 8:], tuple(part[order] for part in cache))

        torch.testing.assert_close(logits, model(ids[order])[:, -1], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_under_autocast(self) -> None:
        model, ids = decoder(), tokens(2, 20)
        with torch.autocast("cpu", torch.bfloat16):
            whole, cache = model(ids), model.empty_cache(2)
            for position in range(20):
                logits, cache = model.step(ids[:, position : position + 1], cache)
                assert logits.dtype == whole.dtype == torch.bfloat16
                error = (logits - whole[:, position]).abs().max() / whole.abs().max()
                assert error < 0.03


class Step(nn.Module):
    """A step as the forward of a module, for export."""

    def __init__(self, model: Decoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        return self.model.step(input_ids, cache)


class TestExportedStep:
    CASES = ((1, 0, 1), (1, 0, 64), (4, 0, 7), (2, 63, 1), (5, 1, 1), (3, 20, 30))

    def inputs(self, model: Decoder, batch: int, past: int, new: int) -> tuple[Tensor, Cache]:
        cache = model.empty_cache(batch)
        if past:
            _, cache = model.step(tokens(batch, past, seed=past), cache)
        return tokens(batch, new), cache

    @torch.no_grad()
    def test_exported_program_matches(self) -> None:
        model = decoder().eval()
        dims = {0: Dim("batch", min=1), 2: Dim("past", min=0, max=63)}
        shapes = ({0: dims[0], 1: Dim("new", min=1, max=64)}, tuple(dims for _ in model.empty_cache(1)))
        program = torch.export.export(Step(model), self.inputs(model, 2, 5, 3), dynamic_shapes=shapes).module()
        for case in self.CASES:
            inputs = self.inputs(model, *case)
            torch.testing.assert_close(program(*inputs), model.step(*inputs), rtol=0, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.slow
    def test_onnx_graph_matches(self, tmp_path: Path) -> None:
        import onnxruntime

        from trainer.export.model import silence

        model = decoder().eval()
        dims = {0: Dim("batch", min=1), 2: Dim("past", min=0, max=63)}
        shapes = ({0: dims[0], 1: Dim("new", min=1, max=64)}, tuple(dims for _ in model.empty_cache(1)))
        path = tmp_path / "step.onnx"
        with silence():
            exported = torch.onnx.export(
                Step(model), self.inputs(model, 2, 5, 3), dynamic_shapes=shapes, dynamo=True, verbose=False
            )
            assert exported is not None
            exported.save(str(path), external_data=False)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        names = [node.name for node in session.get_inputs()]
        for case in self.CASES:
            ids, cache = self.inputs(model, *case)
            outputs = session.run(None, {name: value.numpy() for name, value in zip(names, (ids, *cache), strict=True)})
            logits, after = model.step(ids, cache)
            for one, other in zip(outputs, (logits, *after), strict=True):
                torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5)
