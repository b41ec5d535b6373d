"""The decoder's steps, eager and in a graph, against the whole."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from tests.support.decoders import decoder, tokens
from trainer.model.decoder import Cache, Decoder


class TestCache:
    @torch.no_grad()
    @pytest.mark.parametrize("cuts", [range(65), (0, 64), (0, 1, 64), (0, 40, 41, 42, 64), (0, 7, 30, 64)])
    @pytest.mark.parametrize("changes", [{}, {"tie_embeddings": False}])
    def test_steps_give_the_logits_of_the_whole(self, cuts: tuple[int, ...], changes: dict[str, Any]) -> None:
        model, ids = decoder(**changes), tokens(3, 64)
        whole, cache = model(ids), model.empty_cache(3)
        for start, stop in pairwise(cuts):
            logits, cache = model.step(ids[:, start:stop], cache)

            torch.testing.assert_close(logits, whole[:, stop - 1], rtol=0, atol=1e-5)
            assert [tuple(part.shape) for part in cache] == [(3, 4, stop, 8)] * 6

    @torch.no_grad()
    def test_a_cache_stays_as_it_was_and_can_go_on_in_two_ways(self) -> None:
        model, ids = decoder(), tokens(2, 9)
        _, cache = model.step(ids[:, :8], model.empty_cache(2))
        kept = [part.clone() for part in cache]
        first, _ = model.step(ids[:, 8:], cache)
        model.step((ids[:, 8:] + 1) % 50, cache)
        again, _ = model.step(ids[:, 8:], cache)

        assert torch.equal(first, again)
        assert all(torch.equal(part, copy) for part, copy in zip(cache, kept, strict=True))

    @torch.no_grad()
    def test_sequences_can_change_places(self) -> None:
        model, ids, order = decoder(), tokens(3, 9), torch.tensor([2, 0, 0])
        _, cache = model.step(ids[:, :8], model.empty_cache(3))
        logits, _ = model.step(ids[order, 8:], tuple(part[order] for part in cache))

        torch.testing.assert_close(logits, model(ids[order])[:, -1], rtol=0, atol=1e-5)

    @torch.no_grad()
    def test_under_autocast(self) -> None:
        model, ids = decoder(), tokens(2, 20)
        with torch.autocast("cpu", torch.bfloat16):
            whole, cache = model(ids), model.empty_cache(2)
            for place in range(20):
                logits, cache = model.step(ids[:, place : place + 1], cache)
                assert logits.dtype == whole.dtype == torch.bfloat16
                error = (logits - whole[:, place]).abs().max() / whole.abs().max()
                assert error < 0.03


class Step(nn.Module):
    """A step as a graph would have it."""

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
    def test_a_program_is_equal(self) -> None:
        model = decoder().eval()
        dims = {0: Dim("batch", min=1), 2: Dim("past", min=0, max=63)}
        shapes = ({0: dims[0], 1: Dim("new", min=1, max=64)}, tuple(dims for _ in model.empty_cache(1)))
        program = torch.export.export(Step(model), self.inputs(model, 2, 5, 3), dynamic_shapes=shapes).module()
        for case in self.CASES:
            inputs = self.inputs(model, *case)
            torch.testing.assert_close(program(*inputs), model.step(*inputs), rtol=0, atol=1e-5)

    @torch.no_grad()
    @pytest.mark.slow
    def test_an_onnx_graph_is_equal(self, tmp_path: Path) -> None:
        import onnxruntime

        from trainer.export.isolation import silence

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
            found = session.run(None, {name: value.numpy() for name, value in zip(names, (ids, *cache), strict=True)})
            logits, after = model.step(ids, cache)
            for one, other in zip(found, (logits, *after), strict=True):
                torch.testing.assert_close(torch.from_numpy(one), other, rtol=0, atol=1e-5)
