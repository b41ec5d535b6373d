"""Goes on with texts, with the language model in this folder.

    python generate.py "Return the" "Parse an"
    python generate.py < prompts.txt                         one prompt a line
    python generate.py --temperature 0.8 --top-k 50 "Return the"
    python generate.py --check                               the golden prompt must give the golden tokens

Prints one JSON object for each prompt: the text and why it ended. Each token is the likeliest one, or drawn with
--temperature.
Needs onnxruntime, numpy and tokenizers.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

FOLDER = Path(__file__).resolve().parent


class Generator:
    """The decoder, its tokenizer and what the manifest says of both."""

    def __init__(self) -> None:
        manifest: dict[str, Any] = json.loads((FOLDER / "manifest.json").read_text("utf-8"))
        self.about = manifest["artifacts"]["onnx_cache"]
        self.max_length = int(manifest["axes"]["sequence"][1])
        self.end_id = self.about["end_id"]
        self.tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.special = {number for number, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        file = str(FOLDER / self.about["file"])
        self.session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def tokens(self, prompt: list[int], choose: Callable[[np.ndarray], int]) -> Iterator[int]:
        """New tokens until the text ends; `choose` takes the scores (V,) of the next one."""
        past = {node.name: node.shape for node in self.session.get_inputs() if node.name != "input_ids"}
        cache = [np.empty((1, shape[1], 0, shape[3]), dtype=np.float32) for shape in past.values()]
        read = prompt
        for _ in range(self.max_length - len(prompt)):
            inputs = {"input_ids": np.array([read], dtype=np.int64), **dict(zip(past, cache, strict=True))}
            scores, *cache = self.session.run(None, inputs)
            token = choose(scores[0])
            yield token
            if token == self.end_id:
                return
            read = [token]

    def text(self, prompt: str, choose: Callable[[np.ndarray], int], limit: int) -> dict[str, Any]:
        """A prompt with what comes after it."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        if not 0 < len(ids) < self.max_length:
            return {"prompt": prompt, "error": f"has {len(ids)} tokens; 1 to {self.max_length - 1} can be gone on from"}
        new = [token for token, _ in zip(self.tokens(ids, choose), range(limit), strict=False)]
        ended = "end" if new[-1] == self.end_id else "length" if len(new) == limit else "context"
        shown = [token for token in new if token not in self.special]
        # Beside the prompt, unknown words among it: so a space is seen.
        completion = self.read(ids + shown).removeprefix(self.read(ids))
        return {"prompt": prompt, "text": prompt + completion, "ended": ended}

    def read(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def check(self) -> bool:
        """Whether the golden prompt gives the golden tokens."""
        golden = self.about["golden"]
        steps = zip(self.tokens(golden["prompt"], likeliest), golden["tokens"], strict=False)
        return all(token == expected for token, expected in steps)


def likeliest(scores: np.ndarray) -> int:
    return int(scores.argmax())


def drawing(temperature: float, top_k: int, top_p: float, seed: int) -> Callable[[np.ndarray], int]:
    """SampleRng from the `top_k` likeliest tokens and the fewest that together reach the probability `top_p`."""
    generator = np.random.default_rng(seed)

    def draw(scores: np.ndarray) -> int:
        order = np.argsort(-scores, kind="stable")[: top_k or None]
        powers = np.exp((scores[order].astype(np.float64) - scores.max()) / temperature)
        probabilities = powers / powers.sum()
        kept = 1 + int((probabilities.cumsum()[:-1] < top_p).sum())
        return int(generator.choice(order[:kept], p=probabilities[:kept] / probabilities[:kept].sum()))

    return draw


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="default: the lines of standard input")
    parser.add_argument("--limit", type=int, default=64, help="the most tokens that are added")
    parser.add_argument("--temperature", type=float, help="draw the tokens; below 1 the likely becomes likelier")
    parser.add_argument("--top-k", type=int, default=0, help="draw from so many likeliest tokens; 0: from all")
    parser.add_argument("--top-p", type=float, default=1.0, help="draw from those that together are so probable")
    parser.add_argument("--seed", type=int, default=0, help="of the draws; each prompt begins with it")
    parser.add_argument("--check", action="store_true", help="generate the golden tokens, exit code 1 if they differ")
    given = parser.parse_args()
    if given.limit < 1 or given.top_k < 0 or not 0 < given.top_p <= 1 or (given.temperature or 1) < 0:
        parser.error("--limit is at least 1, --top-k at least 0, --top-p above 0 and at most 1, --temperature above 0")
    generator = Generator()
    if given.check:
        equal = generator.check()
        print("ok" if equal else "FAILED: other tokens than the golden ones")
        return 0 if equal else 1
    for prompt in given.prompts or (line.rstrip("\r\n") for line in sys.stdin):
        drawn = given.temperature and drawing(given.temperature, given.top_k, given.top_p, given.seed)
        print(json.dumps(generator.text(prompt, drawn or likeliest, given.limit), ensure_ascii=False), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
