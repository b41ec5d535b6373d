"""A tiny GPT-2 with random weights, for comparing our generation with transformers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from trainer.decode.generation import Continuation, Prompt
from trainer.model.pretrained import Pretrained
from trainer.model.pretrained_loading import architecture_of, quiet

VOCAB_SIZE = 40
MAX_LENGTH = 48
END = 0
PLAIN: dict[str, Any] = {
    "max_new_tokens": 12,
    "min_new_tokens": 0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram": 0,
    "stop": [],
}
BEAMS: dict[str, Any] = {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False, "num_return": 1}
DRAWN: dict[str, Any] = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "seed": 0}


@lru_cache(maxsize=16)
def models(seed: int) -> tuple[Any, Pretrained]:
    """Return a model of transformers and ours with the same weights; larger weights give sharper distributions."""
    torch.manual_seed(seed)
    theirs = _made(VOCAB_SIZE)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_((0.2, 0.4, 0.8)[seed % 3] * torch.randn_like(parameter))
    return theirs, _ours(theirs)


def models_of_table(probabilities: Tensor) -> tuple[Any, Pretrained]:
    """Return such models whose next-token probabilities (V, V) depend only on the last token."""
    torch.manual_seed(0)
    theirs = _made(len(probabilities), tie_word_embeddings=False)
    with torch.no_grad():
        theirs.transformer.wpe.weight.zero_()
        for block in theirs.transformer.h:
            for part in (block.attn.c_proj, block.mlp.c_proj):
                part.weight.zero_()
        hidden = theirs.transformer.ln_f(theirs.transformer.wte.weight)
        theirs.lm_head.weight.copy_((torch.linalg.pinv(hidden) @ probabilities.log()).T)
    return theirs, _ours(theirs)


def _made(vocab_size: int, **changes: Any) -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    special = {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
    config = GPT2Config(
        vocab_size=vocab_size, n_positions=MAX_LENGTH, n_embd=16, n_layer=2, n_head=2, **special, **changes
    )
    return GPT2LMHeadModel(config).eval()


def _ours(theirs: Any) -> Pretrained:
    size = theirs.config.vocab_size
    ours = Pretrained(
        size,
        size,
        MAX_LENGTH,
        "token",
        architecture_of("AutoModelForCausalLM", theirs.config),
        path="unused",
        config={},
        pooling="mean",
        attention=None,
        pretrained=False,
    ).eval()
    ours.base.load_state_dict(theirs.transformer.state_dict())
    ours.head.lm_head.load_state_dict(theirs.lm_head.state_dict())
    return ours


def prompt_of(ids: Sequence[int], *, end_id: int | None = END, max_length: int = MAX_LENGTH) -> Prompt:
    """Return a prompt whose text is its token ids."""
    return Prompt(torch.tensor(ids), end_id, max_length, lambda row: " ".join(map(str, row)))


@dataclass(frozen=True)
class Case:
    """One generation: the models, the prompt, and our settings."""

    theirs: Any
    ours: Pretrained
    prompt: Prompt
    settings: dict[str, Any]

    def reference(self) -> list[tuple[tuple[int, ...], float | None]]:
        """Return the new tokens up to the end token by transformers, and the scores of beam search."""
        settings = dict(self.settings)
        seed = settings.pop("seed", None)
        settings["no_repeat_ngram_size"] = settings.pop("no_repeat_ngram")
        settings["num_return_sequences"] = settings.pop("num_return", 1)
        assert settings.pop("stop") == []
        ids = self.prompt.ids[None]
        torch.manual_seed(seed or 0)
        with quiet():
            output = self.theirs.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=seed is not None,
                output_scores=True,
                return_dict_in_generate=True,
                **settings,
            )
        rows = [row[len(self.prompt.ids) :].tolist() for row in output.sequences]
        rows = [row[: row.index(END) + 1] if END in row else row for row in rows]
        if settings.get("num_beams", 1) == 1:
            return [(tuple(row), None) for row in rows]
        pairs = zip(map(tuple, rows), output.sequences_scores.tolist(), strict=True)
        # Lower scores mark placeholders: impossible tokens, or unused beams.
        return [(row, score) for row, score in pairs if score * len(row) ** settings["length_penalty"] > -1e8]


def check(case: Case, texts: Sequence[Continuation]) -> None:
    """Check that the continuations have the tokens and the scores of transformers."""
    expected = case.reference()
    assert [each.ids for each in texts] == [ids for ids, _ in expected], case.settings
    for each, (_, score) in zip(texts, expected, strict=True):
        assert (each.score is None) == (score is None)
        if score is not None:
            assert abs(each.score - score) < 1e-4 * max(1.0, abs(score)), case.settings
        assert (each.ended == "end") == (each.ids[-1] == END)


def cases(count: int, *, beams: bool = False, sampled: bool = False) -> Iterator[Case]:
    """Yield random models, prompts and settings, each setting with and without an effect."""
    for number in range(count):
        pick = random.Random(number)
        longest = pick.choice([1, 5, 12, 20])
        settings = {
            "max_new_tokens": longest,
            "min_new_tokens": pick.choice([0, 0, min(4, longest)]),
            "repetition_penalty": pick.choice([1.0, 1.3, 0.8]),
            "no_repeat_ngram": pick.choice([0, 0, 1, 2, 3]),
            "stop": [],
        }
        if beams:
            settings["num_beams"] = pick.randint(1, 5)
            settings["length_penalty"] = pick.choice([0.0, 1.0, -1.0, 2.0])
            settings["early_stopping"] = pick.choice([True, False, "never"])
            settings["num_return"] = pick.randint(1, settings["num_beams"])
        if sampled:
            settings["temperature"] = pick.choice([1.0, 0.7, 2.0])
            settings["top_k"] = pick.choice([0, 1, 5, 50])
            settings["top_p"] = pick.choice([1.0, 0.9, 0.3])
            settings["seed"] = number
            settings.setdefault("num_return", pick.randint(1, 3))
        prompt = prompt_of([pick.randrange(1, VOCAB_SIZE) for _ in range(pick.randint(1, 10))])
        yield Case(*models(number % 12), prompt, settings)
