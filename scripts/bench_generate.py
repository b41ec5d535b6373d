"""Compare the speed of our decoder with its cache, without it, and in ONNX Runtime on the same greedy texts.

    python scripts/bench_generate.py [--tokens 256] [--rounds 5] [--output result.json]

Without a cache, every step reads the whole text again. `whole` computes the scores at every position, as a plain
forward does; `last` computes only the last ones, which is the fairer baseline. The prompt is one token, so half of the
text is read on average; `at_the_end` is the time of the last token only. The variants run in alternating order.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor

from trainer.decode.generation import Prompt
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import CachedSession, OpenSession, UncachedSession
from trainer.decode.onnx_session import OnnxSession, start_session
from trainer.export.formats.onnx_cache import write_onnx_cache
from trainer.export.model import ExportModel
from trainer.layout import ONNX_CACHE
from trainer.model.decoder import Decoder
from trainer.task.causal_lm import CausalLm

MODEL: dict[str, Any] = {"dim": 128, "depth": 4, "heads": 4, "hidden": 512, "dropout": 0.1, "pooling": "last"}
"""Options of the default decoder."""

SETTINGS: dict[str, Any] = {"min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram": 0, "stop": []}


class LastScoresSession(UncachedSession):
    """A session without a cache that computes only the scores at the last position."""

    def feed(self, input_ids: Tensor) -> Tensor:
        self._ids = input_ids if self._ids is None else torch.cat([self._ids, input_ids], dim=1)
        rows, columns = self._ids.shape
        last = torch.arange(rows) * columns + columns - 1
        scores: Tensor = self._model(input_ids=self._ids, output_index=last)
        return scores


def make_sessions(length: int, vocab_size: int, folder: Path) -> dict[str, OpenSession]:
    torch.manual_seed(0)
    model = Decoder(vocab_size, vocab_size, length, "token", tie_embeddings=True, **MODEL).eval()
    task = CausalLm(max_length=length, vocab_size=100, tokenizer=None, lowercase=True)
    task.fit(Dataset.from_dict({"text": ["a few words"]}))
    with torch.no_grad():
        write_onnx_cache(folder / ONNX_CACHE, ExportModel(model, task))
    graph = start_session(folder / ONNX_CACHE)
    return {
        "cached": lambda: CachedSession(model),
        "last": lambda: LastScoresSession(model),
        "whole": lambda: UncachedSession(model),
        "onnx": lambda: OnnxSession(graph),
    }


def generate(open_session: OpenSession, length: int) -> tuple[tuple[int, ...], float]:
    """Return the generated tokens and the seconds."""
    prompt = Prompt(torch.tensor([1]), None, length, lambda ids: "")
    started = time.perf_counter()
    (continuation,) = Greedy(max_new_tokens=length - 1, **SETTINGS)(open_session(), prompt)
    return continuation.ids, time.perf_counter() - started


def last_token(open_session: OpenSession, length: int) -> float:
    """Return the seconds of one token after `length` - 1 others."""
    session = open_session()
    session.feed(torch.arange(length - 1)[None] + 1)
    started = time.perf_counter()
    session.feed(torch.tensor([[1]]))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=256, help="length of the whole text in tokens")
    parser.add_argument("--vocab-size", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {}
    at_the_end: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        sessions = make_sessions(options.tokens, options.vocab_size, Path(folder))
        texts = {name: generate(open_session, options.tokens)[0] for name, open_session in sessions.items()}
        assert len(set(texts.values())) == 1, "the texts differ"
        for turn in range(options.rounds):
            for name in sessions if turn % 2 else reversed(sessions):
                seconds.setdefault(name, []).append(generate(sessions[name], options.tokens)[1])
                ends = [last_token(sessions[name], options.tokens) for _ in range(5)]
                at_the_end.setdefault(name, []).append(median(ends))
    result = {
        "tokens_per_second": {name: (options.tokens - 1) / median(seconds[name]) for name in sessions},
        "times_as_fast_as_without": {name: _ratio(seconds, name, "cached") for name in ("last", "whole")},
        "at_the_end": {name: _ratio(at_the_end, name, "cached") for name in ("last", "whole")},
        "onnx_over_cached": _ratio(seconds, "cached", "onnx"),
        "tokens": options.tokens,
        "vocab_size": options.vocab_size,
        "rounds": options.rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.processor() or platform.machine(),
    }
    for name in sessions:
        print(f"{name:<6} {result['tokens_per_second'][name]:8.1f} tokens/s")
    for name in ("last", "whole"):
        times, end = result["times_as_fast_as_without"][name], result["at_the_end"][name]
        print(f"cached / {name}: {times:.2f} over {options.tokens} tokens, {end:.2f} at the last of them (medians)")
    print(f"onnx / cached: {result['onnx_over_cached']:.2f}")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    return median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


if __name__ == "__main__":
    main()
