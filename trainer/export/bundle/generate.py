"""Continue texts with the language model in this folder.

    python generate.py "Return the" "Parse an"
    python generate.py < prompts.txt                         one prompt per line
    python generate.py --temperature 0.8 --top-k 50 "Return the"
    python generate.py --check                               the golden prompt must give the golden tokens

Prints a JSON object per prompt: the text and the reason why it ended. Each token is the most likely one, or sampled
with --temperature.
Needs onnxruntime, numpy and tokenizers.
"""

import argparse
import json
import runpy
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parent
SHAPE = {
    "artifacts": {
        "onnx_cache": {"file": str, "end_id": (int, None), "golden": {"prompt": [int], "tokens": [int]}},
    },
    "axes": {"sequence": [int, int]},
}
"""The fields of the manifest that this script reads, as shapes.py explains them."""


class NotANumberError(Exception):
    """The scores of the next token contain NaN, so no token can be chosen."""


class Generator:
    """The decoder, its tokenizer, and their entries in the manifest."""

    def __init__(self) -> None:
        shapes = runpy.run_path(str(FOLDER / "shapes.py"))
        manifest = shapes["parse_json"](shapes["read_bytes"](FOLDER / "manifest.json"), SHAPE)
        shapes["check_seal"](manifest)
        self.entry = manifest["artifacts"]["onnx_cache"]
        self.max_length = int(manifest["axes"]["sequence"][1])
        self.end_id = self.entry["end_id"]
        self.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        file = str(FOLDER / self.entry["file"])
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def tokens(self, prompt: list[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """Yield new tokens until the text ends; `choose` gets the scores (V,) of the next token."""
        past = {node.name: node.shape for node in self.session.get_inputs() if node.name != "input_ids"}
        cache = [np.empty((1, shape[1], 0, shape[3]), dtype=np.float32) for shape in past.values()]
        read = prompt
        for _ in range(self.max_length - len(prompt)):
            inputs = {"input_ids": np.array([read], dtype=np.int64), **dict(zip(past, cache, strict=True))}
            scores, *cache = self.session.run(None, inputs)
            if np.isnan(scores).any():
                raise NotANumberError("the output of the model is NaN")
            token = choose(scores[0])
            yield token
            if token == self.end_id:
                return
            read = [token]

    def text(self, prompt: str, choose: Callable[[np.ndarray], int], limit: int) -> dict[str, Any]:
        """Continue a prompt by at most `limit` tokens."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not 0 < len(ids) < self.max_length:
            return {
                "prompt": prompt,
                "error": f"has {len(ids)} tokens; only 1 to {self.max_length - 1} can be continued",
            }
        try:
            new = [token for token, _ in zip(self.tokens(ids, choose), range(limit), strict=False)]
        except NotANumberError as error:
            return {"prompt": prompt, "error": str(error)}
        ended = "end" if new[-1] == self.end_id else "length" if len(new) == limit else "context"
        shown = [token for token in new if token not in self.special]
        # Decoded together with the prompt, so that a space between them is kept.
        completion = self.read(ids + shown).removeprefix(self.read(ids))
        return {"prompt": prompt, "text": prompt + completion, "ended": ended}

    def read(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def check(self) -> bool:
        """Return whether the golden prompt gives the golden tokens."""
        golden = self.entry["golden"]
        steps = zip(self.tokens(golden["prompt"], most_likely), golden["tokens"], strict=False)
        try:
            return all(token == expected for token, expected in steps)
        except NotANumberError:
            return False


def most_likely(scores: np.ndarray) -> int:
    return int(scores.argmax())


def make_sampler(temperature: float, top_k: int, top_p: float, seed: int) -> Callable[[np.ndarray], int]:
    """Sample from the `top_k` most likely tokens and the fewest that together reach the probability `top_p`."""
    generator = np.random.default_rng(seed)

    def sample(scores: np.ndarray) -> int:
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        powers = np.exp((scores[order].astype(np.float64) - scores.max()) / temperature)
        probabilities = powers / powers.sum()
        kept = 1 + int((probabilities.cumsum()[:-1] < top_p).sum())
        return int(generator.choice(order[:kept], p=probabilities[:kept] / probabilities[:kept].sum()))

    return sample


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="default: the lines of standard input")
    parser.add_argument("--limit", type=int, default=64, help="largest number of new tokens")
    parser.add_argument("--temperature", type=float, help="sample the tokens; below 1 prefers likely tokens")
    parser.add_argument("--top-k", type=int, default=0, help="sample from this many most likely tokens; 0 uses all")
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="sample from the most likely tokens that reach this probability"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed for sampling, the same for each prompt")
    parser.add_argument("--check", action="store_true", help="generate the golden tokens, exit code 1 if they differ")
    arguments = parser.parse_args()
    if arguments.limit < 1 or arguments.top_k < 0 or not 0 < arguments.top_p <= 1 or (arguments.temperature or 1) < 0:
        parser.error("--limit must be at least 1, --top-k at least 0, --top-p in (0, 1], --temperature above 0")
    try:
        generator = Generator()
    except Exception as error:  # of many types; without the files there are no texts
        print(f"{FOLDER}: is damaged: {' '.join(str(error).split())}. Get the folder again.", file=sys.stderr)
        return 3
    if arguments.check:
        equal = generator.check()
        print("ok" if equal else "FAILED: the tokens differ from the golden tokens")
        return 0 if equal else 1
    for prompt in arguments.prompts or (line.rstrip("\r\n") for line in sys.stdin):
        sample = arguments.temperature and make_sampler(
            arguments.temperature, arguments.top_k, arguments.top_p, arguments.seed
        )
        print(
            json.dumps(generator.text(prompt, sample or most_likely, arguments.limit), ensure_ascii=False), flush=True
        )
    return 0


if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a job in the background may ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler waits until the model has answered
    sys.exit(main())
