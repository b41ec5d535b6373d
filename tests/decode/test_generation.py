"""Prompts, stopping criteria, and the text of generated tokens."""

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.support.decoders import decoder
from tests.support.language_models import END, prompt_of
from trainer.decode.generation import Continuation, PromptError, StoppingCriteria, TextGenerator
from trainer.decode.greedy import Greedy
from trainer.decode.kv_cache import open_session
from trainer.task.tokenization import train_wordpiece

PLAIN = {"max_new_tokens": 5, "min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram": 0}


def met(criteria: StoppingCriteria, *rows: list[int]) -> list[bool]:
    ended: list[bool] = criteria.are_met(torch.tensor(rows)).tolist()
    return ended


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_wordpiece([["one two three four five, six"] * 9], vocab_size=60, lowercase=False)


@pytest.fixture(scope="module")
def generator(tokenizer: Tokenizer) -> TextGenerator:
    model = decoder(vocab_size=60, num_outputs=60).eval()
    end_id = tokenizer.token_to_id("[SEP]")
    return TextGenerator(lambda: open_session(model), tokenizer, end_id, 12, torch.device("cpu"))


def ids_of(generator: TextGenerator, text: str) -> tuple[int, ...]:
    return tuple(generator.tokenizer.encode(text, add_special_tokens=False).ids)


def test_text_ends_with_the_end_token_or_a_stop_string() -> None:
    criteria = StoppingCriteria(prompt_of([7, 8]), 5, ["3 4"])

    assert met(criteria, [7, 8, END], [7, 8, 3], [7, 8, 4]) == [True, False, False]
    assert met(criteria, [7, 8, 3, 4], [7, 8, END, 1], [7, 8, 4, 3]) == [True, False, False]
    assert met(StoppingCriteria(prompt_of([3, 4]), 5, ["3 4"]), [3, 4, 1]) == [False]


def test_text_ends_at_the_maximum_number_of_tokens() -> None:
    assert met(StoppingCriteria(prompt_of([7, 8]), 2, []), [7, 8, 1]) == [False]
    assert met(StoppingCriteria(prompt_of([7, 8]), 2, []), [7, 8, 1, 1]) == [True]
    assert met(StoppingCriteria(prompt_of([7, 8], max_length=3), 2, []), [7, 8, 1]) == [True]


def test_end_reason() -> None:
    cases: list[Any] = [
        ([END], "end"),
        ([3], "stop"),
        ([1, 2, 1], "length"),
        ([1, 2], "context"),
        ([1], "exhausted"),
        ([], "exhausted"),
    ]
    for new, reason in cases:
        criteria = StoppingCriteria(prompt_of([7], max_length=3), 3, ["3"])
        text = criteria.continuation(torch.tensor([7, *new]), score=-0.5)

        assert (text.ids, text.ended, text.score) == (tuple(new), reason, -0.5)


def test_prompt_has_no_special_tokens(generator: TextGenerator) -> None:
    prompt = generator.encode_prompt("two one")

    assert generator.decode(prompt.ids.tolist()) == "two one"
    assert tuple(prompt.ids.tolist()) == ids_of(generator, "two one")


def test_empty_and_too_long_prompts_are_rejected(generator: TextGenerator) -> None:
    for text, problem in [(" \n", "empty"), ("one " * 12, "12 tokens")]:
        with pytest.raises(PromptError, match=problem):
            generator.encode_prompt(text)


def test_completion_is_spelled_in_the_context_of_the_prompt(generator: TextGenerator) -> None:
    prompt = generator.encode_prompt("one")
    text = generator.complete("one", prompt, Continuation(ids_of(generator, ", two"), "length", -0.5), [])

    assert (text.text, text.completion, text.ended) == ("one, two", ", two", "length")
    assert (text.tokens, text.score) == (2, -0.5)


def test_prompt_text_is_kept_and_its_unknown_tokens_are_counted(generator: TextGenerator) -> None:
    prompt = generator.encode_prompt("ONE (two")
    text = generator.complete("ONE (two", prompt, Continuation(ids_of(generator, "six"), "length"), [])

    assert text.text == "ONE (two six"
    assert generator.count_unknown_tokens(prompt) == 2
    assert generator.count_unknown_tokens(generator.encode_prompt("one two")) == 0


def test_completion_after_unknown_tokens_keeps_its_spaces(generator: TextGenerator) -> None:
    unknown = generator.encode_prompt("(").ids[0]
    continuation = Continuation((int(unknown), *ids_of(generator, "six, two")), "length")
    text = generator.complete("( (", generator.encode_prompt("( ("), continuation, [])

    assert (text.text, text.completion) == ("( ( six, two", " six, two")


def test_end_token_is_counted_but_not_shown(generator: TextGenerator) -> None:
    assert generator.end_id is not None
    continuation = Continuation((*ids_of(generator, "two"), generator.end_id), "end")
    text = generator.complete("one", generator.encode_prompt("one"), continuation, [])

    assert (text.text, text.tokens) == ("one two", 2)


def test_completion_is_cut_before_the_first_stop_string(generator: TextGenerator) -> None:
    cases: list[Any] = [["three f", "three"], ["no", "three four"], ["four", "three"]]
    for stop in cases:
        continuation = Continuation(ids_of(generator, "two three four"), "stop")
        text = generator.complete("three  one", generator.encode_prompt("three  one"), continuation, stop)

        assert (text.text, text.completion) == ("three  one two ", " two ")


@torch.inference_mode()
def test_explained_steps_show_the_models_own_probabilities(generator: TextGenerator) -> None:
    prompt = generator.encode_prompt("one two")
    (greedy,) = Greedy(**PLAIN, stop=[])(generator.open_session(), prompt)
    steps = generator.explain(prompt, greedy, 5)
    first = generator.open_session().feed(prompt.ids[None])[0].softmax(-1).topk(5)

    assert len(steps) == len(greedy.ids)
    assert [step.chosen for step in steps] == [step.choices[0] for step in steps]
    assert steps[0].input == "one two"
    assert steps[1].input == generator.decode([*prompt.ids.tolist(), greedy.ids[0]])
    assert [choice.probability for choice in steps[0].choices] == pytest.approx(first.values.tolist(), abs=1e-6)
    names = [generator.tokenizer.decode([token], skip_special_tokens=False) for token in first.indices.tolist()]
    assert [choice.token for choice in steps[0].choices] == names
    assert generator.explain(generator.encode_prompt("one ("), greedy, 1)[0].input == "one [UNK]"


@torch.inference_mode()
def test_explained_step_shows_a_chosen_token_that_is_not_the_most_likely(generator: TextGenerator) -> None:
    prompt = generator.encode_prompt("one two")
    scores = generator.open_session().feed(prompt.ids[None])[0]
    (step,) = generator.explain(prompt, Continuation((int(scores.argmin()),), "length"), 2)

    assert len(step.choices) == 2
    assert step.chosen.probability == pytest.approx(float(scores.softmax(-1).min()), abs=1e-6)
    assert step.chosen not in step.choices


@torch.inference_mode()
def test_explained_steps_show_word_pieces_and_special_tokens(generator: TextGenerator) -> None:
    end = Continuation((generator.tokenizer.token_to_id("[SEP]"),), "end")
    (step,) = generator.explain(generator.encode_prompt("one"), end, 99)

    assert len(step.choices) == 60
    assert step.chosen.token == "[SEP]"
    assert any(choice.token.startswith("##") for choice in step.choices)
    assert sum(choice.probability for choice in step.choices) == pytest.approx(1, abs=1e-5)
