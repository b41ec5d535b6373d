"""A model's tokens as text."""

import pytest
import torch
from tokenizers import Tokenizer

from tests.support.decoders import decoder
from trainer.decode.greedy import Greedy
from trainer.decode.prompt import Continuation, Prompt
from trainer.decode.reading import open_reader
from trainer.decode.writing import PromptError, TextGenerator
from trainer.task.tokenization import learn_wordpiece

PLAIN = {"max_new_tokens": 5, "min_new_tokens": 0, "repetition_penalty": 1.0, "no_repeat_ngram": 0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return learn_wordpiece([["one two three four five, six"] * 9], vocab_size=60, lowercase=False)


@pytest.fixture(scope="module")
def writer(tokenizer: Tokenizer) -> TextGenerator:
    model = decoder(vocab_size=60, num_outputs=60).eval()
    end_id = tokenizer.token_to_id("[SEP]")
    return TextGenerator(lambda: open_reader(model), tokenizer, end_id, 12, torch.device("cpu"))


def ids_of(writer: TextGenerator, text: str) -> tuple[int, ...]:
    return tuple(writer.tokenizer.encode(text, add_special_tokens=False).ids)


def test_a_prompt_is_its_tokens_without_special_ones(writer: TextGenerator) -> None:
    prompt = writer.prompt("two one")

    assert writer.text_of(prompt.ids.tolist()) == "two one"
    assert tuple(prompt.ids.tolist()) == ids_of(writer, "two one")


@pytest.mark.parametrize(
    ("text", "problem"), [("", "has no token"), (" \n", "has no token"), ("one " * 12, "has 12 tokens, and the model")]
)
def test_a_prompt_that_cannot_be_gone_on_from(text: str, problem: str, writer: TextGenerator) -> None:
    with pytest.raises(PromptError, match=problem):
        writer.prompt(text)


def test_a_text_is_spelled_as_a_whole(writer: TextGenerator) -> None:
    prompt = writer.prompt("one")
    written = writer.written("one", prompt, Continuation(ids_of(writer, ", two"), "length", -0.5), [])

    assert (written.text, written.completion, written.ended) == ("one, two", ", two", "length")
    assert (written.tokens, written.score) == (2, -0.5)


def test_the_prompt_stays_as_it_was_given_and_what_is_unknown_in_it_is_counted(writer: TextGenerator) -> None:
    prompt = writer.prompt("ONE (two")
    written = writer.written("ONE (two", prompt, Continuation(ids_of(writer, "six"), "length"), [])

    assert written.text == "ONE (two six"
    assert (writer.num_unknown(prompt), writer.num_unknown(writer.prompt("one two"))) == (2, 0)


def test_what_comes_after_unknown_words_is_spelled_beside_them(writer: TextGenerator) -> None:
    unknown = writer.prompt("(").ids[0]
    continuation = Continuation((int(unknown), *ids_of(writer, "six, two")), "length")
    written = writer.written("( (", writer.prompt("( ("), continuation, [])

    assert (written.text, written.completion) == ("( ( six, two", " six, two")


def test_the_end_of_text_token_is_no_text(writer: TextGenerator) -> None:
    assert writer.end_id is not None
    continuation = Continuation((*ids_of(writer, "two"), writer.end_id), "end")
    written = writer.written("one", writer.prompt("one"), continuation, [])

    assert (written.text, written.tokens) == ("one two", 2)


@pytest.mark.parametrize("stop", [["three"], ["three f", "three"], ["no", "three four"], ["four", "three"]])
def test_a_text_is_cut_before_the_string_that_stopped_it(stop: list[str], writer: TextGenerator) -> None:
    continuation = Continuation(ids_of(writer, "two three four"), "stop")
    written = writer.written("three  one", writer.prompt("three  one"), continuation, stop)

    assert (written.text, written.completion) == ("three  one two ", " two ")


@torch.inference_mode()
def test_each_step_is_explained_by_the_models_own_probabilities(writer: TextGenerator) -> None:
    prompt = writer.prompt("one two")
    (greedily,) = Greedy(**PLAIN, stop=[])(writer.open_reader(), prompt)
    steps = writer.format_error(prompt, greedily, 5)
    first = writer.open_reader().read(prompt.ids[None])[0].softmax(-1).topk(5)

    assert len(steps) == len(greedily.ids)
    assert [step.chosen for step in steps] == [step.choices[0] for step in steps]
    assert steps[0].input == "one two"
    assert steps[1].input == writer.text_of([*prompt.ids.tolist(), greedily.ids[0]])
    assert [choice.probability for choice in steps[0].choices] == pytest.approx(first.values.tolist(), abs=1e-6)
    names = [writer.tokenizer.decode([token], skip_special_tokens=False) for token in first.indices.tolist()]
    assert [choice.token for choice in steps[0].choices] == names
    assert writer.format_error(writer.prompt("one ("), greedily, 1)[0].input == "one [UNK]"


@torch.inference_mode()
def test_what_was_chosen_is_told_where_it_is_not_the_likeliest(writer: TextGenerator) -> None:
    prompt = writer.prompt("one two")
    scores = writer.open_reader().read(prompt.ids[None])[0]
    worst = int(scores.argmin())
    (step,) = writer.format_error(prompt, Continuation((worst,), "length"), 2)

    assert len(step.choices) == 2
    assert step.chosen.probability == pytest.approx(float(scores.softmax(-1).min()), abs=1e-6)
    assert step.chosen not in step.choices


@torch.inference_mode()
def test_pieces_and_special_tokens_are_shown_as_they_are(writer: TextGenerator, tokenizer: Tokenizer) -> None:
    prompt: Prompt = writer.prompt("one")
    steps = writer.format_error(prompt, Continuation((tokenizer.token_to_id("[SEP]"),), "end"), 99)

    assert len(steps[0].choices) == 60
    assert steps[0].chosen.token == "[SEP]"
    assert any(choice.token.startswith("##") for choice in steps[0].choices)
    assert sum(choice.probability for choice in steps[0].choices) == pytest.approx(1, abs=1e-5)
