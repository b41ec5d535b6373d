"""The exported decoder is proved through its cache and generates the tokens of its model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from tests.support.decoders import decoder, tokens
from tests.support.export_models import ToyModel, ToyTask
from tests.support.language_models import BEAMS, DRAWN, PLAIN, models
from trainer.decode.beam import Beam
from trainer.decode.generation import Prompt
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession
from trainer.decode.onnx_session import OnnxSession, start_session
from trainer.decode.sample import Sample
from trainer.errors import ProofError
from trainer.export.compare import compare_cases
from trainer.export.formats import onnx_cache
from trainer.export.formats.onnx_cache import load_onnx_cache, write_onnx_cache
from trainer.export.model import ExportModel
from trainer.task.causal_lm import CausalLm

MAX_LENGTH = 40
MODELS: dict[str, Callable[[], Any]] = {
    "decoder": lambda: decoder(depth=1, max_length=MAX_LENGTH, vocab_size=40, num_outputs=40),
    "gpt2": lambda: models(1)[1],
}


class Words(CausalLm):
    """A language model's task whose vocabulary has 40 tokens."""

    def __init__(self) -> None:
        super().__init__(max_length=MAX_LENGTH, vocab_size=100, tokenizer=None, lowercase=True)
        self.fit(Dataset.from_dict({"text": ["a bad cab fed a cad"] * 3}))
        assert self.texts.tokenizer.get_vocab_size() <= 40


@pytest.fixture(scope="module", params=["decoder", pytest.param("gpt2", marks=pytest.mark.slow)])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportModel]:
    path = tmp_path_factory.mktemp("cached") / "decoder_with_cache.onnx"
    with torch.no_grad():
        model = ExportModel(MODELS[request.param](), Words())
        assert write_onnx_cache(path, model)["opset"] >= 18
    return path, model


@torch.no_grad()
def test_every_position_equals_the_models_at_untraced_shapes(written: tuple[Path, ExportModel]) -> None:
    path, model = written
    forward, details = load_onnx_cache(path, model)
    shapes = compare_cases(path.name, forward, model.cases, 1e-4)

    assert {case.sizes["sequence"] for case in shapes} >= {1, MAX_LENGTH}
    assert {case.sizes["batch"] for case in shapes} >= {1, 3}
    assert details["inputs"]["input_ids"] == ["batch", "new"]
    assert details["inputs"]["past_0"][::2] == ["batch", "past"]
    assert details["outputs"]["logits"][0] == "batch"


@torch.no_grad()
def test_lost_cache_entry_is_refused(written: tuple[Path, ExportModel], monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = written

    class Forgetful(OnnxSession):
        def feed(self, input_ids: torch.Tensor) -> torch.Tensor:
            scores = super().feed(input_ids)
            self._cache = [part[:, :, -5:] for part in self._cache]
            return scores

    monkeypatch.setattr(onnx_cache, "OnnxSession", Forgetful)
    forward, _ = load_onnx_cache(path, model)
    with pytest.raises(ProofError, match="must be PyTorch's"):
        compare_cases(path.name, forward, model.cases, 1e-4)


@torch.inference_mode()
@pytest.mark.parametrize("length", [1, 5, 17])
def test_graph_generates_the_tokens_of_the_model(written: tuple[Path, ExportModel], length: int) -> None:
    path, model = written
    session = start_session(path)
    prompt = Prompt(tokens(length, seed=length) % 39 + 1, 0, MAX_LENGTH, lambda ids: "")
    for way, settings in ((Greedy, PLAIN), (Beam, PLAIN | BEAMS), (Sample, PLAIN | DRAWN | {"num_return": 4})):
        ours, theirs = (
            way(**settings | {"max_new_tokens": 20})(session, prompt)  # type: ignore[operator]
            for session in (CachedSession(model.module), OnnxSession(session))
        )
        assert [each.ids for each in ours] == [each.ids for each in theirs]


@torch.no_grad()
def test_model_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ProofError, match="needs a causal language model that can read token by token"):
        write_onnx_cache(tmp_path / "x.onnx", ExportModel(ToyModel(), ToyTask()))


@pytest.mark.slow
@torch.no_grad()
def test_frozen_graph_is_refused(tmp_path: Path) -> None:
    model = ExportModel(MODELS["decoder"](), Words())
    _, cache = model.module.step(tokens(2, 5) % 40, model.module.empty_cache(2))  # type: ignore[operator]
    inputs = {"input_ids": tokens(2, 3) % 40, "cache": cache}
    names = ["input_ids", "past_0", "past_1"], ["logits", "present_0", "present_1"]
    with onnx_cache.silence():
        exported = torch.onnx.export(
            onnx_cache.Step(model.module),
            (),
            kwargs=inputs,
            input_names=names[0],
            output_names=names[1],
            dynamo=True,
            verbose=False,
        )
        assert exported is not None
        exported.save(str(tmp_path / "x.onnx"), external_data=False)
    with pytest.raises(ProofError, match="must be symbolic"):
        load_onnx_cache(tmp_path / "x.onnx", model)
