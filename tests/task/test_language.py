import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models

from trainer.errors import ConfigError
from trainer.task.language_modeling import most_likely_tokens, require_special_token
from trainer.task.texts import Texts
from trainer.task.tokenization import find_special_id, special_ids, train_wordpiece


def learnt() -> Tokenizer:
    return train_wordpiece([["a b c d e"] * 9], vocab_size=100, lowercase=True)


def test_the_first_name_that_is_known() -> None:
    assert find_special_id(learnt(), ("<mask>", "[MASK]", "[SEP]")) == 4
    assert find_special_id(learnt(), ("<mask>",)) is None


def test_special_and_unknown_tokens() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["word"])

    assert special_ids(tokenizer).tolist() == [1, 3]
    assert special_ids(learnt()).tolist() == [0, 1, 2, 3, 4]


def test_a_learnt_vocabulary_needs_no_check() -> None:
    require_special_token(Texts(8, 100, None, True), ("<mask>",), "mask token")


def test_a_given_tokenizer_does(tmp_path: object) -> None:
    learnt().save(f"{tmp_path}/tokenizer.json")
    texts = Texts(8, 100, f"{tmp_path}/tokenizer.json", True)
    require_special_token(texts, ("[MASK]",), "mask token")

    with pytest.raises(ConfigError, match=r"tokenizer: has no mask token \(<mask>\)\. Name another one, or use null"):
        require_special_token(texts, ("<mask>",), "mask token")


def test_likeliest_tokens_of_extreme_and_half_logits() -> None:
    tokenizer = learnt()
    size = tokenizer.get_vocab_size()
    output = torch.zeros(3, size)
    output[0, 5], output[1, 6] = 6e4, 1.0
    for logits in (output, output.half()):
        sure, likely, even = most_likely_tokens(logits, tokenizer, 2)
        assert sure == [(tokenizer.id_to_token(5), 1.0), (tokenizer.id_to_token(0), 0.0)]
        assert likely[0] == (tokenizer.id_to_token(6), pytest.approx(np.e / (np.e + size - 1), abs=1e-6))
        assert even == [(tokenizer.id_to_token(number), pytest.approx(1 / size, abs=1e-6)) for number in (0, 1)]
