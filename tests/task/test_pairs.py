import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from trainer.task.pair_classification import encode_pairs
from trainer.task.tokenization import train_wordpiece

WORDS = ["ant", "bee", "cat", "dog"]
texts = st.lists(st.sampled_from([*WORDS, "zebra"]), max_size=25).map(" ".join)


def wordpiece() -> Tokenizer:
    return train_wordpiece([WORDS * 5], vocab_size=100, lowercase=True)


def roberta() -> Tokenizer:
    """`<s> a </s> </s> b </s>`, without token types."""
    names = ["<s>", "</s>", "<unk>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>:0", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


TOKENIZERS = {"wordpiece": wordpiece(), "roberta": roberta()}


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=50)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5), st.integers(5, 30))
def test_the_result_is_that_of_the_tokenizers_own_truncation(
    kind: str, pairs: list[tuple[str, str]], max_length: int
) -> None:
    tokenizer = TOKENIZERS[kind]
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    expected = tokenizer.encode_batch(pairs)
    found = encode_pairs(tokenizer, *zip(*pairs, strict=True), max_length)

    assert [ids.tolist() for ids, _, _ in found] == [encoding.ids for encoding in expected]
    assert [types.tolist() for _, types, _ in found] == [encoding.type_ids for encoding in expected]
    assert [cut for _, _, cut in found] == [bool(encoding.overflowing) for encoding in expected]


def test_a_second_text_is_not_lost_behind_a_long_first_one() -> None:
    tokenizer = wordpiece()
    (ids, types, cut), (_, _, whole) = encode_pairs(
        tokenizer, ["ant " * 50, "ant"], ["bee cat dog", "bee"], max_length=11
    )

    words = [tokenizer.id_to_token(token) for token in ids]
    assert words == ["[CLS]", *["ant"] * 5, "[SEP]", "bee", "cat", "dog", "[SEP]"]
    assert types.tolist() == [0] * 7 + [1] * 4
    assert (cut, whole) == (True, False)


def test_the_tokenizer_truncates_as_before() -> None:
    tokenizer = wordpiece()
    encode_pairs(tokenizer, ["ant"], ["bee"], 5)
    assert tokenizer.truncation is None

    tokenizer.enable_truncation(7)
    before = tokenizer.to_str()
    encode_pairs(tokenizer, ["ant"], ["bee"], 5)
    assert tokenizer.to_str() == before


def test_two_long_texts_are_cut_at_once() -> None:
    # The library's own truncation builds 111,555 pieces here, 50 times as many at three times the length.
    found = encode_pairs(wordpiece(), ["ant " * 20_000], ["bee " * 20_000], 9)

    assert np.array(found[0][0]).shape == (9,)
